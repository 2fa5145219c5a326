"""Training images a second against `open_clip_train`, on the same ViT-S/16, images, captions and cores.

    python -m benchmarks.images_per_second --data ROOT [--repeats 3] [--context 77 256] [--steps 24] [--batch 32]

Chest radiographs (ROOT/hannover_cxr) with figure captions of natural length (ROOT/text/roco_captions_ccby.csv.gz),
paired at random: speed does not care. open_clip reads them through its CSV reader in its bf16 (`amp_bf16`) with its own
random crops, we from shards that `data_shards` wrote of the same bytes, in bf16 with the same crops; InfoNCE and AdamW
in both, without clipping (open_clip's default), one loader process each. open_clip pads every caption to the context;
ours are packed without padding. Both are whole programs started from the command line, in turns; a figure is the mean
of the step times after the first, and the median of the rounds. The second step of ours is slower than those
after it, for memory that it touches first: runs are long enough for that not to be what is measured.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.machine import machine
from benchmarks.module import run_module
from benchmarks.sweep_summary import loss_clock

BATCH_SECONDS = re.compile(r"Batch \(t\): ([0-9.]+)")
RECIPE = {
    "name": "vit_s16",
    "data": {
        "geometry": {"kind": "image", "size": [224, 224]},
        "train_view": {"kind": "random", "size": [224, 224], "scale": [0.9, 1.0]},
        "eval_view": {"kind": "centre", "size": [224, 224]},
        "units": {"report": True},
        "workers": 1,
    },
    "model": {"image": {"name": "ViT-S-16", "image_size": 224}, "embed_dim": 384},
    "objectives": [{"name": "contrastive", "units": ["report"]}],
    "optim": {"lr": 5e-4, "weight_decay": 0.2, "clip_norm": None},
    "evaluate": {"task": None},
    "checkpoint": {"every_steps": 1_000_000},
}


def pairs(root: Path, count: int) -> list[tuple[Path, str]]:
    """Image files and captions, `count` of them, images repeated."""
    images = sorted((root / "hannover_cxr").rglob("*.jpg"))
    with gzip.open(root / "text" / "roco_captions_ccby.csv.gz", "rt", encoding="utf-8") as file:
        captions = [" ".join(row["caption"].split()) for row in csv.DictReader(file)]
    return [(images[i % len(images)], captions[i * 7 % len(captions)]) for i in range(count)]


def write_table(folder: Path, found: Sequence[tuple[Path, str]]) -> Path:
    file = folder / "pairs.tsv"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter="\t")
        writer.writerow(["filepath", "title"])
        writer.writerows([str(path), text] for path, text in found)
    return file


def write_shards(folder: Path, found: Sequence[tuple[Path, str]]) -> Path:
    from data_shards.schema import Scan, Study, Texts
    from data_shards.shard_set import ShardWriter

    with ShardWriter(folder / "shards") as writer:
        for i, (path, text) in enumerate(found):
            scan = Scan(image=path.read_bytes(), ext="jpg", modality="CR", unit="arbitrary")
            writer.write(Study(f"{i:016x}", f"{i:016x}", "train", (scan,), Texts(report=text)))
    return folder / "shards"


def ours(folder: Path, shards: Path, context: int, steps: int, batch: int, number: int) -> float:
    """Seconds a step."""
    recipe = {**RECIPE, "train": {"steps": steps, "batch_size": batch, "precision": "bf16"}}
    recipe["data"] = {**RECIPE["data"], "source": {"kind": "shards", "path": str(shards)}}  # type: ignore[dict-item]
    text = {"width": 384, "layers": 12, "heads": 6, "context_length": context}
    recipe["model"] = {**RECIPE["model"], "text": text}  # type: ignore[dict-item]
    recipe["output"] = {"root": str(folder), "run": f"ours-{context}-{number}"}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run_module("pretrain.fit", ["--config", str(file)])
    clock = loss_clock(folder / f"ours-{context}-{number}")
    (first, began), (last, ended) = clock[0], clock[-1]
    return (ended - began) / (last - first)


def theirs(folder: Path, table: Path, context: int, batch: int, number: int) -> float:
    """Seconds a step of `open_clip_train`, one epoch."""
    words = ["--train-data", str(table), "--dataset-type", "csv", "--model", "ViT-S-16", "--precision", "amp_bf16"]
    words += ["--force-context-length", str(context), "--batch-size", str(batch), "--epochs", "1", "--workers", "1"]
    words += ["--device", "cpu", "--log-every-n-steps", "1", "--lr", "5e-4", "--wd", "0.2", "--warmup", "0"]
    words += ["--logs", str(folder), "--name", f"theirs-{context}-{number}", "--save-frequency", "0"]
    said = run_module("open_clip_train.main", words)
    return statistics.mean([float(t) for t in BATCH_SECONDS.findall(said)][1:])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Training images a second against open_clip_train.")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="ROOT", help="folder with hannover_cxr/ and text/")
    add("--context", type=int, nargs="+", default=[77, 256], help="context lengths (default: 77 256)")
    add("--repeats", type=int, default=3, help="rounds, in turns (default: 3)")
    add("--steps", type=int, default=24, help="steps a run (default: 24)")
    add("--batch", type=int, default=32, help="images a step (default: 32)")
    args = parser.parse_args(argv)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = pairs(args.data, args.steps * args.batch)
        table, shards = write_table(folder, found), write_shards(folder, found)
        for context in args.context:
            mine, other = [], []
            for number in range(args.repeats):
                mine.append(ours(folder, shards, context, args.steps, args.batch, number))
                other.append(theirs(folder, table, context, args.batch, number))
                print(
                    f"context {context}, round {number + 1}: ours {mine[-1]:.2f} s, open_clip_train {other[-1]:.2f} s"
                )
            a, b = statistics.median(mine), statistics.median(other)
            rates = f"ours {args.batch / a:.1f}, open_clip_train {args.batch / b:.1f} images/s"
            print(f"context {context}: {rates}, ratio {b / a:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
