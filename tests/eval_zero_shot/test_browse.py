"""The browse page: what it ranks and shows, whom it answers, and a click through it."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

import encoders
from data_shards.shard_set import ShardSet
from eval_zero_shot.browse.__main__ import main, resolve
from eval_zero_shot.browse.server import BrowseServer, is_loopback
from eval_zero_shot.browse.studies import Studies
from eval_zero_shot.errors import EvalError
from eval_zero_shot.feature_cache import FeatureCache
from eval_zero_shot.inputs import Inputs

from .chromium import chromium, severe, too_wide
from .toy_release import write_toy_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_release(tmp_path_factory.mktemp("release") / "toy")


@pytest.fixture(scope="module")
def studies(release: Path, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Studies:
    cache = FeatureCache(tmp_path_factory.mktemp("features"))
    inputs = Inputs("toy", encoders.load(str(release)), ShardSet.open(toy_folder), cache)
    return Studies(inputs, inputs.rows("test"))


@pytest.fixture(scope="module")
def server(studies: Studies) -> Iterator[BrowseServer]:
    server = BrowseServer(studies, "toy, split test")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server: BrowseServer, what: str, **query: Any) -> Any:
    with urlopen(server.url + what + (f"?{urlencode(query)}" if query else "")) as answer:
        return json.loads(answer.read())


def raw(server: BrowseServer, request: str) -> str:
    """Exactly these bytes, and all that comes back."""
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode("latin-1")


def ask(server: BrowseServer, path: str, host: str = "127.0.0.1", method: str = "GET", more: str = "") -> str:
    return raw(server, f"{method} {path} HTTP/1.1\nHost: {host}\nConnection: close\n{more}\n")


def test_the_ranking_is_by_cosine(server: BrowseServer, studies: Studies) -> None:
    texts = studies.inputs.texts(["bright scan", "no bright scan"])
    cosine = studies.features_ND @ texts["bright scan"]
    found = get(server, "rank", text="bright  scan")
    assert found["total"] == len(studies) == 24
    assert [i for i, _ in found["studies"]] == np.argsort(-cosine, kind="stable").tolist()
    # One query may be multiplied in another order than the matrix: float32's last place, absolute near zero.
    assert [s for _, s in found["studies"]] == pytest.approx(sorted(cosine.tolist(), reverse=True), abs=1e-6)
    minus = get(server, "rank", text="bright scan", minus="no bright scan")
    difference = cosine - studies.features_ND @ texts["no bright scan"]
    assert [s for _, s in minus["studies"]] == pytest.approx(sorted(difference.tolist(), reverse=True), abs=1e-6)
    lowest = get(server, "rank", text="bright scan", lowest="1")
    assert lowest["studies"][0][1] == pytest.approx(cosine.min(), abs=1e-6)
    assert get(server, "rank", text="bright scan", start="20")["studies"] == found["studies"][20:]


def test_a_study_and_its_slices(server: BrowseServer, studies: Studies) -> None:
    about = get(server, "study/3")
    assert about["size"] == [4, 8, 8] and about["windows"] and about["labels"] == {"bright": 1, "dark": 0}
    assert about["report"].startswith("bright scan")
    for plane, size in (("axial", (8, 8)), ("coronal", (8, 4)), ("sagittal", (8, 4))):
        with urlopen(f"{server.url}slice/3/{plane}/0/2.png") as answer, Image.open(io.BytesIO(answer.read())) as image:
            assert image.size == size and image.mode == "L"
    shown = studies._picture(3)
    with urlopen(f"{server.url}slice/3/axial/0/1.png") as answer, Image.open(io.BytesIO(answer.read())) as image:
        assert np.array_equal(np.asarray(image), shown.grey[0, 1, ::-1, ::-1])
    found = get(server, "map/3", text="bright scan")
    assert found["name"] == "token–text similarity" and found["grid"] == [2, 2, 2]


def test_a_tower_of_places_shows_shares(toy_folder: Path, tmp_path: Path) -> None:
    loaded = encoders.load(str(write_toy_release(tmp_path / "grid", "grid")))
    inputs = Inputs("toy", loaded, ShardSet.open(toy_folder), None)
    found = Studies(inputs, inputs.rows("test", 4)).map(0, "bright scan", "dark scan")
    assert found["name"] == "share of the score" and found["grid"] == [2, 2, 2]


def test_only_this_server_is_answered_for(server: BrowseServer) -> None:
    good = f"/{server.token}/about"
    assert ask(server, good).startswith("HTTP/1.1 200") and ask(server, good, "localhost:9999").startswith(
        "HTTP/1.1 200"
    )
    assert ask(server, good, "[::1]:8000").startswith("HTTP/1.1 200")
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "localhost@evil.example", "", "[::2]:1"):
        assert ask(server, good, host).startswith("HTTP/1.1 403"), host
    two = f"GET {good} HTTP/1.1\nHost: 127.0.0.1\nHost: evil.example\nConnection: close\n\n"
    assert raw(server, two).startswith("HTTP/1.1 403")
    assert " 403 " in raw(server, f"GET {good} HTTP/1.0\n\n").splitlines()[0]
    for path in (
        "/",
        "/about",
        "/wrong/about",
        f"/{server.token}",
        f"/{server.token[:-1]}/about",
        f"/{server.token}x/",
    ):
        answer = ask(server, path)
        assert answer.startswith("HTTP/1.1 404") and "toy" not in answer and server.token not in answer, path


def test_no_address_is_a_path(server: BrowseServer) -> None:
    root = f"/{server.token}"
    for what in (
        "../server.py", "..%2fserver.py", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "server.py", "page.html",
        "slice/../page.css", "slice/0/axial/0/../../page.css", "slice/0/axial/0/1.png/..", "slice/-1/axial/0/0.png",
        "slice/24/axial/0/0.png", "slice/0/axial/9/0.png", "slice/0/axial/0/99.png", "slice/0/oblique/0/0.png",
        "slice/0/axial/0/0.png%00.js", "study/24", "study/x", "study/1e1", "map/24?text=a", "rank?text=a&start=x",
        "rank?text=a&start=-1", "slice/99999999999999999999/axial/0/0.png",
    ):  # fmt: skip
        assert ask(server, f"{root}/{what}").startswith("HTTP/1.1 404"), what
    assert "type a finding" in ask(server, f"{root}/rank")
    assert ask(server, f"{root}/rank?text={'a' * 501}").startswith("HTTP/1.1 400")


def test_no_other_origin_reads_and_nothing_is_kept(server: BrowseServer, capfd: Any) -> None:
    answer = ask(server, f"/{server.token}/rank?text=secret", more="Origin: https://evil.example\n")
    head = answer.partition("\r\n\r\n")[0].lower()
    assert "access-control-" not in head and "python" not in head
    for name in ("cache-control: no-store", "cross-origin-resource-policy: same-origin", "frame-ancestors 'none'",
                 "x-content-type-options: nosniff", "referrer-policy: no-referrer"):  # fmt: skip
        assert name in head
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT"):
        assert ask(server, f"/{server.token}/about", method=method).startswith("HTTP/1.1 501")
    assert "secret" not in "".join(capfd.readouterr())


def test_an_address_is_chosen_with_care(studies: Studies, tmp_path: Path, capsys: Any) -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost") and is_loopback("127.1.2.3")
    assert not is_loopback("192.168.0.7") and not is_loopback("pacs.example")
    assert main(["release", "--data", "shards", "--host", "192.168.0.7"]) == 1
    said = capsys.readouterr().err
    assert "can be reached from other machines" in said and "--i-know-this-shows-patients" in said
    asked = ["release", "--data", str(tmp_path / "no"), "--host", "192.168.0.7"]
    assert main([*asked, "--i-know-this-shows-patients"]) == 1  # there are no such shards
    said = capsys.readouterr().err
    assert "warning: images and reports are sent without encryption" in said and "other machines" not in said
    for host in ("0.0.0.0", "::", ""):
        with pytest.raises(EvalError, match="every network at once"):
            BrowseServer(studies, "t", host)
    with pytest.raises(EvalError, match="cannot listen"):
        BrowseServer(studies, "t", port=70000)
    first, second = BrowseServer(studies, "t"), BrowseServer(studies, "t")
    assert first.token != second.token and len(first.token) >= 32
    first.server_close()
    second.server_close()


def test_a_run_names_its_model_and_shards(tmp_path: Path, release: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(EvalError, match="no --data"):
        resolve(str(release), None)
    assert resolve(str(release), "here") == (str(release), "here")
    (run / "recipe.yaml").write_text("data: {source: {kind: shards, path: there}}")
    with pytest.raises(EvalError, match="no release yet"):
        resolve(str(run), None)
    shutil.copytree(release, run / "release")
    assert resolve(str(run), None) == (str(run / "release"), "there")
    assert resolve(str(run), "here") == (str(run / "release"), "here")
    for recipe in ("data: {source: {kind: tars, path: x}}", "[", "data: 3", "data: {source: {kind: phantom, studies: 3, seed: 0}, cache: /nowhere}"):  # fmt: skip # noqa: E501
        (run / "recipe.yaml").write_text(recipe)
        with pytest.raises(EvalError, match="name them: --data"):
            resolve(str(run), None)


@pytest.mark.full
def test_it_starts_and_stops(release: Path, toy_folder: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "eval_zero_shot.browse", str(release), "--data", str(toy_folder)]
    words += ["--cache", str(tmp_path), "--max-studies", "5", "--device", "cpu"]
    # A shell that runs tests in the background has Ctrl-C ignored, and children inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, text=True, preexec_fn=heed) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32,}/", url)
        with urlopen(url + "about") as answer:
            assert json.loads(answer.read()) == {"title": "toy, split test", "studies": 5, "alone": True}
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
        said = process.stderr.read()
    assert said.endswith("stopped\n") and "Traceback" not in said and urlsplit(url).path not in said


@pytest.mark.full
@pytest.mark.parametrize("width", [1280, 380])
def test_in_a_browser(server: BrowseServer, tmp_path: Path, width: int) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium(tmp_path, width, dark=width == 380) as browser:
        wait = WebDriverWait(browser, 20)
        browser.get(server.url)
        text, study = browser.find_element(By.ID, "text"), browser.find_element(By.ID, "study")

        def ranking() -> list[str]:
            return [
                b.get_attribute("data-study") or "" for b in browser.find_elements(By.CSS_SELECTOR, "#ranking button")
            ]

        def pixels() -> list[int]:
            script = (
                "const c = document.querySelector('.axial canvas');"
                "return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
            )
            return browser.execute_script(script)

        def ask_for(words: str) -> None:
            text.clear()
            text.send_keys(words + Keys.ENTER)
            wait.until(lambda _: (study.get_attribute("data-map") or "").endswith(": " + words))

        ask_for("bright scan")
        first = ranking()
        assert len(first) == 24
        ask_for("number9 dark")
        second = ranking()
        assert sorted(first) == sorted(second) and first != second
        with_map = pixels()
        assert any(r != g for r, g in zip(with_map[0::4], with_map[1::4], strict=True))  # coloured
        browser.find_element(By.ID, "heat").click()
        wait.until(lambda _: pixels() != with_map)
        bare = pixels()
        assert bare[0::4] == bare[1::4] == bare[2::4] and len(set(bare)) > 10
        axial = browser.find_element(By.CSS_SELECTOR, ".axial")
        slider = axial.find_element(By.TAG_NAME, "input")
        before = axial.get_attribute("data-shown")
        slider.send_keys(Keys.ARROW_LEFT if slider.get_property("value") != "0" else Keys.ARROW_RIGHT)  # by keyboard
        wait.until(lambda _: axial.get_attribute("data-shown") != before)
        assert pixels() != bare
        for button in browser.find_elements(By.CSS_SELECTOR, "#ranking button")[1:2]:
            button.click()
            wait.until(lambda _: (axial.get_attribute("data-shown") or "").startswith(f"{second[1]}/"))
        browser.find_element(By.ID, "use-minus").click()
        assert browser.find_element(By.ID, "minus").get_property("value") == "no number9 dark"
        text.send_keys(Keys.ENTER)
        wait.until(lambda _: "minus" in browser.find_element(By.ID, "said").text)
        assert too_wide(browser) <= 0
        assert not severe(browser)
