"""Chest-abdomen CT phantoms with reports: the embedded default data set.

generate(index, seed) -> Study, sample_parameters(index, seed) -> labels and nuisances without rendering,
ensure(...) -> cached shard set. `python -m data_shards.phantom --help` writes a shard set.
"""

from __future__ import annotations

from .cache import VERSION, ensure, write
from .parameters import FINDINGS, Parameters, nuisance_vector, sample_parameters
from .study import generate

__all__ = ["FINDINGS", "VERSION", "Parameters", "ensure", "generate", "nuisance_vector", "sample_parameters", "write"]
