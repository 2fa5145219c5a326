"""WebDataset tars that somebody else published: scanned once, then read like a shard set. Nothing heavy is imported."""

from data_shards.foreign.shards import ForeignShards

__all__ = ["ForeignShards"]
