"""Layouts: what samples of each mean, how they are recognised, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DataError
from data_shards.foreign import ForeignShards
from data_shards.opening import tell_lost, with_text
from data_shards.privacy import hashed
from data_shards.sources import tar_samples
from data_shards.sources.layouts import JOINS, Parts, unimed
from data_shards.union import ShardUnion
from tests.data_shards import foreign_tars as tars


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_unimed_captions_and_true_extensions(tmp_path: Path, cache: Path) -> None:
    shards = ForeignShards.open(tars.unimed(tmp_path / "in" / "dataset-000001.tar"), cache=cache)
    assert shards.layout == "unimed" and "joined by _radimagenet_ (in 6 of 6 samples)" in shards.reason
    assert tars.captions(shards, 1) == [(f"CT of organ 1, wording {k}.", 1.0) for k in range(10)], (
        "ten, as their loader"
    )
    info = shards.json(1)
    assert info["scans"][0]["ext"] == "png", "a PNG under the name .jpg"
    assert info["labels"] == {} and info["split"] == "train" and info["patient"] == shards.key(1)


@pytest.mark.parametrize("join", JOINS, ids=lambda join: join.separator)
def test_every_separator_of_unimed(join: Any) -> None:
    said = [f"caption {k}." for k in range(16)]
    text = "".join(c + join.separator for c in said)
    if join.separator == "_mimiccxr_":
        whole = unimed(Parts(text + join.separator + "FINDINGS: clear lungs."))
        assert whole.report == "FINDINGS: clear lungs."
        assert whole.captions == ((whole.report, 10.0), *((c, 1.0) for c in said[:10]))
        missing = unimed(Parts(text + join.separator + "noreportpresent"))
        assert (missing.report, missing.captions) == ("", tuple((c, 1.0) for c in said[:10]))
        return
    found = unimed(Parts(text)).captions
    assert [c for c, _ in found] == said[: join.take]
    first = join.kind == "first"
    assert found[0][1] == (join.take - 1 if first else 1) and all(w == 1 for _, w in found[1:])


def test_unimed_oddities() -> None:
    assert unimed(Parts("An inline figure.\n")).captions == (("An inline figure.", 1.0),)
    assert unimed(Parts("file_dr_7 shows a fundus")).captions == (("file_dr_7 shows a fundus", 1.0),)
    assert unimed(Parts("A cell._medicat_nothingpresent")).captions == (("A cell.", 1.0),)
    assert unimed(Parts("A._medicat_B.")).captions == (("A.", 1.0), ("B.", 1.0))
    assert unimed(Parts("same._dr_same._dr_")).captions == (("same.", 1.0),)
    assert unimed(Parts("_chexpert_")).captions == ()


def test_biomedica_keeps_listed_fields_only(tmp_path: Path, cache: Path) -> None:
    shards = ForeignShards.open(tars.biomedica(tmp_path / "in" / "000000.tar"), cache=cache)
    assert (shards.layout, len(shards)) == ("biomedica", 6)
    info = shards.json(3)
    assert info["meta"] == {
        "panel_type": "multiple",
        "panel_subtype": "single panel",
        "concept": ["Clinical Imaging"],
        "subconcept": ["computerized tomography"],
        "image_hash": "hash3",
        "article": "PMC101",
        "journal": "Journal",
        "date": "1500000000",
        "mesh_terms": ["Humans", "Liver"],
    }
    assert (info["licence"], shards.json(0)["licence"]) == ("CC BY", "CC BY-NC")
    assert tars.captions(shards, 3) == [("Figure 3. Axial CT of the liver.", 1.0)]
    assert shards.patient(2) == shards.patient(3) != shards.patient(4), "figures of one article stay together"
    assert [shards.modality(r) for r in (0, 1)] == ["GM", "OT"]
    assert shards.manifest["licences"] == {"CC BY": 5, "CC BY-NC": 1}
    (sidecar,) = cache.iterdir()
    assert b"SECRET" not in sidecar.read_bytes() and b"fig.v" not in sidecar.read_bytes()


def test_clip_benchmark_classes_templates_and_splits(tmp_path: Path, cache: Path) -> None:
    shards = ForeignShards.open(tars.clip_benchmark(tmp_path / "in"), cache=cache)
    assert shards.layout == "clip_benchmark" and shards.manifest["splits"] == {"test": 3, "train": 5}
    assert shards.label_names == ("normal lung", "pneumonia")
    row = int(shards.rows("train")[1])
    assert shards.json(row)["labels"] == {"normal lung": 0, "pneumonia": 1}
    assert tars.captions(shards, row) == [("an X-ray of pneumonia.", 1.0), ("pneumonia on a radiograph.", 1.0)]
    np.testing.assert_array_equal(shards.labels(("pneumonia",))[shards.rows("test"), 0], [0, 1, 0])
    with pytest.raises(DataError, match=r"no label \['cyst'\]"):
        shards.labels(("cyst",))
    with pytest.raises(DataError, match="no sample in split 'val'"):
        shards.rows("val")
    only = ForeignShards.open(tmp_path / "in" / "test", cache=cache)
    assert only.manifest["splits"] == {"test": 3} and len(only.label_names) == 2
    assert {only.key(r) for r in only.rows()} == {shards.key(r) for r in shards.rows("test")}, "keys are those of a tar"


def test_clip_benchmark_multilabel_and_retrieval(tmp_path: Path, cache: Path) -> None:
    multi = ForeignShards.open(tars.clip_benchmark(tmp_path / "multi", "npy"), cache=cache)
    assert multi.json(1)["labels"] == {"effusion": 1, "heart": 1, "nodule": 0}
    assert [c for c, _ in tars.captions(multi, 0)] == ["an X-ray of heart.", "heart on a radiograph."]
    pairs = ForeignShards.open(tars.clip_benchmark(tmp_path / "pairs", "txt"), cache=cache)
    assert (pairs.layout, pairs.label_names) == ("clip_benchmark", ())
    assert tars.captions(pairs, 0) == [("a scan 0", 1.0), ("another view 0", 1.0)]


def test_labels_of_which_none_is_present_are_scored_and_not_trained_on(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        m for i in range(4) for m in ((f"{i}.jpg", tars.picture(i)), (f"{i}.npy", tars.npy(np.array([i % 2, 0]))))
    ]
    shards = ForeignShards.open(tars.write_tar(tmp_path / "x.tar", members), cache=cache)
    assert shards.textless.tolist() == [0, 2] and "2 samples have labels of which none is" in shards.problems[-1]
    assert shards.labels()[:, 0].tolist() == [0, 1, 0, 1] and len(shards.rows("train")) == 4
    assert with_text(shards, shards.rows("train")).tolist() == [1, 3]
    other = ForeignShards.open(tars.unimed(tmp_path / "y.tar", 3), cache=cache)
    union = ShardUnion({"words": other, "labels": shards})
    assert with_text(union, union.rows()).tolist() == [0, 1, 2, 4, 6]
    tell_lost(shards)
    assert "2 samples have labels of which none is present, so no text" in capsys.readouterr().err


def test_clip_benchmark_without_class_names(tmp_path: Path, cache: Path) -> None:
    root = tars.clip_benchmark(tmp_path / "in")
    (root / "classnames.txt").unlink()
    shards = ForeignShards.open(root, cache=cache)
    assert shards.label_names == ("class 0", "class 1") and shards.json(1)["labels"] == {"class 0": 0, "class 1": 1}


def test_classes_of_one_name_stay_two(tmp_path: Path, cache: Path) -> None:
    root = tars.clip_benchmark(tmp_path / "in")
    (root / "classnames.txt").write_text("crane\ncrane\n")
    assert ForeignShards.open(root, cache=cache).label_names == ("crane (class 0)", "crane (class 1)")


def test_a_shard_that_nshards_counts_is_missed(tmp_path: Path, cache: Path) -> None:
    root = tars.clip_benchmark(tmp_path / "in")
    (root / "train" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"nshards\.txt counts 2 tars, and there are 1"):
        ForeignShards.open(root, cache=cache)
    assert len(ForeignShards.open([root / "train" / "0.tar"], cache=cache)) == 3


def test_a_superscript_is_no_number(tmp_path: Path, cache: Path) -> None:
    root = tars.clip_benchmark(tmp_path / "1²2")
    (root / "train" / "nshards.txt").write_text("²")
    assert len(ForeignShards.open(root, cache=cache)) == 8


def test_img2dataset_drops_addresses_and_exif(tmp_path: Path, cache: Path) -> None:
    folder = tars.img2dataset(tmp_path / "in")
    shards = ForeignShards.open(folder, cache=cache)
    assert shards.layout == "img2dataset" and "their json has url, key, status, caption" in shards.reason
    assert shards.json(2)["meta"] == {"width": 20, "height": 16, "original_width": 40, "original_height": 32}
    assert tars.captions(shards, 2) == [("chest film 2", 1.0)]
    (sidecar,) = cache.iterdir()
    assert b"SECRET" not in sidecar.read_bytes() and b"DOE" not in sidecar.read_bytes()


def test_img2dataset_without_json_is_known_by_what_lies_beside(tmp_path: Path, cache: Path) -> None:
    folder = tars.img2dataset(tmp_path / "in")
    tars.write_tar(folder / "00000.tar", [("0.jpg", tars.picture(0)), ("0.txt", b"a film")])
    assert ForeignShards.open(folder, cache=cache).reason == "00000.parquet lies beside"


def test_a_declared_patient_field(tmp_path: Path, cache: Path) -> None:
    members = []
    for i in range(4):
        body = json.dumps({"key": "k", "status": "success", "caption": "c", "subject": f"Jane {i // 2}"})
        members += [(f"{i}.jpg", tars.picture(i)), (f"{i}.txt", b"film %d" % i), (f"{i}.json", body.encode())]
    path = tars.write_tar(tmp_path / "in" / "a.tar", members)
    shards = ForeignShards.open(path, cache=cache, patient_field="subject")
    assert [shards.patient(0) == shards.patient(r) for r in range(4)] == [True, True, False, False]
    assert all(b"Jane" not in p.read_bytes() for p in cache.iterdir())
    with pytest.raises(DataError, match=r"4 samples or members cannot be used[^$]*does not name the patient"):
        ForeignShards.open(path, cache=cache, patient_field="pid")


def test_patients_that_a_field_names_are_hashed_with_a_private_salt(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOXCLIP_SALT", raising=False)
    body = json.dumps({"key": "k", "status": "success", "caption": "c", "mrn": 100007}).encode()
    path = tars.write_tar(tmp_path / "in" / "a.tar", [("0.jpg", tars.picture(0)), ("0.json", body)])
    kept = ForeignShards.open(path, cache=cache, patient_field="mrn")
    assert kept.patient(0) not in {hashed(f"mrn/{n}", tar_samples.SALT) for n in range(100000, 100010)}
    assert (cache.parent / ".voxclip-salt").stat().st_mode & 0o077 == 0
    secret = (cache.parent / ".voxclip-salt").read_text().strip().encode()
    assert all(secret not in p.read_bytes() for p in cache.iterdir())
    assert ForeignShards.open(path, cache=cache, patient_field="mrn").manifest_hash == kept.manifest_hash
    monkeypatch.setenv("VOXCLIP_SALT", "another")
    other = ForeignShards.open(path, cache=cache, patient_field="mrn")
    assert other.patient(0) == hashed("mrn/100007", "another") != kept.patient(0) and other.key(0) == kept.key(0)
    monkeypatch.delenv("VOXCLIP_SALT")
    (cache.parent / ".voxclip-salt").write_text("")
    with pytest.raises(DataError, match="the salt beside the cache folder is empty"):
        ForeignShards.open(path, cache=cache, patient_field="mrn")


def test_splits_are_drawn_by_article(tmp_path: Path, cache: Path) -> None:
    path = tars.biomedica(tmp_path / "in" / "0.tar", 60)
    shards = ForeignShards.open(path, cache=cache, val_fraction=0.3, test_fraction=0.2)
    assert set(shards.manifest["splits"]) == {"train", "val", "test"}
    split_of = {}
    for row in shards.rows():
        assert split_of.setdefault(shards.patient(row), shards.json(row)["split"]) == shards.json(row)["split"]
    assert ForeignShards.open(path, cache=cache, split="test").manifest["splits"] == {"test": 60}


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("0.jpg", "jpg"), ("0.seg", b"x"), ("1.jpg", "jpg")], r"first samples have 2 \.jpg, 1 \.seg"),
        ([("0.txt", b"words")], r"first samples have 1 \.txt"),
        ([("0.jpg", "jpg"), ("0.Jane Doe 1970", b"x")], r"1 \.jpg, 1 others"),
        ([("0.jpg", "jpg"), ("0.json", b'{"finding": 1}')], r"none of the known layouts"),
    ],
)
def test_what_fits_no_layout_is_refused_with_its_members(
    tmp_path: Path, cache: Path, members: list[tuple[str, Any]], said: str
) -> None:
    path = tars.write_tar(tmp_path / "x.tar", [(n, tars.picture(0) if b == "jpg" else b) for n, b in members])
    with pytest.raises(DataError, match=said):
        ForeignShards.open(path, cache=cache)
    assert not cache.exists()
