"""`encoders.load`: model, preprocessing and tokenizer that are those of training, to the bit."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import encoders
from data_shards.build import main as build
from data_shards.errors import DataError
from data_shards.preprocess import Geometry, PlanarGeometry, View
from data_shards.shard_set import ShardSet
from data_shards.stream import Stream, UnitPolicy
from data_shards.volume import read_volume
from encoders.dual import DualEncoder
from encoders.errors import ReleaseError
from encoders.folder import seal
from encoders.preprocessing import Preprocess
from encoders.release import write_release


@pytest.fixture
def folder(released: tuple[Path, DualEncoder]) -> Path:
    return released[0]


def streamed(table: list[dict[str, str]], where: Path, geometry: Any, view: View, tokenize: Any) -> torch.Tensor:
    """Build shards from a table and stream their one batch in the given view."""
    with (where / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    assert (
        build(["--source", str(where / "table.csv"), "--out", str(where / "shards"), "--text-columns", "report"]) == 0
    )
    shards = ShardSet.open(where / "shards")
    stream = Stream(
        shards, shards.rows("train"), geometry, view, tokenize, UnitPolicy(True, False, False, False, False, 8),
        batch_size=len(table), seed=0, steps=1,
    )  # fmt: skip
    (batch,) = list(stream)
    return batch.images_BCDHW


def test_a_nifti_is_what_the_stream_made_of_it(folder: Path, nifti: Path, tmp_path: Path) -> None:
    loaded = encoders.load(folder)
    row = {"id": "s1", "image": nifti.name, "patient": "p1", "split": "train", "report": "No effusion."}
    images = streamed([row], nifti.parent, loaded.geometry, loaded.view, loaded.tokenizer)
    ours = loaded.preprocess(nifti)
    assert ours.shape == (2, 8, 16, 16) and ours.dtype == torch.float32 and ours.std() > 0.1
    assert torch.equal(images[0], ours)
    assert torch.equal(loaded.preprocess(str(nifti)), ours)
    scan = read_volume(nifti)
    assert torch.equal(loaded.preprocess(scan), ours)
    for array in (scan.array, scan.array.astype(np.float32), torch.from_numpy(scan.array)):
        assert torch.equal(loaded.preprocess(array, spacing_mm=scan.spacing_mm), ours)


def test_real_ct_is_what_the_stream_made_of_it(folder: Path, shared_data: Path, tmp_path: Path) -> None:
    scans = sorted((shared_data / "misc_ct").rglob("*.nii.gz"))[:2]
    if not scans:
        pytest.skip("no real CT in ../shared/data/misc_ct")
    loaded = encoders.load(folder)
    rows = [
        {"id": str(i), "image": str(path), "patient": str(i), "split": "train", "report": f"Scan {i}."}
        for i, path in enumerate(scans)
    ]
    images = streamed(rows, tmp_path, loaded.geometry, loaded.view, loaded.tokenizer)
    ours = torch.stack([loaded.preprocess(path) for path in scans])
    assert torch.equal(images, ours) or torch.equal(images, ours.flip(0))


def test_an_image_is_what_the_stream_made_of_it(tmp_path: Path, planar: PlanarGeometry) -> None:
    from PIL import Image

    deep = np.random.default_rng(0).integers(100, 4000, (50, 71), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep // 16).astype(np.uint8)).save(tmp_path / "grey.png")
    preprocess, view = Preprocess(planar, View("centre")), View("centre")
    names = ("deep", "grey")
    rows = [{"id": n, "image": f"{n}.png", "patient": n, "split": "train", "report": f"Image {n}."} for n in names]
    images = streamed(rows, tmp_path, planar, view, lambda text: [1, len(text), 2])
    ours = torch.stack([preprocess(tmp_path / f"{n}.png") for n in names])
    assert torch.equal(images, ours) or torch.equal(images, ours.flip(0))
    for name, expected in zip(names, ours, strict=True):
        picture = Image.open(tmp_path / f"{name}.png")
        for given in ((tmp_path / f"{name}.png").read_bytes(), picture, np.asarray(picture)):
            assert torch.equal(preprocess(given), expected)


def test_preprocess_travels_to_workers(folder: Path, nifti: Path) -> None:
    preprocess = encoders.load(folder).preprocess
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))(nifti), preprocess(nifti))


@pytest.mark.parametrize("given", [np.zeros((4, 5)), np.zeros((2, 4, 5, 6)), np.zeros((4, 4, 4), bool), 3, b"png"])
def test_other_inputs_are_refused(folder: Path, given: Any) -> None:
    with pytest.raises(ReleaseError, match="it takes volumes: a NIfTI"):
        encoders.load(folder).preprocess(given, spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("given", [np.zeros((4, 5, 6), np.int16), np.zeros((4, 5), np.float32), 3])
def test_other_images_are_refused(planar: PlanarGeometry, given: Any) -> None:
    with pytest.raises(ReleaseError, match="it takes images: a path"):
        Preprocess(planar, View("centre"))(given)


def test_arrays_need_a_spacing_and_numbers(folder: Path) -> None:
    preprocess = encoders.load(folder).preprocess
    with pytest.raises(DataError, match="no spacing_mm"):
        preprocess(np.zeros((9, 9, 9), np.int16))
    with pytest.raises(ReleaseError, match="NaN"):
        preprocess(np.full((9, 9, 9), np.nan), spacing_mm=(1, 1, 1))


def test_loading_leaves_random_states_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    encoders.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision(folder: Path) -> None:
    loaded = encoders.load(folder, precision="bf16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert not loaded.model.training
    with pytest.raises(ReleaseError, match="precision 'int8' is unknown"):
        encoders.load(folder, precision="int8")  # type: ignore[arg-type]


def test_what_is_stated(released: tuple[Path, DualEncoder], geometry: Geometry, view: View) -> None:
    folder, dual = released
    loaded = encoders.load(folder)
    assert (loaded.geometry, loaded.view, loaded.kind, loaded.heads) == (geometry, view, "clip", {})
    assert loaded.geometry.identity == loaded.config["volume_cfg"]["geometry_sha256"] == geometry.identity
    assert loaded.model.model_cfg == loaded.config["model_cfg"]
    assert loaded.tokenizer("normal") == [49406, 5967, 49407]
    assert {k: v.tolist() for k, v in dual.clip.state_dict().items() if v.numel() == 1} == {
        k: v.tolist() for k, v in loaded.model.clip.state_dict().items() if v.numel() == 1
    }


def edited(folder: Path, change: Any) -> Path:
    """The release with a changed config, sealed again: what an attacker or a wrong program could write."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    seal(folder, "clip")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("volume_cfg"), "geometry and view of the release cannot be read"),
        (lambda c: c.update(schema_version=9), "schema version 9, this program reads 1"),
        (lambda c: c["volume_cfg"]["geometry"].update(spacing_mm=[1, 1, 1]), "differently than they were written"),
        (lambda c: c["volume_cfg"]["geometry"].update(gamma=2), "no field"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(in_chans=2), "cannot be built"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="voxvit_tiny.l-9"), "cannot be built"),
        (lambda c: c["model_cfg"]["vision_cfg"].update(timm_model_name="nobody_knows"), "cannot be built"),
        (lambda c: c["model_cfg"].pop("text_cfg"), "cannot be built"),
        (lambda c: c.pop("model_cfg"), "cannot be built"),
    ],
)
def test_configs_that_do_not_make_this_model(folder: Path, change: Any, said: str) -> None:
    with pytest.raises(ReleaseError, match=said):
        encoders.load(edited(folder, change))


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").write_bytes(b"PK\x03\x04 a pickle")
    seal(folder, "clip")
    with pytest.raises(ReleaseError, match="cannot be built"):
        encoders.load(folder)


def test_a_run_folder_leads_to_its_release(folder: Path) -> None:
    assert folder.name == "release"
    with pytest.raises(ReleaseError) as caught:
        encoders.load(folder.parent)
    assert f"did you mean {folder}?" in str(caught.value)


def test_a_planar_release(tmp_path: Path, make_dual: Any, planar: PlanarGeometry) -> None:
    dual = make_dual("resnet10t")
    folder = write_release(tmp_path / "r", dual.clip.state_dict(), dual.model_cfg, planar, View("centre"))
    loaded = encoders.load(folder)
    assert loaded.geometry == planar and "planar_cfg" in loaded.config
    assert loaded.config["preprocess_cfg"]["size"] == [32, 32]
