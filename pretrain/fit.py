"""Train a recipe: python -m pretrain.fit --config ct3d.yaml [--key.sub value ...]."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import launch, runs
from pretrain.arguments import USAGE
from pretrain.config import dump, load_recipe, schema_help, split_argv
from pretrain.errors import ConfigError
from pretrain.schema import Recipe


class ZeroShotTask:
    """Zero-shot scores for `pretrain.training`, which takes evaluators from here and knows none itself."""

    def __init__(self, recipe: Recipe) -> None:
        from eval_zero_shot.tasks import load_task

        assert recipe.evaluate.task is not None
        self.recipe, self.task = recipe, load_task(recipe.evaluate.task)

    def check(self, data: Any) -> None:
        splits = self.recipe.data.splits
        if launch.rank() != 0:
            pass  # said once
        elif not len(data.test_rows):
            left = "only while it trains" if len(data.select_rows) else "at no time, and have no results and no page"
            print(
                f"warning: the shard set has no study in split '{splits.test}' (data.splits.test): this run will be "
                f"scored {left}",
                file=sys.stderr,
            )
        elif not len(data.select_rows):
            print(
                f"note: the shard set has no study in split '{splits.select}' (data.splits.select): no score chooses a "
                "checkpoint, the last one is released",
                file=sys.stderr,
            )
        if self.task.kind != "findings":
            raise ConfigError(
                f"evaluate.task: task {self.task.name} is of kind {self.task.kind}",
                why="training is scored by findings, with positive and negative prompts",
                fix="name a task of findings, and score this one afterwards (python -m eval_zero_shot.classify)",
            )
        if not set(self.task.labels) & set(data.shards.label_names):
            raise ConfigError(
                f"evaluate.task: no label of task {self.task.name} is a label of the shard set",
                why="hours of training would end without a score",
                fix=f"name a task for its labels ({', '.join(data.shards.label_names) or 'it has none'}), "
                "or train without scores: --evaluate.task null",
            )

    def select(self, model: Any, data: Any, tokenize: Any, precision: Any) -> dict[str, float]:
        from eval_zero_shot.classification import score_classification
        from eval_zero_shot.errors import EvalError
        from eval_zero_shot.inputs import choose_rows

        rows = choose_rows(data.select_rows, self.recipe.evaluate.max_studies)
        inputs = self._inputs("training", model, tokenize, data, precision)
        try:
            outcome = score_classification(inputs, rows, self.task, split=self.recipe.data.splits.select, resamples=0)
        except EvalError as error:  # a model that has diverged is no reason to hang the ranks that wait for its score
            print(f"warning: no zero-shot score: {error}", file=sys.stderr)
            return {"macro_auroc": float("nan")}
        each = {m.of: m for name in outcome.classes if (m := outcome.metric("auroc", name)) is not None}
        macro = outcome.main.value
        return {
            "macro_auroc": float("nan") if macro is None else float(macro),
            **{name: float(m.value) for name, m in each.items() if m.value is not None},
        }

    def test(self, release: Path, data: Any, precision: Any, out: Path, more: Sequence[Any] = ()) -> None:
        import encoders
        from eval_zero_shot.classification import score_classification
        from eval_zero_shot.classification_table import print_classification
        from eval_zero_shot.errors import EvalError
        from eval_zero_shot.outcome import write_results
        from eval_zero_shot.report import write_report
        from eval_zero_shot.report.cases import Shown
        from eval_zero_shot.retrieval.protocol import score_retrieval
        from eval_zero_shot.retrieve import print_outcome

        loaded, run, splits = encoders.load(str(release)), out.parent, self.recipe.data.splits
        inputs = self._inputs(run.name, loaded.model, loaded.tokenizer, data, precision, loaded.sha256)
        apart = splits.select not in (splits.test, "test")
        held = data.select_rows if len(data.select_rows) and apart else None
        found = [
            score_classification(
                inputs, data.test_rows, self.task, split=splits.test, threshold_rows=held,
                threshold_split=splits.select,
            )
        ]  # fmt: skip
        print_classification(found[0])
        try:
            found.append(score_retrieval(inputs, data.test_rows, split=splits.test, pools=(64, "full"), ks=(1, 5, 10)))
            print_outcome(found[1])
        except EvalError as error:  # of studies without a report there is none
            print(f"no retrieval: {error}", file=sys.stderr)
        found += more
        write_results(out, found, {"training_steps": self.recipe.train.steps})
        write_report(
            found, run / runs.REPORT, title=run.name, metrics=run / "metrics.csv",
            studies=[Shown(run.name, loaded, data.shards, data.test_rows, self.task)],
        )  # fmt: skip

    def _inputs(self, name: str, model: Any, tokenize: Any, data: Any, precision: Any, sha256: str = "") -> Any:
        from eval_zero_shot.inputs import Inputs

        return Inputs.of(
            model, tokenize, data.shards, data.geometry, data.eval_view, name=name, sha256=sha256,
            batch_size=_encoded_at_once(self.recipe), precision=precision,
        )  # fmt: skip


class Finishing:
    """`finish` for `pretrain.training`: interpolation with the start of the run, and what was gained and forgotten."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.finish is not None
        self.recipe, self.finish = recipe, recipe.finish
        self.domains: list[Any] = []

    def check(self, data: Any) -> None:
        from data_shards.opening import open_studies
        from eval_zero_shot.forgetting import Domain
        from eval_zero_shot.inputs import choose_rows
        from eval_zero_shot.tasks import load_task
        from pretrain.checks_finish import domain_name, own_name

        def cut(rows: Any) -> Any:
            return choose_rows(rows, self.finish.max_studies)

        splits, asked = self.recipe.data.splits, self.recipe.evaluate.task
        own = {splits.select: cut(data.select_rows), splits.test: cut(data.test_rows)}
        task = load_task(asked) if asked else None
        name = own_name(self.recipe.evaluate)
        self.domains = [Domain(name, task, data.shards, own, splits.test, splits.select)]
        for one in self.finish.held_out:
            shards = open_studies(one.data)
            known = shards.manifest["splits"]
            named = [split for split in (one.select, one.split) if split]
            rows = {split: cut(shards.rows(split)) if known.get(split) else [] for split in named}
            task = load_task(one.task) if one.task else None
            self.domains.append(Domain(domain_name(one), task, shards, rows, one.split, one.select))
        for domain in self.domains:
            domain.require()

    def merge(self, run: Path, precision: Any) -> list[Any]:
        from encoders.interpolate import Pair
        from eval_zero_shot.forgetting import merge_domains, print_forgetting
        from eval_zero_shot.inputs import Inputs
        from eval_zero_shot.release import load_dual

        device = "cpu" if self.recipe.train.accelerator == "cpu" else "auto"
        loaded = load_dual(str(run / runs.ADAPTED), device)
        inputs = Inputs(run.name, loaded, self.domains[0].shards, None, _encoded_at_once(self.recipe), precision)
        found = merge_domains(
            Pair(run / runs.BASE, run / runs.ADAPTED), inputs, self.domains, run / runs.RELEASE, name=run.name,
            alphas=self.finish.alphas, resamples=self.finish.resamples,
        )  # fmt: skip
        print_forgetting(found)
        return found

    def show(self, run: Path, found: list[Any]) -> None:
        from eval_zero_shot.outcome import write_results
        from eval_zero_shot.report import write_report

        write_results(run / runs.RESULTS, found, {"training_steps": self.recipe.train.steps})
        write_report(found, run / runs.REPORT, title=run.name, metrics=run / "metrics.csv")


def _encoded_at_once(recipe: Recipe) -> int:
    """Studies: a batch, or the part of one that memory has room for."""
    return min(recipe.train.batch_size, recipe.train.chunk or recipe.train.batch_size)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0, 1 for an error that is explained, 143 when asked to stop).

    Nothing heavy is imported before the recipe has been checked, so a typo answers at once.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = split_argv(words)
        if args.help:
            return _say(schema_help() + "\n", 0)
        if not (args.config or args.resume):
            print(f"{USAGE}  --help            every key of a recipe", file=sys.stderr)
            return 2
        resume = Path(args.resume) if args.resume else None
        if resume is not None and (args.config or args.overrides or args.smoke):
            raise ConfigError(
                "--resume goes on with a run exactly as it was and takes no other option",
                fix="to start from its weights with other settings, use --config with --model.init RUN/release",
            )
        if resume is not None:
            runs.require_run(resume)
        name = str(resume / "recipe.yaml") if resume else str(args.config)
        recipe = load_recipe(name, args.overrides, smoke=args.smoke)
        if args.print_config:
            return _say(dump(recipe), 0)
        folder = resume or runs.name_run(recipe)
        if resume is None and launch.alone():
            runs.remove_smoke(folder)
            runs.refuse_existing(folder)  # said once and at once, not by one rank while the others wait for it
        if launch.needed(recipe.train.devices):
            from pretrain.studies import make_phantoms

            make_phantoms(recipe)  # made once, before the ranks look for it
            return launch.run_ranks(recipe.train.devices, words, {runs.RUN_VARIABLE: str(folder)})
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    if launch.rank() == 0:
        print("starting: torch, model and shards are being loaded", file=sys.stderr, flush=True)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError
    from eval_zero_shot.errors import EvalError
    from pretrain.checkpoint import CheckpointError
    from pretrain.module import NonFiniteError
    from pretrain.training import train

    try:
        try:
            evaluation = ZeroShotTask(recipe) if recipe.evaluate.task else None
            return train(recipe, folder, resume is not None, evaluation, Finishing(recipe) if recipe.finish else None)
        finally:
            if args.smoke and folder.is_dir():
                (folder / runs.SMOKE).touch()
    except (ConfigError, DataError, ReleaseError, EvalError, CheckpointError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: {error.strerror} under {folder}\n  why: what could not be written is missing from the run\n"
            f"  fix: free space, then go on with: python -m pretrain.fit --resume {folder}",
            file=sys.stderr,
        )
    return 1


def _say(text: str, code: int) -> int:
    """Print and return `code`; a reader that has seen enough (`| head`) is no error."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before or after the training, which saves itself
        print("interrupted", file=sys.stderr)
        sys.exit(130)
