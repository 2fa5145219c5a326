"""Comparisons of images that `benchmarks.sweep` knows."""

from __future__ import annotations

from benchmarks.arms import Arm, Sweep

# Systems of images on three collections together (benchmarks.real_images makes shards/images), all from random weights:
# what is compared is what each makes of the same pairs, not what it starts from.
IMAGES = (
    "data.workers=0",
    "evaluate.task=public_images",
    "evaluate.every_steps=1000000",
    "checkpoint.keep_top=0",
    "train.batch_size=64",
)
THEIRS = (
    "data.source={kind: mixture, mix: proportional, batches: mixed, sources: [{name: xray, path: shards/images/xray}, "
    "{name: pneumonia, path: shards/images/pneumonia}, {name: slices, path: shards/images/slices}]}",
    "data.geometry.size=[64, 64]",
    "data.train_view.size=[64, 64]",
    "data.eval_view.size=[64, 64]",
    "data.units={report: true, templates: benchmarks/real_images_captions.yaml}",
    "data.max_damaged=0",
    "model.image={name: resnet10t, image_size: 64}",
    "model.embed_dim=256",
    "train.chunk=null",
    "train.precision=auto",
)


# The same systems on turned patches of CTs, which have reports: thumbnails read less of them.
PATCHES = (
    "data.source={kind: shards, path: shards/images/patches}",
    *(word for word in IMAGES if not word.startswith("evaluate.task")),
    "evaluate.task=benchmarks/ct_patches.yaml",
)
# Whole reports tell patches of one organ apart, so labels make no positives of them; in so few words order is content.
# Reports measure the whole of a patch, so crops are as large as the others'.
OUR_PATCHES = (
    "data.train_view.scale=[0.9, 1.0]",
    "data.units={report: true, sentences: true}",
    "objectives.2={name: contrastive, weight: 1.0, units: [report], positives: same_caption}",
)
THEIR_PATCHES = (
    *(word for word in THEIRS if not word.startswith(("data.source", "data.units"))),
    "data.units={report: true}",
)


def _images(
    config: str, context: int, positives: str, like: str | None = None, seeds: int | None = None,
    theirs: tuple[str, ...] = THEIRS, units: str = "[report, caption]",
) -> Arm:  # fmt: skip
    """Recipe `config` at this size. A comparison with a repair has the original loss: positives "own"."""
    words = (
        f"model.text={{width: 128, layers: 2, heads: 4, context_length: {context}}}",
        f"objectives=[{{name: contrastive, units: {units}, positives: {positives}}}]",
        *(("model.pretrained=null", "finish=null") if config == "bmc_clip.yaml" else ()),
    )
    return Arm(config, (*theirs, *words), like=like, seeds=seeds)


SWEEPS_2D = {
    "images": Sweep(
        {
            "ours": Arm("biomed2d.yaml", rates=(1e-3,)),
            "unimed": _images("unimed_clip.yaml", 256, "own"),
            "bmc": _images("bmc_clip.yaml", 77, "own"),
            "same_caption": _images("unimed_clip.yaml", 256, "same_caption", like="unimed", seeds=3),
            "same_label": _images("unimed_clip.yaml", 256, "same_label", like="unimed"),
            "same_label_masked": _images("unimed_clip.yaml", 256, "same_label_masked", like="unimed", seeds=3),
            "soft": _images("unimed_clip.yaml", 256, "soft", like="unimed", seeds=3),
        },
        (
            ("ours", "unimed"),
            ("ours", "bmc"),
            ("same_caption", "unimed"),
            ("same_label", "unimed"),
            ("same_label_masked", "unimed"),
            ("soft", "unimed"),
        ),
        common=IMAGES,
        seconds=60.0,
        rates=(3e-4, 1e-3, 3e-3),
        systems=True,
    ),
    "patches": Sweep(
        {
            "ours": Arm("biomed2d.yaml", OUR_PATCHES, rates=(1e-3,)),
            "unimed": _images("unimed_clip.yaml", 256, "own", theirs=THEIR_PATCHES, units="[report]"),
            "bmc": _images("bmc_clip.yaml", 77, "own", theirs=THEIR_PATCHES, units="[report]"),
            "same_label": _images(
                "unimed_clip.yaml", 256, "same_label", like="unimed", theirs=THEIR_PATCHES, units="[report]"
            ),
        },
        (("ours", "unimed"), ("ours", "bmc"), ("same_label", "unimed")),
        common=PATCHES,
        seconds=60.0,
        rates=(3e-4, 1e-3, 3e-3),
        systems=True,
    ),
}
