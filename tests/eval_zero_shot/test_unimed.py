"""The six groups of UniMed-CLIP's 21 sets: the suite that asks them, and averages that say what they are of."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_zero_shot.catalogue import unimed_groups
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Metric, Outcome, write_results
from eval_zero_shot.suite_read import load_suite
from eval_zero_shot.tasks import load_task
from eval_zero_shot.unimed import main, report, scores_of

# Groups as UniMed-CLIP's README prints them, and the average beside them.
PRINTED = {
    "BiomedCLIP": ((55.43, 22.87, 43.99, 64.59, 49.20, 54.50), 49.02),
    "PMC-CLIP": ((52.64, 25.84, 66.06, 63.68, 62.51, 53.56), 53.37),
    "UniMed-CLIP": ((68.78, 31.23, 85.54, 68.83, 68.64, 59.96), 61.63),
}


def outcome(task: str, model: str, value: float) -> Outcome:
    """As the classification protocol gives it: a binary finding has its own under a threshold, among others."""
    names = load_task(task).names
    kind = load_task(task).kind
    one = names[0] if kind == "findings" else ""
    metrics = [
        Metric("auroc", 0.123),
        Metric("balanced_accuracy", value, of=one, at={"threshold": "sign"} if one else {}),
    ]
    metrics.append(Metric("balanced_accuracy", 0.99, of=one, at={"threshold": "test"}))
    return Outcome("classification", task, model, "0" * 64, "auroc", tuple(metrics), 10, 10, 10, names)


def outcomes(model: str) -> list[Outcome]:
    values = dict(zip(unimed_groups(), PRINTED[model][0], strict=True))
    return [outcome(n, model, values[group] / 100) for group, names in unimed_groups().items() for n in names]


@pytest.mark.parametrize("model", PRINTED)
def test_the_printed_averages_come_of_the_printed_weights_alone(model: str) -> None:
    said = report(scores_of(outcomes(model))).splitlines()
    groups, averages = said[1:7], said[7:]
    for line, (name, names), value in zip(groups, unimed_groups().items(), PRINTED[model][0], strict=True):
        assert line.startswith(name) and f" {value:.2f} " in line and all(one in line for one in names)
    assert len(averages) == 3
    of = {line.partition("weights ")[2].partition(":")[0]: float(line.split()[1]) for line in averages}
    printed = "x_ray 2, fundus 3, ct 2, mri 2, ultrasound 4, histology 8"
    assert of[printed] == pytest.approx(PRINTED[model][1], abs=0.0051)
    assert all(abs(value - PRINTED[model][1]) > 0.3 for told, value in of.items() if told != printed)


def test_fewer_sets_have_groups_and_no_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [o for o in outcomes("PMC-CLIP") if o.task not in ("unimed_fives", "unimed_bach")]
    few = [o for o in few if o.task not in unimed_groups()["mri"]]
    write_results(tmp_path / "results", [*few, *outcomes("BiomedCLIP")], {})
    assert main([str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert "columns: PMC-CLIP, BiomedCLIP" in said
    assert "25.84 (3 of 4)  22.87 " in said and "\nmri         –  64.59 " in said
    assert "average     –  49.02 " in said and "another number under the same name" in said
    with pytest.raises(EvalError, match="no result of UniMed-CLIP's 21 sets"):
        report(scores_of([]))


def test_the_suite_asks_all_21(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--suite", "shards/"]) == 0
    file = tmp_path / "unimed.yaml"
    file.write_text(capsys.readouterr().out)
    suite = load_suite(file)
    every = [name for names in unimed_groups().values() for name in names]
    assert [entry.task for entry in suite.entries] == every and len(every) == 21  # type: ignore[union-attr]
    assert suite.entries[0].data == str(tmp_path / "shards" / every[0])
    with pytest.raises(SystemExit):
        main([])
