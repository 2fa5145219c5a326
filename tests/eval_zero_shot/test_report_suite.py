"""The page of a whole suite: the table of models and tasks, marks, what is refused, and a click through its curves."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from eval_zero_shot.compare import compare, write_comparisons
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import write_results
from eval_zero_shot.report import write_report
from eval_zero_shot.report.__main__ import main

from .chromium import chromium, cut_off, severe, too_wide
from .outcomes import MODELS, PROVENANCE, classification, suite


def test_a_table_of_models_and_tasks(tmp_path: Path) -> None:
    outcomes, comparisons = suite()
    text = write_report(
        outcomes, tmp_path / "report.html", title="t", comparisons=comparisons, groups={"slake": "questions"}
    ).read_text(encoding="utf-8")
    (table,) = re.findall(r'<table id="overview".*?</table>', text)
    assert all(f">{model}" in table for model in MODELS)
    rows = re.findall(r"<tr(?: class=\"(?:group|total)\")?>(.*?)</tr>", table)
    groups = [row for row in rows if "rowgroup" in row]
    assert [re.sub("<[^>]+>", "", g) for g in groups] == ["chest CT", "retrieval", "probe", "questions"]
    first = next(row for row in rows if "ct_<wbr>rate_<wbr>18" in row)
    main_metric = outcomes[0].main
    assert f"<b>{main_metric.value:.3f}</b>" in first and f"{main_metric.low:.3f} – {main_metric.high:.3f}" in first
    assert first.count("▲ win") == 1 and first.count("▼ loss") == 1 and "400 studies of 200 patients" in first
    assert "(reference)" in table and "4 / 2 / 0" in table and "0 / 0 / 6" in table
    assert "&lt; 0.001" in text and "no evidence that two models are equal" in text
    assert "Do not report these scores" in text
    assert text.index("Do not report these scores") < text.index('id="overview"')
    assert sorted(f.name for f in (tmp_path / "plots").iterdir()) == [
        "auroc-merlin_30.png", "auroc-rad_chestct_15.png", "auroc.png", "probe.png", "retrieval.png",
    ]  # fmt: skip
    assert not re.search(r"\b0{14}[0-9a-f]{2}\b", text)  # no key of a study
    plain = write_report(outcomes[3:4], tmp_path / "plain.html", title="t").read_text(encoding="utf-8")
    assert "▲ win" not in plain and "(reference)" not in plain


def test_marks_come_from_a_comparison(tmp_path: Path, capsys: Any) -> None:
    outcomes = [classification(model, classes=("x", "y"), n=120) for model in ("ours-ct3d", "biomed-clip-2d")]
    for outcome in outcomes:
        write_results(tmp_path / outcome.model, [outcome])
    write_comparisons(tmp_path / "compared", compare(outcomes[:1], outcomes[1:], resamples=100))
    words = ["--results", *(str(tmp_path / o.model) for o in outcomes), "--out", str(tmp_path / "x.html")]
    assert main([*words, "--comparison", str(tmp_path / "compared")]) == 0
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "Against biomed-clip-2d, ours-ct3d wins 1, ties 0 and loses 0 of 1 task" in text and "1 / 0 / 0" in text
    assert main([*words, "--comparison", str(tmp_path)]) == 1
    assert "there is no comparison 'comparison.json'" in capsys.readouterr().err


def test_an_ambiguous_table_is_refused(tmp_path: Path) -> None:
    one = classification("a", classes=("x",), n=40)
    with pytest.raises(EvalError, match="twice for model a"):
        write_report([one, one], tmp_path / "x.html", title="t")
    other = dataclasses.replace(one, task="other", model_sha256="f" * 64)
    with pytest.raises(EvalError, match="two models are called a"):
        write_report([one, other], tmp_path / "x.html", title="t")
    with pytest.raises(EvalError, match="no outcome"):
        write_report([], tmp_path / "x.html", title="t")
    _, comparisons = suite()
    mixed = [comparisons[0], {**comparisons[1], "reference": "somebody else"}]
    with pytest.raises(EvalError, match="several references"):
        write_report([one], tmp_path / "x.html", title="t", comparisons=mixed)
    assert not (tmp_path / "x.html").exists()


def test_names_from_files_are_text_and_no_markup(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    one = dataclasses.replace(classification(evil, evil, (evil,), n=40), notes=(evil,))
    text = write_report([one], tmp_path / "x.html", title=evil).read_text(encoding="utf-8")
    assert "<img src=x" not in text and "&lt;img src=x" in text


@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 380])
def test_a_suite_in_a_browser(tmp_path: Path, width: int) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    outcomes, comparisons = suite()
    page = write_report(outcomes, tmp_path / "report.html", title="t", comparisons=comparisons)
    with chromium(tmp_path, width, dark=width == 380) as browser:
        browser.get(page.as_uri())
        curves = browser.find_element(By.ID, "curves")
        assert len(browser.find_elements(By.CSS_SELECTOR, "#roc path")) == 3
        before = browser.find_element(By.CSS_SELECTOR, "#roc path").get_attribute("d")
        assert "Expected calibration error" in browser.find_element(By.ID, "reliability-note").text
        Select(browser.find_element(By.ID, "curve-finding")).select_by_visible_text("emphysema")
        assert (curves.get_attribute("data-shown") or "") == "ct_rate_18, emphysema, ours-ct3d"
        assert browser.find_element(By.CSS_SELECTOR, "#roc path").get_attribute("d") != before
        Select(browser.find_element(By.ID, "curve-model")).select_by_visible_text("CT-CLIP")
        assert "no probabilities" in browser.find_element(By.ID, "reliability-note").text
        Select(browser.find_element(By.ID, "curve-task")).select_by_visible_text("merlin_30")
        assert curves.get_attribute("data-shown") == "merlin_30, emphysema, CT-CLIP"  # kept where the task has them
        legend = browser.find_element(By.ID, "curve-legend").text
        assert all(model in legend for model in MODELS) and "AUROC 0." in legend
        fold = browser.find_element(By.XPATH, "//summary[text()='Every difference']")
        fold.send_keys(Keys.ENTER)  # by keyboard
        assert browser.find_element(By.ID, "differences").is_displayed()
        for fold in browser.find_elements(By.TAG_NAME, "details"):
            browser.execute_script("arguments[0].open = true", fold)
        assert too_wide(browser) <= 0 and not cut_off(browser)
        (drawn, *_) = [d for d in browser.find_elements(By.CSS_SELECTOR, "figure > .wide, figure > .narrow")
                       if d.is_displayed()]  # fmt: skip
        assert drawn.get_attribute("class") == ("narrow" if width == 380 else "wide")
        for box in browser.find_elements(By.CSS_SELECTOR, "figure.scroll"):  # plots fit, and need no scrolling
            assert box.get_property("scrollWidth") <= box.get_property("clientWidth")
        assert not severe(browser)


@pytest.mark.full
def test_a_page_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    figure = "<svg width=900 height=9></svg>"
    found = {}
    with chromium(tmp_path, 380) as browser:
        for overflow in ("visible", "hidden", "auto"):
            (tmp_path / "x.html").write_text(f"<!doctype html><body><div style='overflow-x: {overflow}'>{figure}</div>")
            browser.get((tmp_path / "x.html").as_uri())
            found[overflow] = too_wide(browser) > 0, len(cut_off(browser))
    assert found == {"visible": (True, 1), "hidden": (False, 1), "auto": (False, 0)}


def test_results_of_other_studies_are_not_put_into_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = dataclasses.replace(classification("CT-CLIP"), provenance={**PROVENANCE, "split": "val"})
    for name, outcome in (("one", classification("ours-ct3d")), ("two", other)):
        write_results(tmp_path / name, [outcome])
    words = ["--results", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "x.html")]
    assert main(words) == 1
    assert "the two results differ in split (CT-CLIP)" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize("order", list(itertools.permutations(("together", "first", "mean"))), ids="-".join)
def test_ways_of_reading_a_study_share_a_row_only_where_each_pair_compares(
    tmp_path: Path, order: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in order:
        provenance = {**PROVENANCE, "scan_choice": name}
        write_results(tmp_path / name, [dataclasses.replace(classification(name), provenance=provenance)])
    words = ["--results", *(str(tmp_path / name) for name in order), "--out", str(tmp_path / "x.html")]
    assert main(words) == 1
    assert "one result is of" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
