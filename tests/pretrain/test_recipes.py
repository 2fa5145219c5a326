"""Every packaged recipe, made small by --smoke, from data to a release that loads; their headers' commands work."""

from __future__ import annotations

import csv
import math
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import nibabel
import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

import encoders
from data_shards import build
from data_shards.captions import load_templates
from data_shards.schema import Scan, Study, Texts
from data_shards.shard_set import ShardSet, ShardWriter
from encoders.loading import Loaded
from pretrain import fit
from pretrain.config import load_recipe, packaged
from pretrain.objectives import find_objective
from tests.data_shards.foreign_tars import picture, write_tar

# The quickstart, and systems of others.
PHANTOM = {"ct3d.yaml": (3, 56, 64, 80), "merlin.yaml": (1, 160, 224, 224), "velvet_med.yaml": (1, 96, 96, 96)}
REAL = {"ct3d_real.yaml": "shards/ct", "xray2d.yaml": "shards/xray"}
TARS = ("unimed_clip.yaml",)
ELSEWHERE = ("bmc_clip.yaml",)  # test_bmc_clip
FULL_SIZE = ("ct3d_base.yaml", "ct3d_large.yaml")
ALONE = ("lvm_med.yaml",)  # image towers without texts


def test_every_packaged_recipe_is_tried_here() -> None:
    assert set(packaged()) == {*PHANTOM, *REAL, *TARS, *ELSEWHERE, *FULL_SIZE, *ALONE, "biomed2d.yaml"}


@pytest.mark.parametrize(
    "name", ["ct3d.yaml", *(pytest.param(name, marks=pytest.mark.full) for name in PHANTOM if name != "ct3d.yaml")]
)
def test_a_recipe_on_phantoms(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(["--config", name, "--smoke", "--output.root", str(tmp_path), "--output.run", "run",
                     "--data.cache", str(tmp_path / "cache")]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "phantom: run" in said
    _load_as_told(said, encoders_first=True, size=PHANTOM[name])


SMALL = "--model.image.name resnet10t --data.geometry.size [64,64] --train.batch_size 6 --data.source.studies 12"
SMALL += " --data.train_view.size [64,64] --data.eval_view.size [64,64]"


@pytest.mark.parametrize("words", [SMALL, pytest.param("", marks=pytest.mark.full)], ids=["small", "as it is"])
@pytest.mark.parametrize("name", ALONE)
def test_a_recipe_without_texts(name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit.main(["--config", name, "--smoke", "--output.root", str(tmp_path), "--output.run", "run",
                     "--data.cache", str(tmp_path / "cache"), *words.split()]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "loss/graph_matching," in (tmp_path / "run" / "metrics.csv").read_text()
    lines = [line.strip() for line in said.partition("load it with plain timm:")[2].splitlines()]
    code = [line for line in lines if line.startswith(("import", "model =", "release ="))]
    assert len(code) == 4 and "encoders" not in code[0]
    names: dict[str, object] = {}
    exec("\n".join(code), names)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = names["model"].eval()(images), names["release"].model(images)  # type: ignore[attr-defined]
    assert torch.equal(theirs, ours) and ours.shape == (1, 512 if words else 2048)


@pytest.mark.parametrize("name", list(REAL))
def test_a_recipe_for_your_own_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (_made_up_scans if name == "ct3d_real.yaml" else _made_up_films)(tmp_path)
    _build_and_train(name, 10, capsys)


@pytest.mark.parametrize("name", list(REAL))
def test_a_recipe_on_real_data(
    name: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "ct3d_real.yaml":
        root = shared_data / "openkbp_ct"
        columns = {"findings": "findings_visible", "impression": "impression", "patient": "volume"}
        _table(root / "pairs.csv", columns, lambda row: root / "ct" / f"{row['volume']}.nii.gz")
    else:
        root = shared_data / "hannover_cxr"
        columns = {"report": "text_templated", "patient": "patient"}
        _table(root / "pairs.csv", columns, lambda row: root / "images" / row["image"])
    _build_and_train(name, 20, capsys)


@pytest.mark.full
@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_recipe_at_full_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the smallest towers, at the real size of the volumes."""
    monkeypatch.chdir(tmp_path)
    _made_up_scans(tmp_path)
    words = "--source table.csv --out shards/ct-rate --text-columns findings,impression --val-fraction 0.2"
    assert build.main(words.split()) == 0
    assert fit.main(["--config", name, "--smoke", "--output.run", "run", "--evaluate.task", "null"]) == 0
    logged = Path("runs/run/metrics.csv").read_text()
    for term in ("contrastive0", "sentence", "contrastive2", "masked_image", "distillation"):
        assert f"loss/{term}," in logged
    _load_as_told(capsys.readouterr().out, encoders_first=True, size=(3, 112, 336, 336))


def test_unimed_clip_on_tars_like_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirteen parts of few samples: smoke weights and tokenizer need no network, classes are told by captions."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("unimed_clip.yaml", ["data.source={kind: tars, path: .}"])
    assert recipe.model.text.hf_name and recipe.model.image.pretrained == "metaclip_400m"
    sources = yaml.safe_load(resources.files("configs").joinpath("unimed_clip.yaml").read_text())["data"]["source"]
    for number, part in enumerate(sources["sources"]):
        join, members = JOINS.get(part["name"], ""), []
        for i in range(6):
            words = [f"{part['name']} finding {i % 3}, wording {k}." for k in range(10)] if join else [f"Figure {i}."]
            members += [(f"{i}.jpg", picture(10 * number + i)), (f"{i}.txt", join.join(words).encode())]
        write_tar(Path(part["path"]) / "dataset-000000.tar", members)
    words = ["--config", "unimed_clip.yaml", "--smoke", "--output.run", "run", "--data.cache", "cache"]
    assert fit.main(words) == 0
    said = capsys.readouterr().out
    by_source, by_modality = (line for line in said.splitlines() if line.startswith("drawn"))
    assert all(f"{part['name']} " in by_source for part in sources["sources"])
    assert all(f"{modality} " in by_modality for modality in ("OT", "CR", "SM", "OP"))
    _load_as_told(said, encoders_first=False, size=(3, 224, 224))
    original = "[{name: contrastive, units: [caption], positives: own}]"
    words += ["--data.source.mix", "proportional", "--data.source.temperature", "null", "--data.source.by", "source"]
    words += ["--data.source.batches", "mixed", "--objectives", original, "--train.batch_size", "4"]
    assert fit.main(words) == 0


def test_biomed2d_on_reports_and_labels_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = list(load_templates("public_images").classes)
    of_source = {"xray": labels[:2], "pneumonia": labels[2:3], "slices": labels[3:]}
    for number, (source, names) in enumerate(of_source.items()):
        with ShardWriter(tmp_path / "shards" / "images" / source) as writer:
            for i in range(24):
                scan = Scan(image=picture(100 * number + i), modality="OT", ext="jpg", unit="arbitrary")
                texts = Texts(report="A film. No lines." if source == "xray" else "")
                key, split = f"{number:08x}{i:08x}", ("train", "val", "test")[i // 8]
                told = {name: (i + k) % 2 for k, name in enumerate(names)}
                writer.write(Study(key, key, split, (scan,), texts, told))
    assert fit.main(["--config", "biomed2d.yaml", "--smoke", "--output.run", "run"]) == 0
    said = capsys.readouterr().out
    assert all(f"{label} " in said for label in labels), "every finding is scored, on the images that know it"
    logged = Path("runs/run/metrics.csv").read_text()
    assert all(f"loss/{term}," in logged for term in ("contrastive0", "sentence", "contrastive2"))
    _load_as_told(said, encoders_first=False, size=(3, 64, 64))

    more = ["--objectives.3", "{name: simclr, weight: 0.1}", "--finish", "{interpolate_with: start}"]
    assert fit.main(["--config", "biomed2d.yaml", "--smoke", "--output.run", "more", *more]) == 0
    assert "loss/simclr," in Path("runs/more/metrics.csv").read_text() and Path("runs/more/base").is_dir()


JOINS = {
    "radimagenet": "_radimagenet_", "chexpert": "_chexpert_", "chestxray8": "_chestxray8_", "openi": "_openi_",
    "mimic_cxr": "_mimiccxr_", "retina1": "_all_retina_merged_", "retina2": "_all_retina_merged_", "retina3": "_dr_",
}  # fmt: skip


def _build_and_train(name: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    """In the current folder, from table.csv."""
    header = resources.files("configs").joinpath(name).read_text().partition("\nname:")[0]
    lines = re.sub(r"\\\n#", "", header).splitlines()
    (words,) = (shlex.split(line.removeprefix("#")) for line in lines if "data_shards.build" in line)
    assert words[:3] == ["python", "-m", "data_shards.build"]
    assert build.main(words[3:]) == 0
    assert len(ShardSet.open(Path(REAL[name]))) >= least

    assert fit.main(["--config", name, "--smoke", "--output.run", "never"]) == 1  # its task is for other data
    said = capsys.readouterr().err
    assert "--evaluate.task null" in said and not list(Path().glob("**/never"))
    assert fit.main(["--config", name, "--smoke", "--output.run", "run", "--evaluate.task", "null"]) == 0
    planar = name == "xray2d.yaml"
    size = (3, 128, 128) if planar else (4, 64, 64, 112)
    _load_as_told(capsys.readouterr().out, encoders_first=not planar, size=size)


def _load_as_told(said: str, encoders_first: bool, size: tuple[int, ...]) -> None:
    """The lines that a run prints at its end load its release, and both ways give one model."""
    lines = [line.strip() for line in said.partition("load it with plain open_clip:")[2].splitlines()]
    code = [line for line in lines if line.startswith(("import", "model, _", "release ="))]
    assert len(code) == 4 and ("encoders" in code[0]) == encoders_first
    names: dict[str, object] = {}
    exec("\n".join(code), names)
    plain, release = names["model"], names["release"]
    assert isinstance(plain, open_clip.CustomTextCLIP) and isinstance(release, Loaded)
    images = torch.randn(1, *size)
    with torch.no_grad():
        theirs = plain.eval().encode_image(images)
        ours = release.model.eval().encode_image(images).study_BD
    assert torch.equal(ours, theirs)
    if not encoders_first:
        check = [*code[:2], "import sys", "assert 'encoders' not in sys.modules", "print(model.logit_scale.item())"]
        done = subprocess.run([sys.executable, "-c", "; ".join(check)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(plain.logit_scale.item())


def _table(source: Path, columns: dict[str, str], image: object, count: int = 24) -> None:
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    with Path("table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", *columns])
        for i, row in enumerate(rows):
            writer.writerow([f"s{i}", image(row), *(row[column] for column in columns.values())])  # type: ignore[operator]


def _made_up_scans(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "patient", "findings", "impression"])
        for i in range(10):
            hu = rng.integers(-1000, 1000, (30, 28, 20)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(hu, np.diag([4.0, 4.0, 6.0, 1.0])), folder / f"{i}.nii.gz")
            writer.writerow([f"s{i}", f"{i}.nii.gz", f"p{i}", f"A nodule of {i} mm. No effusion.", "Nodule."])


def _made_up_films(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "patient", "report"])
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (90, 80), np.uint8)).save(folder / f"{i}.png")
            writer.writerow([f"s{i}", f"{i}.png", f"p{i}", f"Film {i}. The heart is normal."])


def test_velvet_med_at_small_size(tmp_path: Path) -> None:
    """Every term on a Swin with its pyramid, and what is released of them."""
    size = "[32, 32, 32]"
    words = ["--config", "velvet_med.yaml", "--smoke", "--output.root", str(tmp_path), "--output.run", "run"]
    words += ["--data.cache", str(tmp_path / "cache"), "--evaluate.task", "null", "--train.batch_size", "4"]
    words += ["--data.train_view.size", size, "--data.eval_view.size", size]
    words += ["--model.image.name", "swin3d_tiny.i-32x32x32_c-1_w-12", "--model.image.image_size", "32"]
    words += ["--model.report.width", "48", "--model.report.layers", "2", "--model.report.fusion_layers", "1"]
    words += ["--model.report.feedforward", "64"]
    words += ["--model.text.width", "64", "--model.text.layers", "1", "--model.text.heads", "2"]
    assert fit.main(words) == 0
    rows = [row.split(",") for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    terms = ("contrastive", "report_contrastive", "hierarchical2", "hierarchical3", "matching", "masked_language5")
    terms += ("masked_language6", "simclr", "rotation", "inpainting")
    assert {name for _, name, _ in rows if name.startswith("loss/")} == {f"loss/{name}" for name in terms}
    assert all(math.isfinite(float(value)) for _, name, value in rows if name.startswith("loss/"))
    release = encoders.load(str(tmp_path / "run" / "release"))
    assert set(release.heads) >= {"report", "local_level1_words", "local_level2_sentences"}
    said = release.heads["report"].encode([["Small nodule.", "No effusion."]], release.tokenizer)
    assert said.report_RD.shape == (1, 512) and said.sentences_SD.shape == (2, 512) and len(said.words_WD) == 6


def test_the_original_of_velvet_med_has_every_repair_switched_off() -> None:
    """The command of docs/recipes.md; what it changes is told by name."""
    said = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    [command] = re.findall(r"pretrain\.fit (--config velvet_med\.yaml --train\.devices.*?)```", said, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))[2:]
    keys = [f"{key.removeprefix('--')}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    keys = [key for key in keys if not key.startswith("data.source=")]  # no such shards here
    ours, theirs = load_recipe("velvet_med.yaml"), load_recipe("velvet_med.yaml", keys)
    assert theirs.data.geometry.windows == ((0, 255),)
    for theirs_of in theirs.objectives[1:]:
        options = find_objective(theirs_of.name).Options(**theirs_of.options)
        assert not getattr(options, "gather", False) and not getattr(options, "exclude_related", False), theirs_of.name
    assert theirs.objectives[0].weight == theirs.optim.lr_multipliers.text == 0
    pairs = zip(ours.objectives, theirs.objectives, strict=True)
    assert [n for n, (one, other) in enumerate(pairs) if one != other] == [0, 1, 2, 3, 4, 7]


def test_merlin_at_small_size(tmp_path: Path) -> None:
    """Both terms in both kinds of batch, and the head of labels in the release."""
    size = "[32, 48, 48]"
    words = ["--config", "merlin.yaml", "--smoke", "--output.root", str(tmp_path), "--output.run", "run"]
    words += ["--data.cache", str(tmp_path / "cache"), "--evaluate.task", "null", "--train.batch_size", "4"]
    words += ["--data.geometry.spacing_mm", "[12, 9, 9]", "--data.train_view.size", size, "--data.eval_view.size", size]
    words += ["--model.image.name", "voxvit_tiny.p-16x16x16_i-32x48x48_c-1_l-1", "--model.image.image_size", "48"]
    assert fit.main(words) == 0
    rows = [row.split(",") for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert {(step, name) for step, name, _ in rows if name.startswith("loss/")} == {
        (step, f"loss/{name}") for step in ("1", "2") for name in ("contrastive", "labels")
    }
    release = encoders.load(str(tmp_path / "run" / "release"))
    assert "nodule_left" in release.heads["labels"].labels
    with torch.no_grad():
        trunk = release.model.encode_image(torch.zeros(1, 1, 32, 48, 48), trunk=True).trunk_SC
        assert release.heads["labels"](trunk).shape == (1, len(release.heads["labels"].labels))
