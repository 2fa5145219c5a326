"""What `benchmarks.sweep` compares: systems of volumes here, of images in benchmarks.comparisons_2d."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.arms import Arm, Sweep
from benchmarks.comparisons_2d import SWEEPS_2D

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
# Whole reports are read by two layers: one layer of attention cannot say which finding a "no" belongs to.
READER = "model.text={width: 128, layers: 2, heads: 4, context_length: 256}"
# The shallowest of Merlin's family on twice the quickstart's spacing, so that it has more steps than ours in the same
# time.
MERLIN = Arm(
    "merlin.yaml",
    (
        READER,
        "data.geometry.spacing_mm=[14.0, 9.4, 9.4]",
        "data.train_view.size=[28, 32, 40]",
        "data.eval_view.size=[28, 32, 40]",
        "model.image.name=i3d_resnet26.i-28x32x40_c-1_w-32",
        "model.image.image_size=40",
        "model.image.grad_checkpointing=false",
    ),
)
# Merlin's objectives with everything else of ours: tower, windows, optimiser, centring.
MERLIN_IN_OURS = Arm(
    "ct3d.yaml",
    (
        READER,
        "objectives=[{name: contrastive, units: [report, section]}, {name: labels}]",
        "data.units.sentences=false",
        "data.units.report_text=findings",
        "data.units.alternate=anatomy",
    ),
    like="ours",
    seeds=3,
)
# Our tower on 32^3 in place of a Swin, whose windows of 343 tokens take more than 24 GB for three passes of 32 studies.
# It has one map, so sentences and words are held against that one.
VELVET = Arm(
    "velvet_med.yaml",
    (
        READER,
        "data.train_view.size=[32, 32, 32]",
        "data.eval_view.size=[32, 32, 32]",
        "model.image.name=voxvit_tiny.p-8x8x8_i-32x32x32_c-1_s-extremes_o-grid_l-0",
        "model.image.image_size=32",
        "model.image.grad_checkpointing=false",
        "model.report={width: 128, heads: 4, layers: 2, fusion_layers: 1, feedforward: 512}",
        "objectives.2.level=0",
        "objectives.3.level=0",
    ),
)

# The same systems on real head-and-neck CTs (benchmarks.real_data makes shards/ct): 229 scans to train on, no split to
# choose anything by, so every arm has 1e-3 (on the phantom VELVET-Med chose 3e-4: RESULTS.md).
REAL = (
    "data.source={kind: shards, path: shards/ct}",
    "evaluate.task=head_neck_ct",
    *(word for word in PHANTOM if not word.startswith("data.source")),
)
MERLIN_REAL = Arm(
    "merlin.yaml",
    (
        READER,
        "optim.lr=1e-3",
        "data.geometry.spacing_mm=[12.0, 12.0, 12.0]",
        "data.train_view.size=[32, 32, 56]",
        "data.eval_view.size=[32, 32, 56]",
        "model.image.name=i3d_resnet26.i-32x32x56_c-1_w-32",
        "model.image.image_size=56",
        "model.image.grad_checkpointing=false",
    ),
)

# And on turned cubes around organs (benchmarks.real_organs): ten times as many to train on, a split to choose by, and
# little that a thumbnail tells. All see 32^3 voxels of 3 mm, the whole of a cube.
CUBES = (
    "data.source={kind: shards, path: shards/organs}",
    "evaluate.task=benchmarks/ct_patches.yaml",
    *(word for word in PHANTOM if not word.startswith("data.source")),
)
CUBE = (
    "data.geometry.spacing_mm=[3.0, 3.0, 3.0]",
    "data.train_view.size=[32, 32, 32]",
    "data.eval_view.size=[32, 32, 32]",
)
OUR_CUBES = Arm(
    "ct3d_real.yaml",
    (
        *CUBE,
        "model.image.name=voxvit_tiny.p-8x8x8_i-32x32x32_c-4_s-extremes_o-grid_l-0",
        "model.image.image_size=32",
    ),
    rates=(1e-3,),
)
MERLIN_CUBES = Arm(
    "merlin.yaml",
    (
        READER,
        *CUBE,
        "model.image.name=i3d_resnet26.i-32x32x32_c-1_w-32",
        "model.image.image_size=32",
        "model.image.grad_checkpointing=false",
    ),
)

# These reports have one anatomical section, which hardly tells the organs apart, so Merlin's alternation costs it half
# of its steps: the recipe without.
MERLIN_CUBES_REPORTS = replace(
    MERLIN_CUBES,
    overrides=(
        *MERLIN_CUBES.overrides,
        "data.units.alternate=null",
        "objectives=[{name: contrastive, units: [report]}, {name: labels}]",
    ),
    like="merlin",
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
    # Every sentence pools the image's tokens by itself beside what the quickstart asks of it.
    "attended": Arm("ct3d.yaml", ("objectives.3={name: attended, weight: 0.5}",)),
    # The kind of tower that the full-size recipes have: patches, attention by slice, half of the tokens.
    "slices": Arm(
        "ct3d.yaml",
        ("model.image.name=voxvit_tiny.p-8x8x8_i-56x64x80_c-3_a-slice3_l-6", "model.image.token_dropout=0.5"),
    ),
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
        {
            "ours": Arm("ct3d.yaml", rates=(1e-3,)),  # the recipe's: one try, the others have three
            "merlin": MERLIN,
            "velvet_med": VELVET,
            "merlin_in_ours": MERLIN_IN_OURS,
        },
        (("ours", "merlin"), ("ours", "velvet_med"), ("ours", "merlin_in_ours")),
        common=PHANTOM,
        seconds=240.0,
        rates=(3e-4, 1e-3, 3e-3),
        systems=True,
    ),
    "systems_real": Sweep(
        {
            "ours": Arm("ct3d_real.yaml"),
            "merlin": MERLIN_REAL,
            "velvet_med": Arm(VELVET.config, (*VELVET.overrides, "optim.lr=1e-3")),
        },
        (("ours", "merlin"), ("ours", "velvet_med")),
        common=REAL,
        seconds=90.0,  # 120 steps of ours, the recipe's own length
        systems=True,
    ),
    "organs": Sweep(
        {
            "ours": OUR_CUBES,
            "merlin": MERLIN_CUBES,
            "merlin_reports": MERLIN_CUBES_REPORTS,
            "velvet_med": VELVET,
        },
        (("ours", "merlin"), ("ours", "merlin_reports"), ("ours", "velvet_med")),
        common=CUBES,
        seconds=180.0,
        rates=(1e-3, 3e-3, 1e-2),  # in a first try on validation VELVET-Med wanted 3e-3 rather than 3e-4
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
            ("attended", "sentences"),
            ("slices", "sentences"),
        ),
        seeds=3,
        common=(*PHANTOM, "train.steps=300"),
        systems=True,
    ),
    **SWEEPS_2D,
}
