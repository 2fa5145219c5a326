"""Probabilities of findings for one scan or several.

    python -m eval_zero_shot.score --model RELEASE_DIR CT.nii.gz [...] --prompts FILE [--view sliding] [--json]

FILE is a task (eval_zero_shot.tasks): findings with positive and negative prompts, or the name of a packaged one.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.classify import require_findings
from eval_zero_shot.errors import EvalError
from eval_zero_shot.scans import VIEW_HELP, VIEWS, with_view
from eval_zero_shot.tasks import Task, load_task

if TYPE_CHECKING:
    from encoders.loading import Loaded
    from eval_zero_shot.embedding import Precision

Merge = Literal["mean", "max"]


@dataclass(frozen=True)
class FindingProbability:
    """`positive`, `negative`: cosines with the prompt ensembles; `probability`: CLIP's softmax over the two at the
    released temperature. It orders scans as the score does; it is not calibrated to the frequency of a disease."""

    finding: str
    probability: float
    positive: float
    negative: float


def score_views(
    loaded: Loaded, images_W: NDArray[np.float32], task: Task, merge: Merge = "mean", precision: Precision = "fp32"
) -> list[FindingProbability]:
    """Findings of one scan from its windows [W, C, (D,) H, W].

    The windows' scores (positive - negative cosine) are merged by `mean`, or by `max`: the window that shows the
    finding most, cosines and all. Max suits small lesions and reads high where windows are many.
    """
    from eval_zero_shot.classify import class_embeddings
    from eval_zero_shot.embedding import StudyBatch, embed_batches, embed_texts

    names = [str(i) for i in range(len(images_W))]
    batches = (StudyBatch((name,), (name,), image[None]) for name, image in zip(names, images_W, strict=True))
    features_WD = embed_batches(loaded.model, batches, precision=precision).features_ND.astype(np.float64)
    vectors = embed_texts(loaded.model, loaded.tokenizer, task.texts(), precision=precision)  # type: ignore[arg-type]
    prompts = class_embeddings(task, vectors)
    positive_WL, negative_WL = features_WD @ prompts.positive_LD.T, features_WD @ prompts.negative_LD.T
    scale = math.exp(float(loaded.model.logit_scale.detach()))
    found = []
    for j, name in enumerate(task.names):
        if merge == "max":
            chosen = int(np.argmax(positive_WL[:, j] - negative_WL[:, j]))
            positive, negative = positive_WL[chosen, j], negative_WL[chosen, j]
        else:
            positive, negative = positive_WL[:, j].mean(), negative_WL[:, j].mean()
        probability = 1 / (1 + math.exp(-scale * float(positive - negative)))
        found.append(FindingProbability(name, probability, float(positive), float(negative)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.score", description="Probabilities of findings for one scan or several."
    )
    add = parser.add_argument
    add(
        "scans",
        nargs="+",
        type=Path,
        metavar="SCAN",
        help="NIfTI, .npy, a folder with one DICOM series, or an image: what the release reads",
    )
    add("--model", required=True, metavar="DIR", help="release folder")
    add("--prompts", required=True, metavar="FILE", help="YAML of findings and prompts, or a packaged task")
    add("--view", choices=VIEWS, default="own", help=VIEW_HELP)
    add("--overlap", type=float, default=0.25, help="of sliding crops (default: 0.25)")
    add("--merge", choices=("mean", "max"), default="mean", help="how scores of crops are joined (default: mean)")
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="arithmetic (default: fp32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--json", action="store_true", help="print JSON (of several scans: a list) instead of tables")
    args = parser.parse_args(argv)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError

    try:
        if not 0 <= args.overlap < 1:
            raise EvalError(f"--overlap {args.overlap}", why="crops would not advance", fix="at least 0 and below 1")
        task = load_task(args.prompts)
        require_findings(task)
        for number, scan in enumerate(args.scans, 1):
            if not scan.exists():  # said before torch is imported
                raise EvalError(
                    f"{_name(number, args.scans)} does not exist", why="nothing to score", fix="check its path"
                )
        from eval_zero_shot.release import load_dual

        loaded = with_view(load_dual(args.model, args.device), args.view, args.overlap)
        every = []
        for number, scan in enumerate(args.scans, 1):
            images = _crops(loaded, scan, _name(number, args.scans))
            found = score_views(loaded, images, task, args.merge, args.precision)
            every.append({"windows": len(images), "merge": args.merge, "findings": [asdict(f) for f in found]})
            if not args.json:
                _table(found, len(images), args.merge, f"scan {number}: " if len(args.scans) > 1 else "")
    except (EvalError, DataError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(every if len(every) > 1 else every[0], indent=2))
    return 0


def _name(number: int, scans: Sequence[Path]) -> str:
    """A scan by its place on the command line: a file name may hold a patient's."""
    return f"scan {number} of {len(scans)}" if len(scans) > 1 else "the scan"


def _crops(loaded: Loaded, scan: Path, name: str) -> NDArray[np.float32]:
    from data_shards.errors import DataError

    try:
        return loaded.preprocess.crops(scan).numpy()
    except DataError as error:
        raise DataError(f"{name}: {error.what}", error.why, error.fix) from None


def _table(found: Sequence[FindingProbability], windows: int, merge: str, name: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"{name}Zero-shot findings" + (f", {merge} over {windows} crops" if windows > 1 else "")
    table = Table("finding", title=title, box=SIMPLE_HEAD)
    for heading in ("probability", "", "positive", "negative"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for f in sorted(found, key=lambda f: -f.probability):
        bar = "█" * round(20 * f.probability)
        table.add_row(f.finding, f"{f.probability:.2f}", bar, f"{f.positive:+.3f}", f"{f.negative:+.3f}")
    console = Console()
    console.print(table)
    console.print("Softmax of two cosines: it ranks scans, it is not the frequency of a disease.", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
