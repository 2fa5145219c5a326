"""Studies of several scans in suites and on the page."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from eval_zero_shot import run
from eval_zero_shot.outcome import read_results
from eval_zero_shot.report import __main__ as report_command

from .several_scans import (
    CHOICES,
    SCANS,
    classified,
    given,
    world,
)

assert world  # a fixture of this module as well


def test_a_suite_says_it_of_each_entry(world: Path, tmp_path: Path, capsys: Any) -> None:
    def suite(*entries: dict[str, Any]) -> list[str]:
        body = {"name": "both", "data": str(world / "shards"), "entries": entries}
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(body))
        words = ["--models", str(world / "ours"), "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path)]
        return [*words, "--device", "cpu", "--cache", str(world / "cache")]

    asked = {"protocol": "classification", "task": str(world / "toy.yaml"), "resamples": 50}
    means = {**asked, "name": "means", "scans": "mean"}
    retrieval = {"protocol": "retrieval", "pools": ["full"], "ks": [1], "resamples": 50, "scans": "every"}
    learnt = {"protocol": "probe", "labels": "bright", "knn": 0, "resamples": 50, "scans": "every"}
    assert run.main(suite({**asked, "scans": "every"}, means, {**asked, "name": "firsts"}, retrieval, learnt)) == 0
    n, outcomes = len(SCANS), read_results(tmp_path)
    assert [(o.task, o.studies, o.scans) for o in outcomes] == [
        ("toy", 24, n), ("means", 24, n), ("firsts", 24, 24), ("retrieval_report", 24, n), ("labels", 24, n)
    ]  # fmt: skip
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = [(line["dataset"], line["scans"], line["scan_choice"]) for line in csv.DictReader(file)]
    assert lines[:3] == [("toy", str(n), "every"), ("means", str(n), "mean"), ("firsts", "24", "first")]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{n} scans of 24 studies of 12 patients" in page and ".01</code>" in page
    shown = page.partition('id="errors"')[2]
    assert shown.count("<li>") == shown.count('<li><img alt="middle slice" src="data:image') > 8
    capsys.readouterr()
    assert run.main(suite({**asked, "scans": "all"})) == 1
    assert "entries.0.scans" in (said := capsys.readouterr().err) and "'every'" in said
    assert run.main([*suite(asked), "--scans", "every"]) == 1
    assert "--suite beside --scans" in capsys.readouterr().err
    plain = [*given(world), "--task", str(world / "toy.yaml"), "--pool", "full", "--resamples", "50", "--no-cases"]
    assert run.main([*plain, "--scans", "every", "--out", str(tmp_path / "plain")]) == 0
    assert {o.scans for o in read_results(tmp_path / "plain")} == {n}


def test_the_page_finds_the_picture_of_each_scan(world: Path, tmp_path: Path) -> None:
    pictures = {}
    for scans in CHOICES:
        classified(world, tmp_path / scans, "--scans", scans)
        out, task = tmp_path / f"{scans}.html", str(world / "toy.yaml")
        words = ["--results", str(tmp_path / scans), "--model", str(world / "ours"), "--task", task]
        assert report_command.main([*words, "--data", str(world / "shards"), "--out", str(out)]) == 0
        errors = out.read_text(encoding="utf-8").partition('id="errors"')[2].split("<li>")[1:]
        pictures[scans] = {li.partition("<code>")[2].partition("<")[0]: li.partition('src="')[2] for li in errors}
        pictures[scans] = {name: src.partition('"')[0] for name, src in pictures[scans].items()}
        assert pictures[scans] and all(src.startswith("data:image") for src in pictures[scans].values())
    every = pictures["every"]
    assert set(every) <= set(SCANS) and any(not name.endswith(".00") for name in every)
    shared = [name for name in every if name.endswith(".00") and name[:16] in pictures["first"]]
    assert shared and all(every[name] == pictures["first"][name[:16]] for name in shared)
    other = [name for name in every if name.endswith(".01") and name[:16] in pictures["first"]]
    assert other and all(every[name] != pictures["first"][name[:16]] for name in other)
