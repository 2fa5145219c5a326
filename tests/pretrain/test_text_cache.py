"""A frozen text tower, read once: the numbers are those of the tower, and a resumed run goes on bit for bit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain import build, studies
from pretrain.config import ConfigError, load_recipe
from pretrain.module import Pretraining
from pretrain.passes import whole
from pretrain.text_cache import text_cache

FROZEN: dict[str, Any] = {
    "optim__lr_multipliers__text": 0.0, "model__text__cached": 2, "data__units__drop_words": 0.2, "train__steps": 8,
}  # fmt: skip


@pytest.fixture
def started(tiny: Any) -> dict[str, Any]:
    """Keys of a recipe that starts from a release and keeps its text tower."""
    assert tiny("base", train__steps=4) == 0
    return FROZEN | {"model__init": str(tiny.root / "base" / "release"), "data__cache": str(tiny.root / "cache")}


def words(changes: dict[str, Any]) -> list[str]:
    return [f"{key.replace('__', '.')}={'null' if value is None else value}" for key, value in changes.items()]


def test_features_and_gradients_are_the_towers(tiny: Any, started: dict[str, Any]) -> None:
    recipe = load_recipe(tiny.recipe, words(started))
    data, tokenize = studies.build_data(recipe), build.tokenizer(recipe)
    dual = build.build_model(recipe)
    cache = text_cache(recipe, dual, data, tokenize)
    assert cache is not None
    found = []
    for passes in (None, {"text:units": cache.text_units}):
        module = Pretraining(recipe, dual, build.build_objectives(recipe), passes)
        stream = build.training_stream(recipe, data, tokenize, 0, 1, 0)
        seen = set[int]()
        for batch in stream:
            seen |= set(batch.texts.visit64_U.tolist())
            last = batch
        rows = module.encoders(dual, whole(last))["text:units.units"]
        rows.values.square().sum().backward()
        projection = dual.clip.text.text_projection
        found.append((rows.values.detach(), projection.grad.clone()))
        projection.grad = None
        assert seen <= set(cache.identity_M.tolist())
    (tower, want), (kept, got) = found
    torch.testing.assert_close(kept, tower, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    again = text_cache(recipe, dual, data, tokenize)  # out of the file
    assert again is not None and torch.equal(again.pooled_MC, cache.pooled_MC)
    assert len(list((tiny.root / "cache" / "texts").iterdir())) == 1


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_edited_templates_are_encoded_anew(tiny: Any, started: dict[str, Any], tmp_path: Path) -> None:
    file, kept = tmp_path / "words.yaml", tiny.root / "cache" / "texts"
    changes = words(started | {"data__units__templates": str(file), "objectives": '[{"name": "contrastive"}]'})
    changes.append('objectives.0.units=["caption"]')
    found = []
    for said in ("a nodule", "a spot", "a nodule"):
        file.write_text(f"classes: {{nodule: {{present: {said}, absent: no nodule}}}}\n")
        recipe = load_recipe(tiny.recipe, changes)
        data, tokenize = studies.build_data(recipe), build.tokenizer(recipe)
        cache = text_cache(recipe, build.build_model(recipe), data, tokenize)
        assert cache is not None
        cache.look_up(next(iter(build.training_stream(recipe, data, tokenize, 0, 1, 0))).texts.visit64_U)
        found.append(names(kept))
    assert len(found[0]) == 1 and len(found[1]) == 2 and found[0] < found[1] == found[2]


def test_other_ranks_wait_as_long_as_rank_0_lives(
    tiny: Any, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny.recipe, words(started))
    dual, data, tokenize = build.build_model(recipe), studies.build_data(recipe), build.tokenizer(recipe)
    made = text_cache(recipe, dual, data, tokenize)
    (file,) = (tiny.root / "cache" / "texts").iterdir()
    aside, sign = file.with_suffix(".aside"), file.with_suffix(".working")
    file.rename(aside)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("pretrain.text_cache.QUIET", 1.5)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(text_cache, recipe, dual, data, tokenize)
        for _ in range(16):  # longer than a rank 0 may be quiet
            assert not waiting.done()
            sign.touch()
            time.sleep(0.25)
        aside.rename(file)
        waited = waiting.result()
    assert made is not None and waited is not None and torch.equal(made.pooled_MC, waited.pooled_MC)
    file.unlink()  # and the sign of a rank 0 that was killed lies there
    with pytest.raises(RuntimeError, match="rank 0, which makes it, gave no sign of life"):
        text_cache(recipe, dual, data, tokenize)


def test_rank_0_shows_that_it_works(tiny: Any, started: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.text_cache.BEAT", 0.01)
    recipe = load_recipe(tiny.recipe, words(started))
    dual, data, tokenize = build.build_model(recipe), studies.build_data(recipe), build.tokenizer(recipe)
    folder, seen = tiny.root / "cache" / "texts", set[tuple[str, int]]()

    def watching(text: str) -> list[int]:
        while len(seen) < 3:
            seen.update((file.suffix, file.stat().st_mtime_ns) for file in folder.iterdir())
        return tokenize(text)

    assert text_cache(recipe, dual, data, watching) is not None
    assert {suffix for suffix, _ in seen} == {".working"}
    assert {file.suffix for file in folder.iterdir()} == {".safetensors"}


def test_texts_take_so_many_forms_and_no_more(tiny: Any, started: dict[str, Any]) -> None:
    recipe = load_recipe(tiny.recipe, words(started))
    data = studies.build_data(recipe)
    samples = build.training_stream(recipe, data, build.tokenizer(recipe), 0, 1, 0).samples
    row = int(data.train_rows[0])
    said = [tuple(unit.text for unit in samples.units_of(row, (0, epoch))) for epoch in range(6)]
    assert said[0] == said[2] == said[4] != said[1] == said[3] == said[5]


def test_the_tower_stays_and_the_rest_learns(tiny: Any, started: dict[str, Any]) -> None:
    assert tiny("run", **started) == 0
    before, after = tiny.weights("base"), tiny.weights("run")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "text.text_projection" in moved and any(name.startswith("visual.trunk") for name in moved)
    assert not {name for name in moved if name.startswith("text.")} - {"text.text_projection"}


def test_a_stopped_run_goes_on_bit_for_bit(tiny: Any, started: dict[str, Any]) -> None:
    assert tiny("whole", **started, checkpoint__every_steps=4) == 0
    assert tiny("half", **started, checkpoint__every_steps=4) == 0
    root = tiny.root / "half" / "checkpoints"
    import shutil

    (root / "last").unlink()
    (root / "last").symlink_to("step-00000004")
    shutil.rmtree(root / "step-00000008")
    shutil.rmtree(tiny.root / "cache")  # encoded anew, by the tower of the checkpoint
    assert tiny.resume("half") == 0
    whole_run, half = tiny.weights("whole"), tiny.weights("half")
    assert all(torch.equal(half[name], value) for name, value in whole_run.items())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"optim__lr_multipliers__text": 1.0}, r"embeddings are kept, but the text tower is trained"),
        ({"model__init": None}, r"a frozen tower of random weights says nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny: Any, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=match):
        load_recipe(tiny.recipe, words(FROZEN | {"model__init": str(tmp_path)} | changes))
