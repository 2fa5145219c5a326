"""The report page: what it says, that it stands alone, what it leaves out on request, and a click through it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import encoders
from data_shards.geometry import PlanarGeometry, View
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from encoders.dual import build_dual
from encoders.release import write_release
from eval_zero_shot.classification import score_classification
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.outcome import read_results, write_results
from eval_zero_shot.report import write_report
from eval_zero_shot.report.__main__ import main
from eval_zero_shot.report.cases import Shown
from eval_zero_shot.report.wording import verdict
from eval_zero_shot.retrieval.protocol import score_retrieval
from eval_zero_shot.tasks import Task

from .chromium import chromium, cut_off, severe, too_wide
from .conftest import GEOMETRY, TASK, VIEW, study
from .toy_release import write_toy_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_release(tmp_path_factory.mktemp("release") / "toy")


@pytest.fixture(scope="module")
def evaluated(release: Path, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an evaluation and a file of training numbers beside them."""
    run = tmp_path_factory.mktemp("run")
    inputs = Inputs("toy", encoders.load(str(release)), ShardSet.open(toy_folder), None)
    rows = inputs.rows("test")
    found = [
        score_classification(inputs, rows, TASK, resamples=100),
        score_retrieval(inputs, rows, split="test", pools=(8,), ks=(1, 5), repeats=5, resamples=100),
    ]
    write_results(run / "results", found)
    lines = [f"{step},loss,{9 - step}" for step in range(1, 6)]
    lines += ["2,select/macro_auroc,0.6", "5,select/macro_auroc,0.7"]
    (run / "metrics.csv").write_text("step,name,value\n" + "\n".join(lines) + "\n")
    return run


@pytest.fixture
def toy_task(tmp_path: Path) -> Path:
    task = tmp_path / "toy.yaml"
    task.write_text(json.dumps(TASK.model_dump(mode="json")))
    return task


@pytest.fixture
def page(evaluated: Path, release: Path, toy_folder: Path, toy_task: Path, tmp_path: Path) -> Path:
    out = tmp_path / "page" / "report.html"
    arguments = ["--run", str(evaluated), "--model", str(release), "--data", str(toy_folder), "--task", str(toy_task)]
    assert main([*arguments, "--out", str(out), "--title", "A <toy> & its scores"]) == 0
    return out


def test_the_page_stands_alone_and_says_what_was_found(page: Path, evaluated: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)  # nothing is fetched
    assert "@import" not in text and "http-equiv" not in text
    assert "A &lt;toy&gt; &amp; its scores" in text and "<toy>" not in text
    for line in verdict(read_results(evaluated / "results")):
        assert line.replace("'", "&#x27;") in text
    assert "too few cases" in text and "treat it as patient data" in text
    assert text.count("<svg") == 8  # findings, retrieval, training in two widths each, and two that the script fills
    assert text.count('class="case"') == 6
    assert "No audit was run" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for name in ("auroc", "retrieval", "training"):
        with Image.open(page.parent / "plots" / f"{name}.png") as image:
            assert image.width > 600
    assert not list(page.parent.glob(".*tmp"))


def test_numbers_alone_hold_no_study(evaluated: Path, toy_folder: Path, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    arguments = ["--run", str(evaluated), "--model", str(release), "--data", str(toy_folder), "--task", "phantom"]
    assert main([*arguments, "--no-cases", "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "data:image" not in text and "patient data" not in text and "bright scan" not in text
    shards = ShardSet.open(toy_folder)
    assert not any(shards.key(row) in text for row in range(len(shards)))


def test_the_same_outcomes_give_the_same_bytes(evaluated: Path, tmp_path: Path) -> None:
    outcomes = read_results(evaluated / "results")
    once = write_report(outcomes, tmp_path / "a.html", title="t", metrics=evaluated / "metrics.csv")
    again = write_report(outcomes, tmp_path / "b.html", title="t", metrics=evaluated / "metrics.csv")
    assert once.read_bytes() == again.read_bytes()


def test_what_is_missing_is_said(tmp_path: Path, capsys: Any) -> None:
    assert main(["--out", str(tmp_path / "x.html")]) == 1
    assert "neither --results nor --run" in capsys.readouterr().err
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 1
    assert "there is no results.json in" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_what_was_not_scored_is_not_shown(
    tmp_path: Path, evaluated: Path, toy_folder: Path, release: Path, toy_task: Path, capsys: Any
) -> None:
    """Another task, release or shard set beside these numbers would illustrate them with something else."""
    other = tmp_path / "other"
    weights = {k: v + 0.1 for k, v in encoders.load(str(release)).model.clip.state_dict().items()}
    config = json.loads((release / "open_clip_config.json").read_text())["model_cfg"]
    write_release(other, weights, config, GEOMETRY, VIEW)
    given = {"--model": release, "--data": toy_folder, "--task": toy_task}
    shards = tmp_path / "shards"
    with ShardWriter(shards) as writer:  # other studies under the same keys
        for i in range(8):
            writer.write(study(i))
    for option, wrong in (("--model", other), ("--data", shards), ("--task", "phantom")):
        asked = {**given, option: wrong}
        arguments = [str(word) for pair in asked.items() for word in pair]
        assert main(["--run", str(evaluated), *arguments, "--out", str(tmp_path / "x.html")]) == 1
        assert f"{option} is not what these results were made with" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_a_task_of_classes_shows_its_studies_as_well(release: Path, toy_folder: Path, tmp_path: Path) -> None:
    classes: dict[str, Any] = {"bright": {}, "dark": {}}
    said = {"name": "kinds", "kind": "classes", "prompt_sets": {"main": ["a {} scan"]}, "classes": classes}
    loaded, shards, task = encoders.load(str(release)), ShardSet.open(toy_folder), Task.model_validate(said)
    rows = shards.rows("test")
    outcome = score_classification(Inputs("toy", loaded, shards, None), rows, task, resamples=20)
    studies = [Shown("toy", loaded, shards, rows, task)]
    text = write_report([outcome], tmp_path / "x.html", title="t", studies=studies).read_text(encoding="utf-8")
    assert 'id="looked"' in text and "a bright scan" in text and "a dark scan" in text and "balanced accuracy" in text


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A page over images whose upper left quarter alone is white, and the shards of these images."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("planar")
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 160}, "text_cfg": text}
    geometry, view = PlanarGeometry(size=(160, 160)), View()
    folder = write_release(root / "toy", build_dual(config).clip.state_dict(), config, geometry, view)
    with ShardWriter(root / "shards") as writer:
        for i in range(12):
            grey = np.random.default_rng(i).integers(0, 60, (160, 160)).astype(np.uint8)
            grey[:80, :80] = 250
            out = io.BytesIO()
            Image.fromarray(grey).save(out, "PNG")
            scan = Scan(image=out.getvalue(), ext="png", modality="CR", unit="arbitrary")
            labels: dict[str, int | None] = {"bright": i % 2, "dark": 1 - i % 2}
            texts = Texts(report="bright scan" if i % 2 else "dark scan")
            writer.write(Study(f"{i:016x}", f"{i + 100:016x}", "test", (scan,), texts, labels))
    loaded, shards = encoders.load(str(folder)), ShardSet.open(root / "shards")
    rows = shards.rows("test")
    outcomes = [score_classification(Inputs("toy", loaded, shards, None), rows, TASK, resamples=100)]
    shown = [Shown("toy", loaded, shards, rows, TASK)]
    page = write_report(outcomes, root / "report.html", title="t", studies=shown)
    return page, root / "shards"


def test_images_stand_upright_in_the_gallery(planar: tuple[Path, Path]) -> None:
    cases = planar[0].read_text(encoding="utf-8").split('class="case"')[1:]
    assert len(cases) == 6
    for case in cases:
        encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", case)
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[0]))).convert("L")).astype(float)
        h, w = grey.shape[0] // 2, grey.shape[1] // 2
        assert grey[:h, :w].mean() > 200 and max(grey[h:].mean(), grey[:h, w:].mean()) < 60


@pytest.mark.full
def test_images_stand_upright_where_it_looked(planar: tuple[Path, Path], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium(tmp_path, 1200) as browser:
        browser.get(planar[0].as_uri())
        WebDriverWait(browser, 20).until(
            lambda b: b.find_element(By.ID, "looked").get_attribute("data-shown")  # the first picture is drawn
        )
        strength = browser.find_element(By.ID, "strength")
        browser.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", strength)
        size, values = browser.execute_script(
            "const c = document.querySelector('.axial canvas');"
            "return [[c.height, c.width], Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]"
        )
        grey = np.asarray(values, float).reshape(*size, 4)[..., 0]
        h, w = size[0] // 2, size[1] // 2
        assert grey[:h, :w].mean() > 200 and max(grey[h:].mean(), grey[:h, w:].mean()) < 60


def drawn(browser: Any, selector: str) -> list[int]:
    """Every pixel of a canvas."""
    script = (
        "const c = document.querySelector(arguments[0]);"
        "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    )
    return browser.execute_script(script, selector)


def slide(browser: Any, selector: str, value: int) -> None:
    """Move a slider."""
    script = (
        "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))"
    )
    browser.execute_script(script, selector, value)


@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    with chromium(tmp_path, width, dark) as browser:
        browser.get(page.as_uri())
        looked = browser.find_element(By.ID, "looked")
        wait = WebDriverWait(browser, 20)
        wait.until(lambda _: looked.get_attribute("data-shown"))
        first = drawn(browser, ".axial canvas")
        assert len(set(first)) > 10  # something is drawn
        slide(
            browser,
            ".axial input",
            (int(browser.find_element(By.CSS_SELECTOR, ".axial input").get_property("value")) + 2) % 4,
        )
        assert drawn(browser, ".axial canvas") != first
        for name in ("dark", "bright"):
            Select(browser.find_element(By.ID, "finding")).select_by_visible_text(name)
            wait.until(lambda _, name=name: (looked.get_attribute("data-shown") or "").startswith(name))
        Select(browser.find_element(By.ID, "window")).select_by_visible_text("lung")
        wait.until(lambda _: ", lung," in (looked.get_attribute("data-shown") or ""))
        shown = drawn(browser, ".coronal canvas")
        Select(browser.find_element(By.ID, "map")).select_by_visible_text("token–text similarity")
        wait.until(lambda _: (looked.get_attribute("data-shown") or "").endswith("similarity"))
        assert drawn(browser, ".coronal canvas") != shown
        slide(browser, "#strength", 0)
        bare = drawn(browser, ".coronal canvas")
        assert bare != shown
        assert bare[0::4] == bare[1::4] == bare[2::4]  # grey without the overlay
        for fold in browser.find_elements(By.TAG_NAME, "details"):
            browser.execute_script("arguments[0].open = true", fold)
        pictures = browser.find_elements(By.CSS_SELECTOR, "#errors ~ details img, .errors img")
        assert pictures and all(int(p.get_property("naturalWidth")) > 0 for p in pictures)
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == dark
        assert too_wide(browser) <= 0 and not cut_off(browser)
        assert not severe(browser)


@pytest.mark.full
def test_studies_of_two_models_in_a_browser(evaluated: Path, release: Path, toy_folder: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    loaded, shards = encoders.load(str(release)), ShardSet.open(toy_folder)
    (first, *_) = read_results(evaluated / "results")
    outcomes = [first, dataclasses.replace(first, model="second")]
    studies = [Shown(o.model, loaded, shards, shards.rows("test"), TASK) for o in outcomes]
    page = write_report(outcomes, tmp_path / "report.html", title="t", studies=iter(studies))
    with chromium(tmp_path) as browser:
        browser.get(page.as_uri())
        looked, wait = browser.find_element(By.ID, "looked"), WebDriverWait(browser, 20)
        wait.until(lambda _: looked.get_attribute("data-model") == "toy")
        Select(browser.find_element(By.ID, "looked-model")).select_by_visible_text("second")
        wait.until(lambda _: looked.get_attribute("data-model") == "second")
        assert [h.text for h in browser.find_elements(By.CSS_SELECTOR, "#errors ~ h3")] == ["toy, toy", "second, toy"]
        assert not severe(browser)
    with pytest.raises(EvalError, match="no classification of task toy by model nobody"):
        write_report(
            outcomes, tmp_path / "x.html", title="t", studies=[dataclasses.replace(studies[0], model="nobody")]
        )
