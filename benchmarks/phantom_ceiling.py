"""The phantom's ceiling: the recipe's own image encoder, told the labels instead of reading reports.

    python -m benchmarks.phantom_ceiling [--config ct3d.yaml] [--out DIR] [--beside RUN] [--key.sub VALUE ...]

Same studies in the same order through the same views; same steps, batch, optimiser, schedule, precision and choice of
the best weights on the selection split. Only the loss differs: a linear head on the study embedding and binary
cross-entropy on the labels that the reports state (unknown ones masked). Zero-shot scores should come within 0.03.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config import dump, load_recipe, split_argv
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from eval_zero_shot.statistics import Run
    from pretrain.build import Data
    from pretrain.schema import Recipe


def masked_bce(logits_BL: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are known (not nan)."""
    import torch.nn.functional as F

    known_BL = ~labels_BL.isnan()
    loss_BL = F.binary_cross_entropy_with_logits(logits_BL, labels_BL.nan_to_num(), reduction="none")
    return (loss_BL * known_BL).sum() / known_BL.sum().clamp(min=1)


class Ceiling:
    """The image tower of a recipe with a linear head, its data, and how it is trained and scored.

    Raises:
        ConfigError: the recipe names no task, whose findings are what is learnt.
    """

    def __init__(self, recipe: Recipe) -> None:
        import numpy as np
        import torch
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        from eval_zero_shot.run import task_labels
        from eval_zero_shot.tasks import load_task
        from pretrain import build
        from pretrain.memory import keep_freed_memory

        if recipe.evaluate.task is None:
            raise ConfigError(
                "evaluate.task: none", why="its findings are what is learnt", fix="--evaluate.task phantom"
            )
        cuda = torch.cuda.is_available() and recipe.train.accelerator != "cpu"
        if not cuda:
            keep_freed_memory()
        self.recipe, self.device = recipe, torch.device("cuda" if cuda else "cpu")
        self.bf16 = build.precision(recipe).startswith("bf16")
        torch.manual_seed(recipe.seed)
        dual = build.build_model(recipe)
        self.data: Data = build.build_data(recipe)
        task = load_task(recipe.evaluate.task)
        self.findings = task.names
        self.labels_NL: NDArray = task_labels(self.data.shards, np.arange(len(self.data.shards)), task)
        # Named as in pretrain.module, so that pretrain.optim sorts the same parameters into the same groups.
        self.module: nn.Module = torch.nn.Module()
        self.module.dual = dual
        self.module.head = torch.nn.Linear(recipe.model.embed_dim, len(self.findings))
        dual.requires_grad_(False)
        dual.clip.visual.requires_grad_(True)
        self.module.to(self.device)
        self.scored = self.module
        if recipe.optim.ema_decay is not None:
            average = get_ema_multi_avg_fn(recipe.optim.ema_decay)
            self.scored = AveragedModel(self.module, multi_avg_fn=average).requires_grad_(False)

    def logits(self, module: Any, images: Tensor) -> Tensor:
        """Images [B, C, (D,) H, W] to logits [B, L] in fp32; the head sees the embedding that is released."""
        import torch

        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            study_BD = module.dual.encode_image(images).study_BD
        return module.head(study_BD.float())

    def train(self) -> float:
        """Train, keep the weights that were best on the selection split, and return that score."""
        import torch
        from torch.optim.swa_utils import AveragedModel

        from data_shards.progress import track
        from pretrain import build
        from pretrain.optim import adamw, learning_rate

        recipe, optim = self.recipe, self.recipe.optim
        optimizer = adamw(self.module, optim, fused=True)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        stream = build.training_stream(recipe, self.data, build.tokenizer(recipe), 0, 1, 0)
        labels_NL = torch.from_numpy(self.labels_NL).float()
        best, weights = -1.0, None
        self.module.train()
        for number, batch in enumerate(track(stream, len(stream), "supervised", "batches"), 1):
            batch = batch.to(self.device)
            loss = masked_bce(
                self.logits(self.module, batch.images_BCDHW), labels_NL[batch.rows_B.cpu()].to(self.device)
            )
            (loss / optim.accumulate).backward()
            if number % optim.accumulate:
                continue
            step = number // optim.accumulate
            torch.nn.utils.clip_grad_norm_(trained, optim.clip_norm or float("inf"), error_if_nonfinite=True)
            rate = learning_rate(step - 1, recipe.train.steps, optim)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_factor"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if isinstance(self.scored, AveragedModel):
                self.scored.update_parameters(self.module)
            if step % recipe.evaluate.every_steps == 0 or step == recipe.train.steps:
                score = self.select()
                if score >= best:
                    best, weights = score, copy.deepcopy(self.scored.state_dict())
        assert weights is not None
        self.scored.load_state_dict(weights)
        return best

    def select(self) -> float:
        """Macro AUROC of the selection split, as `pretrain.fit` takes it; -1 where no finding has both classes."""
        import numpy as np

        from eval_zero_shot.run import choose_rows
        from eval_zero_shot.statistics import bootstrap_aurocs

        if len(self.data.select_rows) == 0:
            return -1.0
        run = self.score(choose_rows(self.data.select_rows, self.recipe.evaluate.max_studies))[1]
        aurocs = bootstrap_aurocs([run], 0, 0)[0][0]
        return float(np.nanmean(aurocs)) if not np.isnan(aurocs).all() else -1.0

    def score(self, rows: NDArray) -> tuple[tuple[str, ...], Run]:
        """Keys and logits of some studies, read as evaluation reads them."""
        import numpy as np
        import torch
        from torch.optim.swa_utils import AveragedModel

        from eval_zero_shot.embed import evaluating, study_batches
        from eval_zero_shot.statistics import Run

        keys: list[str] = []
        patients: list[str] = []
        scores = []
        module = self.scored.module if isinstance(self.scored, AveragedModel) else self.scored
        with evaluating(module):
            for batch in study_batches(
                self.data.shards, rows, self.data.geometry, self.data.eval_view, self.recipe.train.batch_size
            ):
                scores.append(self.logits(module, torch.from_numpy(batch.images).to(self.device)).cpu().numpy())
                keys += batch.keys
                patients += batch.patients
        return tuple(keys), Run.of(np.concatenate(scores), self.labels_NL[rows], patients)


def report(ceiling: Ceiling, selected: float, beside: Path | None) -> dict[str, Any]:
    """AUROC per finding and macro on the test split, with intervals over patients; beside it, a run's zero-shot scores.

    Raises:
        ConfigError: that run was scored on other studies.
    """
    from dataclasses import asdict

    from benchmarks.scores import read_scores
    from eval_zero_shot.statistics import auroc_intervals, macro_difference

    keys, run = ceiling.score(ceiling.data.test_rows)
    each, macro = auroc_intervals(run)
    found: dict[str, Any] = {
        "macro": asdict(macro),
        "findings": {name: asdict(interval) for name, interval in zip(ceiling.findings, each, strict=True)},
        "selected": selected,
        "steps": ceiling.recipe.train.steps,
        "recipe": dump(ceiling.recipe),
    }
    if beside is not None:
        theirs = read_scores(beside / "results" / "scores.csv")
        if (theirs.keys, theirs.findings) != (keys, ceiling.findings):
            raise ConfigError(
                f"--beside {beside.name}: it was scored on other studies or findings",
                why="the difference would not be paired by patient",
                fix="give a run of the same recipe",
            )
        found["zero_shot_minus_ceiling"] = asdict(macro_difference([theirs.run], [run]))
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown, as benchmarks/RESULTS.md holds it."""

    def line(name: str, interval: dict[str, Any]) -> str:
        value, low, high = (interval[key] for key in ("value", "low", "high"))
        if value is None:
            return f"| {name} | – ({interval['reason']}) |"
        return f"| {name} | {value:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})") + " |"

    lines = ["| finding | supervised AUROC |", "| --- | ---: |", line("**macro**", found["macro"])]
    lines += [line(name, interval) for name, interval in found["findings"].items()]
    if "zero_shot_minus_ceiling" in found:
        lines.append(line("zero-shot − ceiling", found["zero_shot_minus_ceiling"]))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.phantom_ceiling", description=(__doc__ or "").splitlines()[0], allow_abbrev=False,
        epilog="Further --key.sub VALUE change the recipe.",
    )  # fmt: skip
    add = parser.add_argument
    add("--config", default="ct3d.yaml", metavar="RECIPE", help="default: ct3d.yaml")
    add(
        "--out",
        default="runs/phantom_ceiling",
        metavar="DIR",
        help="folder of ceiling.json (default: runs/phantom_ceiling)",
    )
    add("--beside", type=Path, metavar="RUN", help="finished run of the recipe: the paired difference to its scores")
    add("--smoke", action="store_true", help="two steps on a handful of studies: does everything work?")
    args, rest = parser.parse_known_args(argv)
    from data_shards.errors import DataError
    from eval_zero_shot.errors import EvalError

    try:
        recipe = load_recipe(args.config, split_argv(rest).overrides, smoke=args.smoke)
        ceiling = Ceiling(recipe)
        found = report(ceiling, ceiling.train(), args.beside)
    except (ConfigError, DataError, EvalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(found))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    aside = out / f".ceiling.{os.getpid()}.tmp"
    aside.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, out / "ceiling.json")
    print(f"wrote {out / 'ceiling.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
