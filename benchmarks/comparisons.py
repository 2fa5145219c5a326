"""What `benchmarks.sweep` compares: arms, each a recipe with overrides, and the differences that are reported."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Arm:
    """One system: overrides of one recipe.

    like: an arm of which this one changes one thing: it takes that arm's steps and learning rate. seeds: of this arm,
    where it has fewer than the others.
    """

    config: str
    overrides: tuple[str, ...] = ()
    like: str | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Sweep:
    """Arms of one comparison.

    arms: by name. differences: pairs (a, b), a - b is reported. seeds: of each arm. common: overrides of every arm,
    which the arm's own win over. seconds: T, every arm gets T / (its median step) steps; None: the recipes' own steps.
    rates: learning rates that each arm chooses from; empty: the recipe's own. systems: the arms may see scans
    differently, as whole systems do; otherwise scores of different preprocessing are refused.
    """

    arms: dict[str, Arm]
    differences: tuple[tuple[str, str], ...]
    seeds: int = 5
    common: tuple[str, ...] = ()
    seconds: float | None = None
    rates: tuple[float, ...] = ()
    systems: bool = False

    def only(self, names: Collection[str]) -> Sweep:
        """Some of the arms, what they are ablations of, and the differences that are left."""
        names = {*names, *(like for name in names if (like := self.arms[name].like) is not None)}
        pairs = tuple(pair for pair in self.differences if set(pair) <= names)
        return replace(self, arms={name: arm for name, arm in self.arms.items() if name in names}, differences=pairs)


# What fits two cores: the quickstart's grid, batch and text tower for all, about 4,000 studies to train on.
PHANTOM = (
    "data.source.studies=5000",
    "data.workers=0",
    "model.text={width: 128, layers: 1, heads: 4, context_length: 256}",
    "model.embed_dim=256",
    "train.batch_size=32",
    "checkpoint.keep_top=0",
    "evaluate.every_steps=1000000",  # scored once, after the last step: no arm has the best of several
)
GRID = (
    "data.geometry.spacing_mm=[7.0, 4.7, 4.7]",
    "data.train_view.size=[56, 64, 80]",
    "data.eval_view.size=[56, 64, 80]",
    "model.image.image_size=80",
)
# The shallowest of Merlin's family, a quarter as wide: 3 CPU-seconds a step of 32, where ResNet-152 takes 50 a scan.
MERLIN = Arm(
    "merlin.yaml",
    (*GRID, "model.image.name=i3d_resnet26.i-56x64x80_c-1_w-16", "model.image.grad_checkpointing=false"),
)
# What is left of the difference when both have the tower that trains fastest here.
MERLIN_OUR_TOWER = Arm(
    "merlin.yaml",
    (
        *GRID,
        "model.image.name=voxvit_tiny.p-8x8x8_i-56x64x80_c-1_s-extremes_o-grid_l-0",
        "model.image.grad_checkpointing=false",
    ),
)
# Our tower on 64^3 in place of a Swin, whose windows of 343 tokens take 65 CPU-seconds a pass of 32 however narrow it
# is, three passes a step. It has one map, so sentences and words are held against that one.
VELVET = Arm(
    "velvet_med.yaml",
    (
        "data.train_view.size=[64, 64, 64]",
        "data.eval_view.size=[64, 64, 64]",
        "model.image.name=voxvit_tiny.p-8x8x8_i-64x64x64_c-1_s-extremes_o-grid_l-0",
        "model.image.image_size=64",
        "model.image.grad_checkpointing=false",
        "model.report={width: 128, heads: 4, layers: 2, fusion_layers: 1, feedforward: 512}",
        "objectives.2.level=0",
        "objectives.3.level=0",
    ),
)

# One part at a time on top of plain contrast of whole reports, by the quickstart's tower.
PLAIN = "objectives=[{name: contrastive, units: [report]}]"
PARTS = {
    "plain": Arm("ct3d.yaml", (PLAIN, "data.units.sentences=false")),
    "sections": Arm(
        "ct3d.yaml",
        (
            "objectives=[{name: contrastive, units: [report, section]}]",
            "data.units.sentences=false",
            "data.units.report_text=findings",
            "data.units.alternate=anatomy",
        ),
    ),
    "hierarchical": Arm("ct3d.yaml", ("objectives=[{name: contrastive, units: [report]}, {name: hierarchical}]",)),
    "self_supervision": Arm(
        "ct3d.yaml",
        (
            "objectives=[{name: contrastive, units: [report]}, {name: simclr}, {name: inpainting}]",
            "data.units.sentences=false",
        ),
    ),
    "sentences": Arm("ct3d.yaml"),
    "sentences_one_window": Arm(
        "ct3d.yaml",
        (
            "data.geometry.windows=[[-1000, 1000]]",
            "model.image.name=voxvit_tiny.p-8x8x8_i-56x64x80_c-1_s-extremes_o-grid_l-0",
        ),
    ),
}

SWEEPS = {
    "infonce_vs_sentence": Sweep(
        {
            "sentence": Arm("ct3d.yaml"),
            # Without sentence units its text tower is spared what its loss would not read, so step times compare.
            "infonce": Arm(
                "ct3d.yaml",
                (
                    "objectives=[{name: contrastive, weight: 1.0, units: [report]}]",
                    "data.units.sentences=false",
                ),
            ),
        },
        (("sentence", "infonce"),),
    ),
    "systems": Sweep(
        {"ours": Arm("ct3d.yaml"), "merlin": MERLIN, "merlin_our_tower": MERLIN_OUR_TOWER, "velvet_med": VELVET},
        (("ours", "merlin"), ("ours", "merlin_our_tower"), ("ours", "velvet_med")),
        common=PHANTOM,
        seconds=240.0,
        rates=(3e-4, 1e-3, 3e-3),
        systems=True,
    ),
    "parts": Sweep(
        PARTS,
        (
            ("sections", "plain"),
            ("hierarchical", "plain"),
            ("self_supervision", "plain"),
            ("sentences", "plain"),
            ("sentences", "sentences_one_window"),
        ),
        seeds=3,
        common=(*PHANTOM, "train.steps=300"),
        systems=True,
    ),
}
