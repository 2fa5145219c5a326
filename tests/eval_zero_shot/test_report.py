"""The report page: what it says, that it stands alone, what it leaves out on request, and a click through it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Metric, Outcome, write_results
from eval_zero_shot.report import write_report
from eval_zero_shot.report.__main__ import main
from eval_zero_shot.report.cases import Shown
from eval_zero_shot.report.curves import counts, finding_curves, findings, hardest, reliability, roc
from eval_zero_shot.report.focus import contributions, mean_tokens, similarity
from eval_zero_shot.report.version1 import version1_outcomes
from eval_zero_shot.report.wording import audit_verdict, verdict
from eval_zero_shot.run import evaluate

from .chromium import chromium, severe
from .conftest import GEOMETRY, TASK, VIEW, study
from .outcomes import FINDINGS, MODELS, audit, classification, suite


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    vision = {"timm_model_name": "voxvit_tiny.p-2x4x4_i-4x8x8_c-1_o-mean_l-1", "timm_pool": "", "timm_proj": "linear"}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": {**vision, "image_size": 8}, "text_cfg": text}
    folder = tmp_path_factory.mktemp("release") / "toy"
    return write_release(folder, build_dual(config).clip.state_dict(), config, GEOMETRY, VIEW)


@pytest.fixture(scope="module")
def evaluated(release: Path, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of an evaluation and a file of training numbers beside them."""
    run = tmp_path_factory.mktemp("run")
    loaded, shards = encoders.load(str(release)), ShardSet.open(toy_folder)
    evaluate(
        loaded.model, loaded.tokenizer, shards, shards.rows("test"), GEOMETRY, VIEW, TASK,
        resamples=20, pools=(8,), repeats=5, out=run / "results",
        provenance={"split": "test", "release_sha256": loaded.sha256},
    )  # fmt: skip
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
    results = json.loads((evaluated / "results" / "results.json").read_text())
    for line in verdict(results):
        assert line.replace("'", "&#x27;") in text
    assert "too few cases" in text and "treat it as patient data" in text
    assert text.count("<svg") == 3
    assert text.count('class="case"') == 6
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


def test_the_same_evaluation_gives_the_same_bytes(page: Path, evaluated: Path, tmp_path: Path) -> None:
    once = write_report(evaluated / "results", tmp_path / "a.html", title="t", metrics=evaluated / "metrics.csv")
    again = write_report(evaluated / "results", tmp_path / "b.html", title="t", metrics=evaluated / "metrics.csv")
    assert once.read_bytes() == again.read_bytes()


def test_what_is_missing_is_said(
    tmp_path: Path, evaluated: Path, toy_folder: Path, release: Path, toy_task: Path, capsys: Any
) -> None:
    assert main(["--out", str(tmp_path / "x.html")]) == 1
    assert "neither --results nor --run" in capsys.readouterr().err
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 1
    assert "no readable results.json" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
    shutil.copytree(evaluated / "results", tmp_path / "results")
    (tmp_path / "results" / "scores.csv").unlink()
    arguments = ["--results", str(tmp_path / "results"), "--model", str(release), "--data", str(toy_folder)]
    assert main([*arguments, "--task", str(toy_task), "--out", str(tmp_path / "x.html")]) == 1
    assert "no readable scores.csv" in capsys.readouterr().err


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


def test_contributions_add_up_to_the_score_of_a_linear_tower(release: Path) -> None:
    """With mean pooling the embedding is linear in the tokens: shares sum to gradient times (study - ordinary)."""
    loaded = encoders.load(str(release))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 1, 4, 8, 8)).astype(np.float32)
    direction = rng.normal(size=8)
    ordinary = mean_tokens(loaded.model, [images[:3], images[3:]])
    assert ordinary is not None
    share = contributions(loaded.model, images[0], direction, ordinary)
    assert share is not None and share.shape == (2, 2, 2)
    with torch.no_grad():
        x = torch.from_numpy(images)
        ours, mean = loaded.model.encode_image(x).study_BD[0].double(), loaded.model.encode_image(x).study_BD.mean(0)
    unit, text = ours / ours.norm(), torch.from_numpy(direction)
    along = (text - (unit @ text) * unit) / ours.norm()  # gradient of the cosine
    assert share.sum() == pytest.approx(float(along @ (ours - mean.double())), abs=1e-5)


def test_a_verdict_is_in_words() -> None:
    finding = {"auroc": 0.9, "interval": {"low": 0.4, "high": 0.99}, "pos_patients": 9, "neg_patients": 30}
    sure = {**finding, "auroc": 0.97, "interval": {"low": 0.95, "high": 0.98}, "pos_patients": 40}
    results: dict[str, Any] = {
        "studies": 50, "patients": 45, "macro": 0.935, "macro_interval": {"low": 0.9, "high": 0.96},
        "per_finding": {"left_stone": finding, "cyst": sure}, "synonym_macro": None, "retrieval": [],
    }  # fmt: skip
    said = " ".join(verdict(results))
    for part in ("50 studies of 45 patients", "0.935", "good", "Weakest: left stone", "chance: left stone", "Too few"):
        assert part in said
    swapped = {**sure, "auroc": 0.1, "interval": {"low": 0.05, "high": 0.2}}
    low = " ".join(verdict({**results, "macro": 0.1, "per_finding": {"cyst": swapped}}))
    assert "Below chance (are labels or prompts swapped?): cyst" in low and "Not told from chance" not in low
    assert "nothing can be said" in " ".join(verdict({**results, "macro": None, "per_finding": {}}))


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
    evaluate(
        loaded.model, loaded.tokenizer, shards, rows, geometry, view, TASK,
        resamples=0, pools=(), out=root / "results", provenance={"split": "test"},
    )  # fmt: skip
    page = write_report(
        root / "results", root / "report.html", title="t", loaded=loaded, shards=shards, rows=rows, task=TASK
    )
    return page, root / "shards"


def test_images_stand_upright_in_the_gallery(planar: tuple[Path, Path]) -> None:
    cases = planar[0].read_text(encoding="utf-8").split('class="case"')[1:]
    assert len(cases) == 6
    for case in cases:
        encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", case)
        grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[0]))).convert("L")).astype(float)
        h, w = grey.shape[0] // 2, grey.shape[1] // 2
        assert grey[:h, :w].mean() > 200 and max(grey[h:].mean(), grey[:h, w:].mean()) < 60


@contextmanager
def chromium(folder: Path, width: int) -> Iterator[Any]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium and chromedriver on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
    ):  # fmt: skip
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield browser
    finally:
        browser.quit()


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


@pytest.mark.full
@pytest.mark.parametrize("width", [1200, 420])
def test_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    with chromium(tmp_path, width) as browser:
        browser.get(page.as_uri())
        looked = browser.find_element(By.ID, "looked")
        wait = WebDriverWait(browser, 20)
        wait.until(lambda _: looked.get_attribute("data-shown"))

        def pixels(plane: str) -> list[int]:
            script = (
                "const c = document.querySelector(arguments[0]);"
                "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
            )
            return browser.execute_script(script, f".{plane} canvas")

        first = pixels("axial")
        assert len(set(first)) > 10  # something is drawn
        slider = browser.find_element(By.CSS_SELECTOR, ".axial input")
        browser.execute_script(
            "arguments[0].value = (Number(arguments[0].value) + 2) % 4; arguments[0].dispatchEvent(new Event('input'))",
            slider,
        )
        assert pixels("axial") != first
        for name in ("dark", "bright"):
            Select(browser.find_element(By.ID, "finding")).select_by_visible_text(name)
            wait.until(lambda _, name=name: (looked.get_attribute("data-shown") or "").startswith(name))
        chosen = Select(browser.find_element(By.ID, "window"))
        chosen.select_by_visible_text("lung")
        wait.until(lambda _: (looked.get_attribute("data-shown") or "").endswith("lung"))
        shown = pixels("coronal")
        strength = browser.find_element(By.ID, "strength")
        browser.execute_script("arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))", strength)
        bare = pixels("coronal")
        assert bare != shown
        assert bare[0::4] == bare[1::4] == bare[2::4]  # grey without the overlay
        wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0  # nothing is cut off at the side
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
