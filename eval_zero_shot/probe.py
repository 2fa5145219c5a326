"""Linear probe: logistic regression on frozen features, its strength chosen without the test studies.

    python -m eval_zero_shot.probe --model RELEASE_DIR --data SHARDS [--labels NAME,NAME] [--out DIR]

Features are standardised on the training split. Every label is a problem of its own, over the studies whose label is
known; C is the one with the best AUROC on the validation split, or over five folds by patient where there is none, and
the fit on training and validation studies together is scored on the test split.

Legend: N studies, D features, L labels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_shards.opening import add_tar_options, open_studies
from eval_zero_shot.errors import EvalError
from eval_zero_shot.statistics import Interval, Run, finding_interval, macro_over_runs

STRENGTHS = tuple(10.0**power for power in range(-5, 3))
FOLDS = 5
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """features_ND, labels_NL (1, 0, nan = unknown), hashed patients_N."""

    features_ND: Array
    labels_NL: Array
    patients_N: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.features_ND)

    def with_(self, other: Split | None) -> Split:
        if other is None or not len(other):
            return self
        return Split(
            np.concatenate([self.features_ND, other.features_ND]),
            np.concatenate([self.labels_NL, other.labels_NL]),
            np.concatenate([self.patients_N, other.patients_N]),
        )


@dataclass(frozen=True)
class Probe:
    """What was found for one label. `strength` is the C that was chosen, `chosen_on` where."""

    label: str
    auroc: float | None
    interval: Interval
    strength: float | None
    chosen_on: str
    train_positive: int
    train_negative: int
    test_positive: int
    test_negative: int


def logistic(features_ND: ArrayLike, labels_N: ArrayLike, strength: float, device: str = "cpu") -> tuple[Array, float]:
    """Weights [D] and intercept of the minimum of 1/2 |w|² + C · Σ log(1 + exp(-y (w·x + b))), y = ±1, in float64 by
    L-BFGS: the objective of scikit-learn's LogisticRegression, whose optimum it meets (tested).

    Raises:
        EvalError: a class is missing, or a feature is not finite.
    """
    import torch

    x = torch.as_tensor(np.asarray(features_ND, dtype=np.float64), device=device)
    y = torch.as_tensor(np.asarray(labels_N, dtype=np.float64), device=device)
    if not bool(torch.isfinite(x).all()):
        raise EvalError("a feature is not finite", why="the fit would be too", fix="look at the release they came from")
    if set(y.unique().tolist()) != {0.0, 1.0}:
        raise EvalError("a class is missing", why="there is nothing to tell apart", fix="leave this label out")
    weights = torch.zeros(x.shape[1] + 1, dtype=torch.float64, device=device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], lr=1, max_iter=2000, max_eval=5000, tolerance_grad=1e-9, tolerance_change=1e-14, history_size=30,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    scale = 1 / (1 + strength * len(x))  # of the whole objective, so that the tolerances mean the same for any C and N

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = x @ weights[:-1] + weights[-1]
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        loss = scale * (0.5 * weights[:-1].square().sum() + strength * losses)
        loss.backward()
        return loss

    optimiser.step(closure)
    fitted = weights.detach().cpu().numpy()
    return fitted[:-1], float(fitted[-1])


def folds_by_patient(patients_N: Sequence[str] | NDArray, folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of each study. A patient's studies share one; it follows from the patient's hash alone, so it is the same
    for every model and every subset."""
    numbers = [int(hashlib.sha256(str(p).encode()).hexdigest()[:8], 16) % folds for p in patients_N]
    return np.asarray(numbers, dtype=np.int64)


def choose_strength(
    train: Split, validation: Split | None, label: int, strengths: Sequence[float] = STRENGTHS, device: str = "cpu"
) -> tuple[float, str]:
    """The C with the best AUROC, the smaller one on a tie, and where it was measured."""
    known = _known(train, label)
    if validation is not None and _both(held := _known(validation, label), label):
        scores = [_auroc(known, held, label, c, device) for c in strengths]
        return strengths[int(np.argmax(scores))], "validation split"
    fold_N = folds_by_patient(known.patients_N)
    totals = np.zeros(len(strengths))
    counted = 0
    for fold in range(FOLDS):
        inside, outside = _rows(known, fold_N != fold), _rows(known, fold_N == fold)
        if _both(inside, label) and _both(outside, label):
            totals += [_auroc(inside, outside, label, c, device) for c in strengths]
            counted += 1
    if not counted:
        return 1.0, "nothing: too few cases to choose"
    return strengths[int(np.argmax(totals))], f"{counted} folds by patient"


def probe(
    train: Split, validation: Split | None, test: Split, labels: Sequence[str], level: float = 0.95, device: str = "cpu"
) -> tuple[list[Probe], Interval | None, Array]:
    """(each label, interval of the macro mean AUROC, test logits [N, L] with nan where a label could not be learnt)."""
    mean, spread = train.features_ND.mean(0), train.features_ND.std(0)
    spread = np.where(spread > 1e-12, spread, 1.0)

    def scaled(split: Split) -> Split:
        return Split((split.features_ND - mean) / spread, split.labels_NL, split.patients_N)

    train, test = scaled(train), scaled(test)
    validation = None if validation is None or not len(validation) else scaled(validation)
    together = train.with_(validation)
    logits_NL = np.full(test.labels_NL.shape, np.nan)
    found = []
    for j, name in enumerate(labels):
        fitted, scored = _known(together, j), _known(test, j)
        counts = [int((s.labels_NL[:, j] == side).sum()) for s in (fitted, scored) for side in (1, 0)]
        if not _both(_known(train, j), j):
            nothing = Interval(None, None, None, level, reason="a class is missing in training")
            found.append(Probe(name, None, nothing, None, "nothing", *counts))
            continue
        strength, chosen_on = choose_strength(train, validation, j, device=device)
        weights_D, intercept = logistic(fitted.features_ND, fitted.labels_NL[:, j], strength, device)
        logits_NL[:, j] = test.features_ND @ weights_D + intercept
        run = Run.of(logits_NL[:, [j]], test.labels_NL[:, [j]], test.patients_N)
        interval = finding_interval(run, 0, level)
        found.append(Probe(name, interval.value, interval, strength, chosen_on, *counts))
    usable = [j for j, p in enumerate(found) if p.auroc is not None]
    macro = None
    if usable:
        run = Run.of(logits_NL[:, usable], test.labels_NL[:, usable], test.patients_N)
        macro = macro_over_runs([run], level=level)
    return found, macro, logits_NL


def _rows(split: Split, keep_N: NDArray[np.bool_]) -> Split:
    return Split(split.features_ND[keep_N], split.labels_NL[keep_N], split.patients_N[keep_N])


def _known(split: Split, label: int) -> Split:
    return _rows(split, ~np.isnan(split.labels_NL[:, label]))


def _both(split: Split, label: int) -> bool:
    return len(np.unique(split.labels_NL[:, label])) == 2


def _auroc(fitted: Split, scored: Split, label: int, strength: float, device: str) -> float:
    from sklearn.metrics import roc_auc_score

    weights_D, intercept = logistic(fitted.features_ND, fitted.labels_NL[:, label], strength, device)
    return float(roc_auc_score(scored.labels_NL[:, label], scored.features_ND @ weights_D + intercept))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.probe", description="Linear probe: logistic regression on frozen features."
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="release folder")
    add("--data", required=True, metavar="DIR", help="shard set with labels")
    add("--labels", metavar="NAME,NAME", help="labels to probe (default: all)")
    for split, default in (("train", "train"), ("validation", "val"), ("test", "test")):
        add(f"--{split}-split", default=default, metavar="NAME", help=f"default: {default}")
    add("--out", type=Path, metavar="DIR", help="folder for probe.json")
    add("--batch-size", type=int, default=8, metavar="N", help="studies encoded together (default: 8)")
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="arithmetic (default: fp32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--cache", default="~/.cache/voxclip/features", metavar="DIR", help="of features (default: %(default)s)")
    add_tar_options(parser)
    args = parser.parse_args(argv)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError

    try:
        found, macro = _probe_release(args)
    except (EvalError, DataError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _table(found, macro)
    if args.out:
        _write(args.out, {"macro": macro and asdict(macro), "labels": [asdict(p) for p in found]})
        print(f"wrote {args.out / 'probe.json'}")
    return 0


def _probe_release(args: argparse.Namespace) -> tuple[list[Probe], Interval | None]:
    from eval_zero_shot.feature_cache import FeatureCache, features_of
    from eval_zero_shot.release import load_release

    shards = open_studies(args.data, args)
    labels = tuple(args.labels.split(",")) if args.labels else tuple(shards.label_names)
    unknown = [name for name in labels if name not in shards.label_names]
    if unknown or not labels:
        raise EvalError(
            f"the shards have no label {', '.join(unknown) or 'at all'}",
            why="there is nothing to learn",
            fix=f"choose of: {', '.join(shards.label_names) or '(build them with --label-columns)'}",
        )
    loaded = load_release(args.model, args.device)
    every_NL = shards.labels(labels)

    def split(name: str) -> Split | None:
        if not shards.manifest["splits"].get(name):
            return None
        rows = shards.rows(name)
        features = features_of(loaded, shards, rows, args.precision, FeatureCache(args.cache), args.batch_size)
        return Split(features.features_ND.astype(np.float64), every_NL[rows], features.patients)

    train, test = split(args.train_split), split(args.test_split)
    for name, part in ((args.train_split, train), (args.test_split, test)):
        if part is None:
            known = ", ".join(shards.manifest["splits"])
            raise EvalError(f"no study in split '{name}'", why="a probe needs it", fix=f"name one of: {known}")
    assert train is not None and test is not None
    validation = split(args.validation_split) if args.validation_split != args.test_split else None
    device = "cuda" if str(next(loaded.model.parameters()).device).startswith("cuda") else "cpu"
    found, macro, _ = probe(train, validation, test, labels, device=device)
    return found, macro


def _table(found: Sequence[Probe], macro: Interval | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from eval_zero_shot.results import _span, _value

    table = Table("label", title="Linear probe", box=SIMPLE_HEAD)
    for heading in ("AUROC", "95% interval", "C", "train +/-", "test +/-"):
        table.add_column(heading, justify="right", no_wrap=True)
    for p in found:
        few = min(p.test_positive, p.test_negative) < 15
        span = p.interval.reason or _span(p.interval) + (" (few cases)" if few else "")
        strength = "–" if p.strength is None else f"{p.strength:g}"
        counts = (f"{p.train_positive}/{p.train_negative}", f"{p.test_positive}/{p.test_negative}")
        table.add_row(p.label, _value(p.auroc), span, strength, *counts)
    if macro is not None:
        table.add_section()
        table.add_row("macro", _value(macro.value), _span(macro), style="bold")
    Console().print(table)
    print("C was chosen on: " + "; ".join(sorted({p.chosen_on for p in found})))


def _write(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".probe.{os.getpid()}.tmp"
    aside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, folder / "probe.json")


if __name__ == "__main__":
    sys.exit(main())
