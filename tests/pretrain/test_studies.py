"""Studies of several volumes: windows as volumes, and series of a study read together, from data to release."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import encoders
from data_shards import build
from data_shards.geometry import Geometry, View
from data_shards.shard_set import ShardSet
from encoders.errors import ReleaseError
from encoders.release_config import check_input
from encoders.study_tokens import present_volumes
from eval_zero_shot import classify, embed
from eval_zero_shot.audit.altered import blank_values, corners_blanked, with_absent
from eval_zero_shot.outcome import read_results
from eval_zero_shot.report.pictures import on_picture
from pretrain import fit
from pretrain.config import ConfigError, load_recipe
from pretrain.objectives.masked_image import in_depth, patches
from pretrain.studies import build_data
from tests.pretrain.recipes import RECIPE

SERIES = 4  # of the largest study
TOWER = "voxvit_tiny.p-8x16x16_i-16x32x32_c-3_v-3_a-volume3_o-mean_l-3"
GEOMETRY = {"kind": "volume", "spacing_mm": [3.0, 3.0, 3.0], "windows": [[-1000, 1000]], "scans_per_study": 3}


def series_of(i: int) -> int:
    return 1 + i % SERIES


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set that data_shards.build makes of a table: 24 studies of one to four series."""
    folder = tmp_path_factory.mktemp("series")
    columns = [f"series{j}" for j in range(SERIES)]
    lines = [",".join(["id", "patient", "split", "report", "nodule", "effusion", *columns])]
    for i in range(24):
        rng, files = np.random.default_rng(i), []
        for j in range(series_of(i)):
            array = rng.integers(-900, 300, (20 + 4 * j, 24, 14)).astype(np.int16)  # x, y, z
            if i % 2 and j == series_of(i) - 1:
                array[8:14, 8:16, 4:9] = 900  # in the last series alone
            nibabel.save(nibabel.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0])), folder / f"s{i}-{j}.nii.gz")
            files.append(f"s{i}-{j}.nii.gz")
        split = "train" if i < 12 else "val" if i < 16 else "test"
        report = "There is a nodule." if i % 2 else "No nodule. The lungs are clear."
        cells = [f"study{i}", f"p{i}", split, report, str(i % 2), str(i // 2 % 2)]
        lines.append(",".join([*cells, *files, *[""] * (SERIES - len(files))]))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    words = ["--source", str(folder / "table.csv"), "--out", str(folder / "set"), "--image-columns", ",".join(columns)]
    assert build.main([*words, "--label-columns", "nodule,effusion"]) == 0
    return folder / "set"


@pytest.fixture(scope="module")
def trained(
    make_fit: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, series: Path, task_file: Path
) -> Any:
    runs = make_fit(tmp_path_factory.mktemp("studies"))
    objectives = [{"name": "sentence"}, {"name": "masked_image", "weight": 0.1}, {"name": "distillation"}]
    assert runs(
        "run", data__source={"kind": "shards", "path": str(series)}, data__geometry=GEOMETRY,
        model__image={"name": TOWER, "token_dropout": 0.5, "grad_checkpointing": True},
        evaluate__task=str(task_file), evaluate__final=True, objectives=objectives,
    ) == 0  # fmt: skip
    return runs


def test_series_of_a_study_are_its_volumes(trained: Any, series: Path) -> None:
    data = build_data(load_recipe(str(trained.folder("run") / "recipe.yaml")))
    from data_shards.order import Draw
    from data_shards.samples import Samples
    from data_shards.units import UnitPolicy

    def images(view: Any, *draws: Draw) -> np.ndarray:
        samples = Samples(data.shards, data.geometry, view, lambda _: [1, 2], UnitPolicy())
        return samples.batch(0, draws).images_BCDHW.numpy()

    shards = data.shards
    counts = [len(shards.members(row)) - 1 for row in range(len(shards))]
    assert sorted(counts) == sorted(series_of(i) for i in range(24))
    rows = [counts.index(n) for n in (1, 2, 3, 4)]
    seen = images(data.eval_view, *map(Draw, rows))
    assert seen.shape == (4, 3, 16, 32, 32)
    there = present_volumes(torch.from_numpy(seen), 3)
    assert there.sum(1).tolist() == [1, 2, 3, 3]
    for count, study in zip((1, 2, 3, 3), seen, strict=True):
        assert (study[count:] == -1).all() and (study[:count].reshape(count, -1).max(1) > -1).all()
    for row, study in zip(rows, seen, strict=True):  # in evaluation the first, each as it is alone
        loaded = encoders.load(trained.folder("run") / "release")
        for j in range(min(3, counts[row])):
            array, meta = shards.scan(row, j)
            alone = loaded.preprocess(array[:], spacing_mm=meta["spacing_mm"])
            assert np.array_equal(alone[0], study[j]) and (alone[1:] == -1).all()
    # In training a choice of four, another one another epoch, the same for the same seed and epoch.
    whole = rows[3]
    visits = [images(data.train_view, Draw(whole, (3, epoch))) for epoch in range(6)]
    again = [images(data.train_view, Draw(whole, (3, epoch))) for epoch in range(6)]
    assert all(np.array_equal(a, b) for a, b in zip(visits, again, strict=True))
    assert not np.array_equal(visits[0], visits[1])


def test_a_release_takes_studies(trained: Any, series: Path, tmp_path: Path) -> None:
    import open_clip

    folder = trained.folder("run") / "release"
    loaded, shards = encoders.load(folder), ShardSet.open(series)
    assert loaded.geometry.scans_per_study == 3 and loaded.geometry.channels == 3
    row = next(row for row in range(len(shards)) if len(shards.members(row)) == 3)
    scans = [shards.scan(row, i) for i in range(2)]
    x = loaded.preprocess([array[:] for array, _ in scans], spacing_mm=scans[0][1]["spacing_mm"])[None]
    with torch.no_grad():
        ours = loaded.model.encode_image(x).pooled_SD
        plain = open_clip.create_model(f"local-dir:{folder}").eval().encode_image(x)
        swapped = loaded.model.encode_image(x[:, [1, 0, 2]]).pooled_SD
    assert torch.allclose(ours, plain, atol=1e-6)
    assert not torch.allclose(ours, swapped, atol=1e-6)  # what a volume's number means was learnt
    with pytest.raises(ValueError, match="more than 3 scans"):
        loaded.preprocess([scans[0][0][:]] * 4, spacing_mm=(3.0, 3.0, 3.0))


def test_evaluators_read_studies_together(
    trained: Any, series: Path, task_file: Path, tmp_path: Path, capsys: Any
) -> None:
    release = str(trained.folder("run") / "release")
    words = ["--model", release, "--data", str(series), "--task", str(task_file), "--device", "cpu", "--no-cache"]
    found = {}
    for name, choice in (("own", []), ("every", ["--scans", "every"]), ("mean", ["--scans", "mean"])):
        assert classify.main([*words, "--resamples", "20", "--out", str(tmp_path / name), *choice]) == 0
        found[name] = read_results(tmp_path / name)[0]
    assert found["own"].provenance["scan_choice"] == "together" and found["own"].studies == 8
    read = [min(3, series_of(i)) for i in range(16, 24)]
    assert (found["own"].scans, found["every"].scans) == (sum(read), sum(series_of(i) for i in range(16, 24)))
    assert any("up to 3 of its scans" in note for note in found["own"].notes)
    capsys.readouterr()
    assert classify.main([*words, "--scans", "first", "--out", str(tmp_path / "first")]) == 1
    assert "reads up to 3 scans of a study together" in capsys.readouterr().err
    given = ["--model", release, "--input", str(series), "--out", str(tmp_path / "x.parquet"), "--device", "cpu"]
    assert embed.main([*given, "--view", "sliding"]) == 1
    assert "several scans of a study" in capsys.readouterr().err
    assert embed.main(given) == 0


def test_windows_as_volumes_on_phantoms(tmp_path: Path) -> None:
    name = "voxvit_tiny.p-8x16x16_i-56x64x80_c-3_v-3_o-mean_a-slice3_l-1"
    assert fit.main([
        "--config", "ct3d.yaml", "--smoke", "--output.root", str(tmp_path), "--output.run", "run",
        "--data.cache", str(tmp_path), "--evaluate.task", "null", "--model.image.name", name,
    ]) == 0  # fmt: skip
    tower = encoders.load(tmp_path / "run" / "release").model.clip.visual.trunk
    assert tower.tag.volumes == 3 and tower.patch_embed[0].weight.shape[1] == 1
    assert tower.volume_embed.abs().max() > 0


def test_volumes_one_above_another() -> None:
    x = torch.arange(2 * 4 * 4 * 2 * 2.0).view(2, 4, 4, 2, 2)  # two volumes of two windows
    found = patches(in_depth(x, 2), (2, 2, 2), normalise=False)
    each = torch.cat([patches(x[:, :2], (2, 2, 2), False), patches(x[:, 2:], (2, 2, 2), False)], dim=1)
    assert torch.equal(found, each)


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (["data.geometry.scans_per_study=2"], "scans_per_study", "write c-4_v-2"),
        (["data.geometry.scans_per_study=2", "i3d_resnet26.i-56x64x80_c-4"], "scans_per_study", "use a voxvit"),
        (["data.geometry.scans_per_study=2", "c-4_v-4_l-1"], "", ""),
        (["data.geometry.scans_per_study=2", "c-6_v-2"], "scans_per_study", "c-6"),
        (["data.geometry.scans_per_study=3", "c-6_v-2"], "scans_per_study", "cut across scans"),
        (["data.geometry.scans_per_study=0"], "scans_per_study", "at least 1"),
        (
            ["c-2_v-2_o-mean", 'objectives=[{"name": "contrastive"}, {"name": "inpainting"}]'],
            "objectives",
            "restores one",
        ),
        (
            ["data.geometry.scans_per_study=2", "c-4_v-2", 'objectives=[{"name": "attended"}]'],
            "objectives.0.name",
            "also those of volumes",
        ),
        (
            ["c-3_v-3", 'objectives=[{"name": "attended"}]'],
            "objectives.0.name",
            "absent or empty",
        ),
        (
            ["data.geometry.scans_per_study=2", "c-4_v-2", "data.eval_view={kind: sliding, size: [56, 64, 80]}"],
            "eval_view",
            "lie elsewhere",
        ),
        (["c-3_v-2"], "model.image.name", "v-2 does not divide c-3"),
    ],
)
def test_refusals(tmp_path: Path, words: list[str], key: str, said: str) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(RECIPE)
    given = []
    for word in words:
        if "=" not in word:
            name = word if "." in word else f"voxvit_tiny.p-8x16x16_i-56x64x80_{word}"
            word = f"model.image.name={json.dumps(name)}"
        given.append(word)
    if not said:
        load_recipe(str(path), given)
        return
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), given)
    assert key in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(
    ("tower", "scans", "said"),
    [("c-3_v-3", 1, "the geometry has 1 windows"), ("c-3", 3, "does not tell 3 scans"), ("c-6_v-2", 3, "of 3 scans")],
)
def test_a_release_of_another_number_of_scans_is_refused(tower: str, scans: int, said: str) -> None:
    geometry = Geometry(windows=((-1000.0, 1000.0),), scans_per_study=scans)
    with pytest.raises(ReleaseError, match=said):
        check_input(f"voxvit_tiny.p-8x16x16_i-16x32x32_{tower}", geometry, View("centre", (16, 32, 32)))


def test_identities_of_geometries_of_one_scan_are_what_they_were() -> None:
    assert "scans_per_study" not in Geometry().to_json()
    assert Geometry(scans_per_study=2).identity != Geometry().identity
    assert Geometry.from_json(Geometry(scans_per_study=2).to_json()).channels == 6


def test_maps_are_drawn_on_the_first_scan() -> None:
    def loaded(volumes: int, scans: int) -> Any:
        trunk = SimpleNamespace(tag=SimpleNamespace(volumes=volumes))
        model = SimpleNamespace(clip=SimpleNamespace(visual=SimpleNamespace(trunk=trunk)))
        return SimpleNamespace(model=model, geometry=SimpleNamespace(scans_per_study=scans))

    grid = np.arange(6 * 2 * 2.0 * 3).reshape(12, 2, 3)  # six volumes of two slices
    assert np.array_equal(on_picture(grid, loaded(1, 1)), grid)
    assert np.array_equal(on_picture(grid, loaded(6, 6)), grid[:2])
    assert np.array_equal(on_picture(grid, loaded(6, 1)), grid.reshape(6, 2, 2, 3).mean(0))
    assert np.array_equal(on_picture(grid, loaded(6, 3)), grid[:4].reshape(2, 2, 2, 3).mean(0))


def test_an_altered_study_lacks_what_it_lacked() -> None:
    geometry = Geometry(windows=((-1150.0, 350.0),), scans_per_study=2)  # air is above the low end
    blank = blank_values(geometry)
    crop = np.stack([np.zeros((2, 16, 16)), np.full((2, 16, 16), -1.0)]).astype(np.float32)
    changed = corners_blanked(crop, blank)
    assert len(blank) == 2 and changed[1].max() > -1
    kept = with_absent(changed, crop, geometry)
    assert (kept[1] == -1).all() and kept[0, 0, 0, 0] == blank[0] and kept[0, 0, 8, 8] == 0
