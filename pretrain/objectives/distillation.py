"""Self-distillation: the image tower with dropped tokens predicts what its own moving average makes of the whole image.

    L = (1/B) Σ_i (2 - 2 cos( q(h_i), t_i - c ))                      BYOL, arXiv 2006.07733, eq. 2
    c ← m c + (1 - m) (1/B) Σ_i t_i                                   the centre of DINO, arXiv 2104.14294, eq. 4
    ξ ← τ ξ + (1 - τ) θ,   τ = 1 - (1 - τ₀) (cos(π k/K) + 1) / 2      BYOL, §3.3 "target network", in step k of K

h_i are the pooled features, before the projection into the joint space, of the forward pass that the other losses read;
t_i those of the teacher, a tower with weights ξ that sees every token; q is a small predictor. Behind a stem that works
over the whole volume (`s-conv`, `s-extremes`) the student has seen some of what it dropped. The centre is there because
scans look alike: features share a large common part, and a cosine would be near 1 without anything learnt.

Under `train.chunk` the teacher runs once a part, in the pass without gradients.

Legend: B studies of the global batch, C width of the image tower.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.dual import DualEncoder
from encoders.unlearnt import apart
from pretrain.errors import ConfigError
from pretrain.objectives.base import GlobalBatch, Objective, Surroundings
from pretrain.passes import Part, Pass, Rows
from pretrain.schema_objectives import DistillationOptions

STUDENT, TEACHER = "image:global.trunk", "image:teacher.trunk"
CENTRE_MOMENTUM = 0.9


class Teacher(nn.Module):
    """A tower that is never trained and never drops anything."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk: Any = copy.deepcopy(trunk).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode, whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with apart():
            return self.trunk.forward_head(self.trunk.forward_features(images), pre_logits=True)

    @torch.no_grad()
    def follow(self, trunk: nn.Module, keep: float) -> None:
        """Move to `trunk`, of which every rank may hold a shard."""
        theirs = dict(trunk.named_parameters())
        for name, own in self.trunk.named_parameters():
            own.lerp_(_whole(theirs[name]).to(own.dtype), 1.0 - keep)
        self.copy_statistics(trunk)

    @torch.no_grad()
    def copy_statistics(self, trunk: nn.Module) -> None:
        """Running statistics and measured scales (encoders.stem.Standardise) are the student's."""
        theirs = dict(trunk.named_buffers())
        for name, own in self.trunk.named_buffers():
            own.copy_(_whole(theirs[name]))


def keep_share(momentum: float, done: float) -> float:
    """τ at a share of the run: `momentum` at its start, 1 at its end."""
    return 1.0 - (1.0 - momentum) * (math.cos(math.pi * done) + 1.0) / 2.0


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value.detach()


class Given:
    """Remembers the parts of a batch. They come twice (pretrain.grad_cache): without a graph in their order, the last
    with one, then those before it with one. What has no gradient is wanted once."""

    def __init__(self) -> None:
        self._firsts: set[int] = set()

    def before(self, part: Part) -> bool:
        """Whether this part has been here."""
        first, alone = part.studies.start, part.studies.stop - part.studies.start == len(part.batch)
        if first == 0 and not torch.is_grad_enabled():
            self._firsts = set()
        if torch.is_grad_enabled() and first in self._firsts and not alone:
            return True
        self._firsts.add(first)
        return False


class Distillation(Objective):
    """Cosine between the predicted and the centred features of the teacher."""

    reads = (STUDENT, TEACHER)
    Options = DistillationOptions
    centre_C: Tensor
    seen: Tensor

    def attach(self, around: Surroundings) -> None:
        trunk = getattr(around.dual.clip.visual, "trunk", None)
        if trunk is None:
            raise ConfigError(
                "objective distillation: this image tower does not give its features before the projection",
                why="there would be nothing to distil",
                fix="use a voxvit or a tower by its timm name, or leave distillation out",
            )
        width, hidden = trunk.num_features, self.options.width
        self.teacher = Teacher(trunk)
        self.predictor = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.register_buffer("centre_C", torch.zeros(width))
        self.register_buffer("seen", torch.tensor(0))  # batches in the centre
        self._given = Given()

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        return {TEACHER.partition(".")[0]: (self.teach, ("trunk",))}

    def teach(self, dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
        """The teacher's features. Of a batch in parts they are asked for twice, and needed the first time."""
        if self._given.before(part):
            return {}
        self.teacher.copy_statistics(dual.clip.visual.trunk)
        return {"trunk": Rows(self.teacher(part.images), part.study_b)}

    def forward(self, batch: GlobalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        student_BC, teacher_BC = (batch.rows[name].values.float() for name in (STUDENT, TEACHER))
        target_BC = F.normalize(teacher_BC.detach() - self._centre(teacher_BC.detach()), dim=1)
        cosine_B = (F.normalize(self.predictor(student_BC), dim=1) * target_BC).sum(1)
        return (2.0 - 2.0 * cosine_B).mean(), {"cosine": cosine_B.mean().detach()}

    def _centre(self, teacher_BC: Tensor) -> Tensor:
        """With this batch in it. As a running statistic it goes back with the others where an update is refused."""
        with torch.no_grad():
            self.centre_C.lerp_(teacher_BC.mean(0), max(1.0 - CENTRE_MOMENTUM, 1.0 / (float(self.seen) + 1.0)))
            self.seen += 1
        return self.centre_C.clone()

    def after_step(self, module: nn.Module) -> None:
        around = cast(Any, module)
        keep = keep_share(self.options.momentum, around.step_number / around.recipe.train.steps)
        self.teacher.follow(around.dual.clip.visual.trunk, keep)
