"""Studies become shards, shards become batches.

Nothing heavy is imported here: `python -m data_shards.build --help` answers without torch.
"""

from data_shards.errors import DataError
from data_shards.schema import SCHEMA_VERSION, Caption, Scan, Study, Texts

__all__ = ["SCHEMA_VERSION", "Caption", "DataError", "Scan", "Study", "Texts"]
