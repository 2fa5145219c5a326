"""Puts a checkpoint back once the strategy has set model and optimiser up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from pretrain.module import Pretraining
from pretrain.state import restore


class Restore(L.Callback):
    """Must come first of all callbacks: the others read the step the run goes on from."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state

    def on_train_start(self, trainer: L.Trainer, module: Pretraining) -> None:
        restore(module, self.folder, self.state)
        self.state = {}
