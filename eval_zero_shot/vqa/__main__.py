"""Closed questions about images, answered by caption scoring.

    python -m eval_zero_shot.vqa --model MODEL --items FILE.jsonl [--images DIR] [--mapping slake] [--out DIR]

Every option becomes a sentence (eval_zero_shot.vqa.captions); the answer is the option whose sentence has the highest
cosine with the image, as μ-Bench and BIOMEDICA score contrastive models. The order of options has no influence; options
that tie share the answer. Beside the accuracy stands what needs no image: chance, the most frequent answer, and the
same model shown a blank image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.opening import add_tar_options
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import Inputs, add_embedding, open_inputs, run_command
from eval_zero_shot.outcome import Outcome, write_results
from eval_zero_shot.vqa.captions import check_template
from eval_zero_shot.vqa.mappings import MAPPINGS
from eval_zero_shot.vqa.protocol import score_vqa, write_items
from eval_zero_shot.vqa.read import read_items


def print_outcome(outcome: Outcome) -> None:
    """Accuracy beside what needs no image, as a whole and by category."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    n = outcome.main.n
    table = Table("", title=f"{outcome.model} on {outcome.task}: {n} closed questions", box=SIMPLE_HEAD)
    for heading in ("items", "accuracy", "95 % interval", "chance", "blank image"):
        table.add_column(heading, justify="right")
    for of in ("", *dict.fromkeys(m.of for m in outcome.metrics if m.of)):
        known = {m.name: m for m in outcome.metrics if m.of == of and not m.at}
        a = known["accuracy"]
        span = "–" if a.low is None else f"{a.low:.3f} to {a.high:.3f}"
        table.add_row(
            of or "all",
            str(a.n),
            f"{a.value:.3f}",
            span,
            *(f"{known[k].value:.3f}" for k in ("chance", "blank_accuracy")),
        )
    console.print(table)
    whole = {m.name: m for m in outcome.metrics if not m.of and not m.at}
    gain = whole["image_gain"]
    span = "" if gain.low is None else f" ({gain.low:+.3f} to {gain.high:+.3f})"
    console.print(
        f"gain by the image {gain.value:+.3f}{span}; text prior taken off {whole['corrected_accuracy'].value:.3f}; "
        f"most frequent answer {whole['majority_accuracy'].value:.3f}, place {whole['position_accuracy'].value:.3f}",
        highlight=False,
    )
    for note in outcome.notes[3:]:
        console.print(note, highlight=False)


def _answer(args: argparse.Namespace) -> None:
    if args.images and args.data:
        raise EvalError("--images and --data", why="an image would have two places", fix="give one of them")
    check_template(args.template)
    file = read_items(args.items, args.mapping)
    if args.data:
        inputs, images = open_inputs(args), None
    else:
        from eval_zero_shot.release import load_dual, model_name

        images = Path(args.images).expanduser() if args.images else Path(args.items).expanduser().parent
        loaded = load_dual(args.model, args.device)
        inputs = Inputs(model_name(args.model), loaded, None, None, max(1, args.batch_size), args.precision)
    task = args.name or (args.mapping if args.mapping != "own" else Path(args.items).stem)
    outcome = score_vqa(
        inputs, file, images, task=task, template=args.template, max_missing=args.max_missing,
        resamples=args.resamples, seed=args.seed,
    )  # fmt: skip
    print_outcome(outcome)
    if args.out:
        path = write_results(args.out, [outcome])
        write_items(Path(args.out), file, args.template)
        print(f"wrote {path}, scores.parquet and items.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.vqa", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="release folder, or what eval_zero_shot.models lists")
    add("--items", required=True, metavar="FILE", help="questions: JSON lines, JSON or CSV (docs/vqa.md)")
    add("--mapping", choices=tuple(MAPPINGS), default="own", help="whose fields the items have (default: own)")
    add("--images", metavar="DIR", help="folder of the image files (default: the folder of the items)")
    add("--data", metavar="SHARDS", help="shard set: images are keys of its studies")
    add("--template", metavar="TEXT", help="sentence of an option, with {option} and, if wanted, {question}")
    add("--name", metavar="TASK", help="what results call the task (default: the mapping, or the file's name)")
    add("--max-missing", type=int, default=0, metavar="N", help="images that may be missing (default: 0)")
    add("--resamples", type=int, default=1000, metavar="N", help="draws of patients (default: 1000; 0: no intervals)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("--out", type=Path, metavar="DIR", help="folder for results.json, scores.parquet and items.jsonl")
    add_embedding(parser)
    add_tar_options(parser)
    return run_command(parser, argv, _answer)


if __name__ == "__main__":
    sys.exit(main())
