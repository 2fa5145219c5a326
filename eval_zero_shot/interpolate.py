"""Weight interpolation between a base release and one fine-tuned from it (WiSE-FT, arXiv 2109.01903).

    python -m eval_zero_shot.interpolate --base DIR --tuned DIR --data SHARDS --task TASK [TASK ...] --out OUT

theta(a) = (1 - a) base + a tuned, for every a of --alphas. a is chosen on the validation split alone (highest mean
headline over the tasks; the smaller a on a tie); base, tuned and merged are then shown on the test split with intervals
and paired differences. The other points of the test curve are in the plot and chose nothing. Written to OUT:
release/ (the merged model), results.json, scores.parquet, sweep.png.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import Inputs, add_embedding, choose_rows, run_command
from eval_zero_shot.interpolation import ALPHAS, merge, require_choice
from eval_zero_shot.interpolation_outcomes import of_three
from eval_zero_shot.outcome import write_results
from eval_zero_shot.tasks import load_task


def _names(args: argparse.Namespace) -> tuple[str, str, str]:
    """How tables call base, merged and tuned; told apart where their folders have one name."""
    from eval_zero_shot.release import model_name

    names = (model_name(args.base), args.out.resolve().name, model_name(args.tuned))
    if len(set(names)) == 3:
        return names
    return f"{names[0]} (base)", f"{names[1]} (merged)", f"{names[2]} (tuned)"


def _interpolate(args: argparse.Namespace) -> None:
    tasks = [load_task(name) for name in args.task]
    require_choice(tasks, args.alphas, args.validation_split, args.split)
    if (args.out / "release").exists() and not args.overwrite:
        raise EvalError(
            "OUT holds a release already",
            why="hours of scoring would end in a refusal",
            fix="another --out, or --overwrite",
        )
    shards = open_studies(args.data, args)
    rows = {}
    for split in (args.validation_split, args.split):
        if not shards.manifest["splits"].get(split):
            known = ", ".join(shards.manifest["splits"])
            raise EvalError(f"no study in split '{split}'", why="nothing can be scored", fix=f"name one of: {known}")
        rows[split] = choose_rows(shards.rows(split), args.max_studies, args.seed)
    from encoders.interpolate import Pair
    from eval_zero_shot.feature_cache import FeatureCache
    from eval_zero_shot.interpolate_show import plot_sweep, print_sweep
    from eval_zero_shot.release import load_dual

    pair = Pair(args.base, args.tuned)
    cache = None if args.no_cache else FeatureCache(args.cache)
    names = _names(args)
    inputs = Inputs(names[2], load_dual(args.tuned, args.device), shards, cache, args.batch_size, args.precision)
    merged = merge(
        pair, inputs, rows, tasks, args.out / "release", alphas=args.alphas, validation=args.validation_split,
        test=args.split, resamples=args.resamples, seed=args.seed, overwrite=args.overwrite,
    )  # fmt: skip
    found, made = merged.sweep, of_three(merged, names)
    print_sweep(found, made, args.validation_split, args.split)
    about = {"command": "interpolate", "alpha": found.chosen, "taken_from_tuned": pair.from_tuned()}
    write_results(args.out, made, about)
    aside = args.out / f".sweep.{os.getpid()}.tmp"
    try:
        plot_sweep(found, made, args.validation_split, args.split, aside)
        os.replace(aside, args.out / "sweep.png")
    finally:
        aside.unlink(missing_ok=True)
    print(f"wrote {merged.release}, results.json, scores.parquet and sweep.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.interpolate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--base", required=True, metavar="DIR", help="release that was tuned from")
    add("--tuned", required=True, metavar="DIR", help="release that was fine-tuned")
    add("--data", required=True, metavar="DIR", help="shard set (folder or URL) or published .tar files")
    add("--task", required=True, nargs="+", metavar="NAME", help="packaged tasks or YAML files of prompts")
    add("--validation-split", default="val", metavar="NAME", help="split that a is chosen on (default: val)")
    add("--split", default="test", metavar="NAME", help="split that is shown (default: test)")
    add(
        "--alphas",
        type=float,
        nargs="+",
        default=list(ALPHAS),
        metavar="A",
        help="default: 0 0.1 ... 1; 0 and 1 always",
    )
    add("--max-studies", type=int, metavar="N", help="score a fixed choice of N studies of each split")
    add("--resamples", type=int, default=1000, metavar="N", help="draws of patients (default: 1000)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("--out", required=True, type=Path, metavar="OUT", help="folder for release/, results and the plot")
    add("--overwrite", action="store_true", help="replace an earlier release in OUT")
    add_embedding(parser)
    add_tar_options(parser)
    return run_command(parser, argv, _interpolate)


if __name__ == "__main__":
    sys.exit(main())
