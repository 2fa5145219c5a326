"""Recipe bmc_clip: from BIOMEDICA's tars to a stream out of a store, a selection by concept, and a merged release."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import encoders
from data_shards import build, select
from data_shards.batch import Batch, TextBatch
from data_shards.schema import UNIT_KINDS
from data_shards.shard_set import ShardSet
from data_shards.units import Unit, text_identity
from encoders.tokenize import BPE
from eval_zero_shot.outcome import read_results
from pretrain import build as build_run
from pretrain import fit, studies
from pretrain.config import load_recipe
from pretrain.module import Pretraining
from tests.data_shards.foreign_tars import biomedica_json, picture, write_webdataset
from tests.data_shards.stores.conftest import serve  # noqa: F401  a fixture
from tests.data_shards.stores.helpers import SERVER, Serve, sent
from tests.pretrain.test_grad_cache import cached
from tests.pretrain.test_image_start import no_trainer  # noqa: F401  a fixture

SMOKE = ["--config", "bmc_clip.yaml", "--smoke", "--data.cache", "cache", "--output.run", "run"]
ANYWHERE = "data.source={kind: tars, path: .}"


def header(command: str) -> list[str]:
    """Arguments of a command in the comment above the recipe."""
    text = resources.files("configs").joinpath("bmc_clip.yaml").read_text().partition("\nname:")[0]
    lines = [line.removeprefix("#") for line in re.sub(r"\\\n#", "", text).splitlines()]
    (found,) = (shlex.split(line)[3:] for line in lines if f"python -m data_shards.{command}" in line)
    return found


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardSet:
    """120 figures of 60 articles as BIOMEDICA publishes them, half of them of no imaging concept, made into
    shards by the header's command; the current folder is where they lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXCLIP_SALT", "0" * 32)  # articles are dealt to splits by their hash
    for tar in range(2):
        samples: list[Mapping[str, Any]] = []
        for i in range(60 * tar, 60 * tar + 60):
            concept = ["Clinical Imaging"] if i % 4 == 1 else ["Microscopy"] if i % 8 == 3 else ["Plots and Charts"]
            about = {**biomedica_json(i), "image_primary_label": concept, "article_accession_id": f"PMC{i // 2}"}
            words = f"Figure {i}. " + "Cell. " * i
            samples.append(
                {"__key__": f"3-PMC{i // 2}-{i}-f", "jpg": picture(i, size=(40, 40)), "txt": words, "json": about}
            )
        write_webdataset(tmp_path / "biomedica" / f"{tar}.tar", samples)
    # 60 articles have none in a thousandth of them
    assert build.main([*header("build"), "--val-fraction", "0.1", "--test-fraction", "0.1"]) == 0
    return ShardSet.open("shards/biomedica")


def test_smoke_goes_the_whole_road(shards: ShardSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(SMOKE) == 0
    said = capsys.readouterr().out
    assert "Adapting lost on" in said and "text     " in said
    (outcome,) = read_results("runs/run/results")
    assert (outcome.protocol, outcome.task) == ("interpolation", "retrieval")
    for name in ("base", "adapted", "release"):
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:runs/run/{name}")
        loaded = encoders.load(f"runs/run/{name}").model.eval()
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            assert torch.equal(model.eval().encode_image(images), loaded.encode_image(images).study_BD)


def test_the_recipe_is_theirs() -> None:
    """Continual pretraining as the paper states it, at an effective batch of 8,192 on one device."""
    recipe = load_recipe("bmc_clip.yaml", [ANYWHERE])
    optim, train = recipe.optim, recipe.train
    assert (optim.lr, optim.betas, optim.warmup_steps, optim.clip_norm) == (1e-6, (0.9, 0.95), 1000, 1.0)
    assert (train.batch_size * train.devices * optim.accumulate, train.precision) == (8192, "fp32")
    assert train.chunk is not None and train.steps * 8192 == pytest.approx(216e6, rel=0.01)
    tags = open_clip.list_pretrained_tags_by_model(recipe.model.image.name)
    assert recipe.model.pretrained in tags
    assert recipe.finish is not None and recipe.finish.interpolate_with == "base"


def test_training_streams_a_selection_from_a_store_without_a_copy(
    shards: ShardSet, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:  # fmt: skip
    words = header("select")
    assert select.main([*words, "--balance", "concept"]) == 0
    folder = Path("shards/biomedica").resolve()
    port = serve([str(SERVER), str(folder), "PORT"])
    kept = tmp_path / "kept"
    monkeypatch.setenv("VOXCLIP_SHARD_CACHE", str(kept))
    monkeypatch.setenv("VOXCLIP_READS", "ranged")
    more = ["--data.source.selection", words[-1], "--train.steps", "4", "--train.batch_size", "4", "--finish", "null"]
    web = f"http://127.0.0.1:{port}"
    assert fit.main([*SMOKE, *more, "--data.source.path", f"{web}/files"]) == 0
    assert fit.main([*SMOKE[:-1], "local", *more, "--data.source.path", str(folder)]) == 0
    assert sum(sent(web, name) for name in set(shards.index["shard"].to_pylist())) > 8
    assert not list(kept.glob("*.tar")), "read by ranges: nothing was copied"
    weights = [Path("runs", run, "release", "open_clip_model.safetensors").read_bytes() for run in ("run", "local")]
    assert weights[0] == weights[1], "the run is the one on the disk"

    data = studies.build_data(load_recipe("runs/run/recipe.yaml"))
    concepts = Counter(tuple(shards.json(int(row))["meta"]["concept"]) for row in data.train_rows)
    assert set(concepts) == {("Clinical Imaging",), ("Microscopy",)} and len(set(concepts.values())) == 1
    assert len(data.train_rows) < len(shards.rows("train"))


def test_a_batch_in_parts_has_the_gradient_of_the_whole(no_trainer: None) -> None:  # noqa: F811
    """The recipe's settings and loss, at a smaller batch and tower: 7 images by 3, captions and articles in common."""
    recipe = load_recipe("bmc_clip.yaml", [ANYWHERE, "train.batch_size=7", "train.chunk=3"], smoke=True)
    torch.manual_seed(0)
    module = Pretraining(recipe, build_run.build_model(recipe), build_run.build_objectives(recipe)).train()
    made = figures(7)
    module.compute(made).backward()
    whole = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    loss, parts = cached(module, made)
    assert parts.keys() == whole.keys() and len(whole) > 100
    for name, gradient in whole.items():
        assert float((parts[name] - gradient).norm() / gradient.norm().clamp_min(1e-12)) < 1e-4, name
    assert np.isfinite(float(loss))


def figures(count: int) -> Batch:
    """Images of noise; two are of one article and two others have one caption."""
    said = [f"Figure {0 if i == 5 else i}. " + "Axial CT of the liver. " * (1 + i % 3) for i in range(count)]
    said[1] = said[0]
    texts = TextBatch.of([[Unit(UNIT_KINDS.index("caption"), t, text_identity(t))] for t in said], BPE(77))
    images = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    patients = torch.tensor([0, 1, 2, 2, *range(4, count)])
    rows = torch.arange(count)
    return Batch(0, rows, [str(i) for i in rows.tolist()], patients, images, torch.zeros(count, 0), (), texts)
