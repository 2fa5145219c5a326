"""The weights that a run starts from, kept beside those it ends with, so that both can be interpolated (`finish`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoders.dual import DualEncoder
from pretrain import runs
from pretrain.errors import ConfigError
from pretrain.studies import Data


def keep_base(folder: Path, dual: DualEncoder, data: Data, model: dict[str, Any]) -> None:
    """Write RUN/base, a release of the model as it is now; one that an interrupted start left is replaced. model: as
    the `model.json` of a checkpoint."""
    from encoders.release import PROVENANCE, write_release

    told = {key: model[key] for key in PROVENANCE if model.get(key) is not None}
    write_release(
        folder / runs.BASE, dual.clip.state_dict(), dual.model_cfg, data.geometry, data.eval_view,
        provenance={**told, "name": f"{model['name']} (base)", "step": 0}, overwrite=True,
    )  # fmt: skip


def require_base(folder: Path) -> None:
    """Raise ConfigError where a run that is gone on with has not kept what it began with."""
    if not (folder / runs.BASE).is_dir():
        raise ConfigError(
            f"finish: {folder} has no {runs.BASE}/, the weights that it started from",
            why="there is nothing to interpolate with, and its checkpoints hold later weights",
            fix="take finish out of its recipe.yaml and merge by hand (docs/interpolate.md), or begin a new run",
        )
