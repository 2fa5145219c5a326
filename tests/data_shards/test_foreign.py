"""Foreign tars as a shard set: batches, damage, the index in the cache, building our own shards from them."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards import DataError
from data_shards.batch import Batch
from data_shards.errors import DamagedError
from data_shards.foreign import ForeignShards
from data_shards.foreign.__main__ import main
from data_shards.make_study import StudyMaker
from data_shards.planar import apply_planar
from data_shards.preprocess import PlanarGeometry, View
from data_shards.reading import read_scan
from data_shards.shard_set import EncodedStudy, ShardSet, ShardWriter
from data_shards.sources.base import ScanFile
from data_shards.stream import Stream, ordered_pass
from data_shards.units import UnitPolicy
from tests.data_shards import foreign_tars as tars

GEOMETRY = PlanarGeometry(size=(12, 12))
CAPTIONS = UnitPolicy(report=False, captions=True)
LAYOUTS = tars.LAYOUTS


def tokenize(text: str) -> list[int]:
    return [1, *(ord(c) for c in text[:30]), 2]


def same(a: Batch, b: Batch) -> None:
    assert (a.step, a.keys, a.texts.lengths) == (b.step, b.keys, b.texts.lengths)
    assert torch.equal(a.images_BCDHW, b.images_BCDHW) and torch.equal(a.texts.tokens_T, b.texts.tokens_T)
    assert torch.equal(a.labels_BL.nan_to_num(9), b.labels_BL.nan_to_num(9)) and torch.equal(a.patient_B, b.patient_B)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_strangers_tar_streams_into_a_batch(published: dict[str, Path], cache: Path, layout: str) -> None:
    shards = ForeignShards.open(published[layout], cache=cache)
    assert shards.layout == layout

    def batches(workers: int) -> list[Batch]:
        return list(
            Stream(
                shards, shards.rows("train"), GEOMETRY, View("random", scale=(0.5, 1.0)), tokenize, CAPTIONS,
                batch_size=3, seed=5, steps=4, workers=workers, label_names=shards.label_names,
            )
        )  # fmt: skip

    reference = batches(0)
    assert [len(b) for b in reference] == [3] * 4 and reference[0].images_BCDHW.shape == (3, 3, 12, 12)
    assert all(len(b.texts.pair_unit_P) == 3 for b in reference)
    for one, other in zip(reference, batches(2), strict=True):
        same(one, other)
    (whole,) = ordered_pass(shards, np.array([2, 0]), GEOMETRY, View("centre"), tokenize, CAPTIONS, 4)
    assert whole.keys == [shards.key(2), shards.key(0)]
    want = apply_planar(shards.scan(2)[0], GEOMETRY, View("centre"))
    assert torch.equal(whole.images_BCDHW[0], torch.from_numpy(want))


def test_reports_are_units_too(tmp_path: Path, cache: Path) -> None:
    text = b"CR of the chest._mimiccxr__mimiccxr_FINDINGS: Lungs are clear. IMPRESSION: Normal."
    members = [("0.jpg", tars.picture(0)), ("0.txt", text)]
    shards = ForeignShards.open(tars.write_tar(tmp_path / "x.tar", members), cache=cache)
    (batch,) = ordered_pass(shards, shards.rows(), GEOMETRY, View("centre"), tokenize, UnitPolicy(sentences=True), 1)
    assert len(batch.texts.lengths) == 3, "the report and two sentences"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_interface_is_that_of_a_shard_set(published: dict[str, Path], cache: Path, layout: str) -> None:
    shards = ForeignShards.open(published[layout], cache=cache)
    ours = {name for name in vars(ShardSet) if not name.startswith("_")} - {"open", "unreadable_rows"}
    assert ours <= set(dir(shards))
    row = len(shards) - 1
    image, words = shards.members(row)
    assert shards.member(row, image) == shards.member(row, image.partition(".")[2]) == shards.scan(row)[0]
    assert json.loads(shards.member(row, words)) == shards.json(row) == json.loads(shards.member(row, "json"))
    Image.open(io.BytesIO(shards.scan(row)[0])).load()
    info = shards.json(row)
    assert info["patient"] == shards.patient(row) and info["scans"][0]["modality"] == shards.modality(row)
    assert len({shards.key(r) for r in shards.rows()}) == len(shards) == sum(shards.manifest["splits"].values())
    assert shards.labels().shape == (len(shards), len(shards.label_names))
    for wrong in (lambda: shards.member(row, "cls"), lambda: shards.scan(row, 1)):
        with pytest.raises(DataError, match=r"has no member|has 1 scan"):
            wrong()


class Mean(torch.nn.Module):
    """Mean colours against counts of letters."""

    def encode_image(self, images: torch.Tensor) -> Any:
        from encoders.features import ImageFeatures

        x = images.flatten(2).mean(2)
        return ImageFeatures(x, torch.arange(len(x)), x)

    def encode_text(self, batch: Any) -> Any:
        from encoders.features import TextFeatures

        parts = torch.split(batch.tokens_T.float(), batch.lengths)
        units = torch.stack([torch.stack([part.mean(), part.std(), part.max()]) for part in parts])
        return TextFeatures(units, batch.kind_U, batch.hash64_U, batch.pair_sample_P, batch.pair_unit_P)


def test_foreign_tars_are_embedded_and_scored(published: dict[str, Path], cache: Path) -> None:
    from eval_zero_shot import Finding, Task
    from eval_zero_shot.classification import score_classification
    from eval_zero_shot.embedding import embed_images
    from eval_zero_shot.inputs import Inputs

    shards = ForeignShards.open(published["clip_benchmark"], cache=cache)
    rows = shards.rows("train")
    found = embed_images(Mean(), shards, rows, GEOMETRY, View("centre"))
    assert list(found.keys) == [shards.key(r) for r in rows] and np.isfinite(found.features_ND).all()
    task = Task(name="toy", classes={"pneumonia": Finding(positive=("pneumonia",), negative=("normal lung",))})
    inputs = Inputs.of(Mean(), tokenize, shards, GEOMETRY, View("centre"))
    scored = score_classification(inputs, rows, task, split="train", resamples=0)
    assert (scored.studies, scored.main.value is not None) == (5, True)
    assert scored.provenance["data_sha256"] == shards.manifest_hash


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_shards_are_built_from_foreign_tars(
    published: dict[str, Path], cache: Path, tmp_path: Path, layout: str
) -> None:
    shards = ForeignShards.open(published[layout], cache=cache)
    with ShardWriter(tmp_path / "out") as writer:
        for row in shards.listing().rows:
            made = StudyMaker(salt="x", source=layout)(row)
            assert isinstance(made, EncodedStudy), made
            writer.write(made)
    built = ShardSet.open(tmp_path / "out")
    assert (len(built), built.label_names) == (len(shards), tuple(sorted(shards.label_names)))
    for row in range(len(built)):
        was, now = shards.json(row), built.json(row)
        assert shards.scan(row)[0] == built.scan(row)[0]
        for field in ("texts", "labels", "licence", "split", "meta"):
            assert was[field] == now[field]
        assert was["scans"][0]["ext"] == now["scans"][0]["ext"]
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]


def test_an_image_in_a_tar_is_read_by_its_place(published: dict[str, Path], cache: Path) -> None:
    shards = ForeignShards.open(published["unimed"], cache=cache)
    (file,) = shards.listing().rows[1].scans
    assert file.ext == "png" and read_scan(file).image == shards.scan(1)[0]
    assert file.at is not None
    with pytest.raises(DataError, match="cannot be decoded"):
        read_scan(ScanFile(file.path, at=(file.at[0], 100), ext="png"))


def test_tars_are_read_once_and_their_folder_is_not_written(published: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published["unimed"], tmp_path / "tars"))
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    first = ForeignShards.open(folder, cache=tmp_path / "cache")
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert len(made) == 2 and all(name.endswith(".arrow") for name in made)
    assert all(p.stat().st_mode & 0o077 == 0 for p in (tmp_path / "cache", *(tmp_path / "cache").iterdir()))
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    again = ForeignShards.open(moved, cache=tmp_path / "cache")
    assert made == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert again.manifest_hash == first.manifest_hash and [again.key(0)] == [first.key(0)]
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in moved.iterdir()}


def test_a_changed_tar_is_scanned_again(tmp_path: Path) -> None:
    path, cache = tars.unimed(tmp_path / "x.tar", 4), tmp_path / "cache"
    first = ForeignShards.open(path, cache=cache)
    tars.unimed(path, 6)
    grown = ForeignShards.open(path, cache=cache)
    assert (len(first), len(grown)) == (4, 6) and first.manifest_hash != grown.manifest_hash
    flipped = bytearray(path.read_bytes())
    place = flipped.index(b"organ 2")
    flipped[place : place + 7] = b"organ 9"
    path.write_bytes(flipped)
    os.utime(path, ns=(1, 1))
    assert "organ 9" in ForeignShards.open(path, cache=cache).json(2)["texts"]["captions"][0]["text"]


def test_verify_sees_a_change_that_size_and_time_hide(tmp_path: Path) -> None:
    path, cache = tars.unimed(tmp_path / "x.tar", 120), tmp_path / "cache"
    shards = ForeignShards.open(path, cache=cache, verify=True)
    ForeignShards.open(path, cache=cache, verify=True)
    at = int(shards.sidecars[0].offset[60]) + 100
    assert 1 << 16 < at < path.stat().st_size - (1 << 16), "the change lies between the ends"
    state = path.stat()
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    plain = ForeignShards.open(path, cache=cache)
    assert ForeignShards.open(path, cache=cache).manifest_hash == plain.manifest_hash and len(plain) == 120
    with pytest.raises(DataError, match=r"x\.tar has other bytes"):
        ForeignShards.open(path, cache=cache, verify=True)


def test_published_tars_are_selected_by_licence_and_concept(
    published: dict[str, Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data_shards.select import main as select
    from data_shards.selection import index_table

    shards = ForeignShards.open(published["biomedica"])
    table = index_table(shards)
    licences = set(table["licence"].to_pylist())
    assert {"licence", "source"} < set(table.column_names) and any(n.startswith("meta:") for n in table.column_names)
    one = sorted(licences)[0]
    assert (
        select([str(published["biomedica"]), "--where", f"licence = '{one}'", "--out", str(tmp_path / "s.json")]) == 0
    )
    assert f"{table['licence'].to_pylist().count(one)} of {len(shards)} samples" in capsys.readouterr().out


def test_tars_come_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 2, 1):
        tars.unimed(tmp_path / "in" / f"{i}.tar", i)
    shards = ForeignShards.open(tmp_path / "in", cache=tmp_path / "cache", layout="unimed")
    assert [tar.name for tar in shards.tars] == ["1.tar", "2.tar", "10.tar"]
    pattern = ForeignShards.open(str(tmp_path / "in" / "*.tar"), cache=tmp_path / "cache", layout="unimed")
    assert pattern.manifest_hash == shards.manifest_hash


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    path, cache = tars.unimed(tmp_path / "x.tar"), tmp_path / "cache"
    first = ForeignShards.open(path, cache=cache)
    (sidecar,) = cache.iterdir()
    whole = sidecar.read_bytes()
    sidecar.write_bytes(whole[:500])
    assert ForeignShards.open(path, cache=cache).manifest_hash == first.manifest_hash
    body = bytearray(whole)
    body[body.index(b"organ 3")] ^= 1
    sidecar.write_bytes(body)
    with pytest.raises(DataError, match="cached index of foreign tars is damaged"):
        ForeignShards.open(path, cache=cache).json(3)


def test_opens_at_the_same_time_agree(published: dict[str, Path], tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ForeignShards.open(published["biomedica"], cache=tmp_path / "c"), range(8)))
    assert len({shards.manifest_hash for shards in found}) == 1
    assert {p.suffix for p in (tmp_path / "c").iterdir()} == {".arrow"}


@pytest.mark.full
def test_processes_that_open_at_the_same_time_agree(published: dict[str, Path], tmp_path: Path) -> None:
    code = "import sys; from data_shards.foreign import ForeignShards as F; "
    code += "print(F.open(sys.argv[1], cache=sys.argv[2]).manifest_hash)"
    words = [sys.executable, "-c", code, str(published["biomedica"]), str(tmp_path / "c")]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    (found,) = {process.communicate(timeout=120)[0].strip() for process in running}
    by_two = ForeignShards.open(published["biomedica"], cache=tmp_path / "other", workers=2)
    assert found == by_two.manifest_hash


def test_a_pickled_set_reads_on(published: dict[str, Path], cache: Path) -> None:
    shards = ForeignShards.open(published["img2dataset"], cache=cache)
    shards.scan(0)
    again = pickle.loads(pickle.dumps(shards))
    assert again.scan(1)[0] == shards.scan(1)[0] and again.json(1) == shards.json(1)


def told(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_says_what_is_there(
    published: dict[str, Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = told(capsys, published["biomedica"], "--cache", cache)
    assert code == 0 and "biomedica: their json has image_panel_type" in out and "10 of" in out
    assert "CC BY 8, CC BY-NC 2" in out and "10 .jpg" in out and "SECRET" not in out
    code, out, _ = told(capsys, published["clip_benchmark"], "--cache", cache)
    assert code == 0 and "normal lung, pneumonia" in out and "test 3, train 5" in out
    path = tars.unimed(tmp_path / "x.tar")
    path.write_bytes(path.read_bytes()[:4000])
    code, _, err = told(capsys, path, "--cache", cache)
    assert code == 1 and "x.tar, member" in err and "--max-damaged 1" in err
    code, out, _ = told(capsys, path, "--cache", cache, "--max-damaged", 1)
    assert code == 0 and "1 left out" in out


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    """Tars are many, descriptors few: of 90 tars at most 64 stay open, and a machine's limit costs no sample."""
    import resource

    for i in range(90):
        tars.img2dataset(tmp_path / "many" / f"{i:05d}.tar", 1)
    shards = ForeignShards.open(tmp_path / "many", cache=tmp_path / "cache")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for row in range(len(shards)):
        shards.scan(row)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 65
    fresh = ForeignShards.open(tmp_path / "many", cache=tmp_path / "cache")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) - 1, hard))
    try:
        with pytest.raises(DataError, match="Too many open files") as caught:
            [fresh.scan(row) for row in range(len(fresh))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not isinstance(caught.value, DamagedError)


def test_a_batch_says_which_samples_have_the_same_captions(tmp_path: Path) -> None:
    """UniMed-CLIP's tars hold no label: the captions of a class tell it."""
    words = ["CT of the liver._radimagenet_A liver in CT._radimagenet_", "MR of a knee._radimagenet_", "A figure."]
    of = [0, 1, 0, 2, 1, 0]
    members = [(f"{i}.jpg", tars.picture(i)) for i in range(6)] + [
        (f"{i}.txt", words[k].encode()) for i, k in enumerate(of)
    ]
    shards = ForeignShards.open(tars.write_tar(tmp_path / "x.tar", sorted(members)), cache=tmp_path / "cache")
    units, geometry = UnitPolicy(report=False, captions=True), PlanarGeometry(size=(16, 16))
    view = View("centre", (16, 16))
    (batch,) = ordered_pass(shards, np.arange(6), geometry, view, lambda text: list(text.encode()), units, 6)
    listed = batch.captions_B.tolist()
    assert [[a == b for b in listed] for a in listed] == [[a == b for b in of] for a in of]
