"""One of two gloo ranks: `python two_ranks.py FOLDER RANK` streams FOLDER/ct and FOLDER/mr as a mixture, gathers keys
of every step from both ranks and writes them to FOLDER/RANK.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from data_shards.preprocess import Geometry, View
from data_shards.shard_set import ShardSet
from data_shards.stream import Mixture, ShardUnion, Stream, UnitPolicy

STEPS, BATCH = 12, 2


def main(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    both = ShardUnion({name: ShardSet.open(folder / name) for name in ("ct", "mr")})
    stream = Stream(
        both, both.rows("train"), Geometry(), View("random", (6, 7, 8), jitter=2), lambda text: [1, 2], UnitPolicy(),
        batch_size=BATCH, seed=1, steps=STEPS, rank=rank, world=2, workers=rank,
        mixture=Mixture({"ct": 2, "mr": 1}, batches="mixed"),
    )  # fmt: skip
    gathered = []
    for batch in stream:
        keys: list[list[str]] = [[], []]
        dist.all_gather_object(keys, batch.keys)  # hangs, and the test with it, where step counts differ
        gathered.append(keys)
    (folder / f"{rank}.json").write_text(json.dumps({"steps": gathered, "realised": stream.realised()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
