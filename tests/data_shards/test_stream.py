from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DataError, Scan, Study, Texts
from data_shards.batch import Batch
from data_shards.errors import DamagedError
from data_shards.preprocess import Geometry, PlanarGeometry, View, apply_view
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.stream import Stream, ordered_pass
from data_shards.units import UnitPolicy

GEOMETRY = Geometry(spacing_mm=(2.5, 2.5, 2.5), windows=((-1000, 0), (0, 1000)))


def tokenize(text: str) -> list[int]:
    return [1, *(ord(c) for c in text[:30]), 2]


def stream(shards: ShardSet, **changes: Any) -> Stream:
    settings: dict[str, Any] = {
        "shards": shards,
        "rows": shards.rows("train"),
        "geometry": GEOMETRY,
        "view": View("random", (8, 9, 10), jitter=2),
        "tokenize": tokenize,
        "units": UnitPolicy(sentences=True, captions=True, shuffle_sentences=True, max_sentences=2),
        "batch_size": 4,
        "seed": 3,
        "steps": 7,
        "label_names": ("effusion", "nodule"),
    }
    return Stream(**{**settings, **changes})


def same(a: Batch, b: Batch) -> None:
    assert (a.step, a.keys, a.label_names, a.texts.lengths) == (b.step, b.keys, b.label_names, b.texts.lengths)
    for name in ("rows_B", "patient_B", "images_BCDHW"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.labels_BL.nan_to_num(9), b.labels_BL.nan_to_num(9))
    for name in ("tokens_T", "cu_seqlens_U1", "kind_U", "hash64_U", "pair_sample_P", "pair_unit_P"):
        assert torch.equal(getattr(a.texts, name), getattr(b.texts, name)), name


@pytest.fixture(scope="module")
def reference(shard_folder: Path) -> list[Batch]:
    return list(stream(ShardSet.open(shard_folder)))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(shards: ShardSet, reference: list[Batch], workers: int) -> None:
    got = list(stream(shards, workers=workers))
    assert len(got) == len(reference) == 7
    for a, b in zip(got, reference, strict=True):
        same(a, b)


def test_spawned_workers_give_them_too(
    shards: ShardSet, reference: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What happens once CUDA is in use: a process that has started it must not be forked.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for a, b in zip(stream(shards, workers=1, steps=2), reference, strict=False):
        same(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_goes_on_where_it_stopped(shards: ShardSet, reference: list[Batch], workers: int) -> None:
    first = stream(shards, workers=workers)
    running = iter(first)
    for _ in range(3):
        next(running)
    state = first.state_dict()
    assert state["step"] == 3
    again = stream(shards, workers=workers)
    again.load_state_dict(state)
    assert len(again) == 4
    for a, b in zip(again, reference[3:], strict=True):
        same(a, b)
    assert again.state_dict()["step"] == 7


def test_ranks_share_the_batch_of_one_process(shards: ShardSet, reference: list[Batch]) -> None:
    ranks = [stream(shards, batch_size=2, rank=r, world=2) for r in (0, 1)]
    for left, right, whole in zip(*ranks, reference, strict=True):
        assert left.keys + right.keys == whole.keys
        assert torch.equal(torch.cat([left.images_BCDHW, right.images_BCDHW]), whole.images_BCDHW)
        texts = {*left.texts.hash64_U.tolist(), *right.texts.hash64_U.tolist()}
        assert texts == set(whole.texts.hash64_U.tolist())
    state = ranks[1].state_dict()
    single = stream(shards)
    single.load_state_dict(state)  # another number of ranks, the same global batch
    assert single.step == 7


def test_every_epoch_is_a_new_order_of_all_rows(shards: ShardSet) -> None:
    rows = torch.cat([b.rows_B for b in stream(shards, batch_size=5, steps=6)]).reshape(3, 10).tolist()
    assert [sorted(r) for r in rows] == [list(range(10))] * 3
    assert len({tuple(r) for r in rows}) == 3


def test_augmentation_differs_between_epochs_and_seeds(shards: ShardSet, reference: list[Batch]) -> None:
    images = [b.images_BCDHW for b in stream(shards, rows=np.array([4]), batch_size=1, steps=4)]
    assert not all(torch.equal(images[0], other) for other in images[1:])
    assert reference[0].keys != next(iter(stream(shards, seed=4))).keys


def test_what_a_batch_holds(shards: ShardSet, reference: list[Batch]) -> None:
    batch = reference[0]
    assert batch.images_BCDHW.shape == (4, 2, 8, 9, 10)
    assert batch.images_BCDHW.dtype == torch.float32
    assert batch.images_BCDHW.abs().max() <= 1
    for i, row in enumerate(batch.rows_B.tolist()):
        assert batch.keys[i] == f"study{row}"
        effusion = batch.labels_BL[i, 0]
        assert effusion.isnan() if row % 3 == 0 else effusion == row % 2
        other = batch.rows_B // 2 == row // 2
        assert torch.equal(batch.patient_B == batch.patient_B[i], other)
    moved = batch.to("cpu")
    same(batch, moved)


def test_wait_is_measured(shards: ShardSet) -> None:
    one = stream(shards)
    assert one.wait_seconds == 0
    list(one)
    assert one.wait_seconds > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 4}, "drawn from another seed"),
        ({"batch_size": 2}, "batch size"),
        ({"rows": np.arange(9)}, "other samples of the shards"),
    ],
)
def test_another_runs_state_is_refused(shards: ShardSet, changes: dict[str, Any], reason: str) -> None:
    state = stream(shards).state_dict()
    with pytest.raises(DataError, match=reason):
        stream(shards, **changes).load_state_dict(state)


def test_the_state_of_other_shards_is_refused(shards: ShardSet, tmp_path: Path, study: Any) -> None:
    with ShardWriter(tmp_path / "other") as writer:
        for i in range(10):
            writer.write(study(i, shape=(9, 9, 9)))
    state = stream(shards).state_dict()
    with pytest.raises(DataError, match="not the ones it was trained on"):
        stream(ShardSet.open(tmp_path / "other")).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_stops_the_stream_and_names_the_sample(shard_folder: Path, tmp_path: Path, workers: int) -> None:
    copy = Path(shutil.copytree(shard_folder, tmp_path / "copy"))
    entry = ShardSet.open(copy).index.slice(3, 1).to_pylist()[0]
    place, data = entry["members"][0], bytearray((copy / entry["shard"]).read_bytes())
    data[place["offset"] + place["bytes"] // 2] ^= 1
    (copy / entry["shard"]).write_bytes(data)
    with pytest.raises(DataError, match=r"shard-000000\.tar, sample study3: member 00\.vol\.b2nd does not match"):
        list(stream(ShardSet.open(copy), workers=workers))


def test_a_pass_left_open_does_not_hold_up_the_exit(shard_folder: Path) -> None:
    """Workers leave signals to the trainer, so nobody but the pass itself can end them."""
    code = (
        "import sys; from data_shards.shard_set import ShardSet; from data_shards.stream import ordered_pass\n"
        "from data_shards.preprocess import Geometry, View; from data_shards.units import UnitPolicy\n"
        "shards = ShardSet.open(sys.argv[1])\n"
        "batches = ordered_pass(shards, shards.rows(), Geometry(), View('centre', (8, 8, 8)), "
        "lambda text: [1], UnitPolicy(), batch_size=1, workers=1)\n"
        "print(len(next(batches).keys))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shard_folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_study_without_the_text_asked_for_is_named(tmp_path: Path) -> None:
    scan = Scan(array=np.zeros((4, 4, 4), np.int16), spacing_mm=(2, 2, 2))
    with ShardWriter(tmp_path / "out") as writer:
        writer.write(Study("mute", "p", "train", (scan,), Texts(report="A report.")))
    with pytest.raises(DataError, match="sample mute has no text of the kinds asked for"):
        list(stream(ShardSet.open(tmp_path / "out"), units=UnitPolicy(report=False, captions=True), label_names=()))


def test_an_image_of_ours_that_does_not_decode_is_damage(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "out") as writer:
        writer.write(Study("half", "p", "train", (Scan(image=b"\x89PNG", ext="png"),), Texts(report="A report.")))
    shards, planar = ShardSet.open(tmp_path / "out"), PlanarGeometry()
    with pytest.raises(DamagedError, match="sample half: the image cannot be decoded") as caught:
        list(ordered_pass(shards, shards.rows(), planar, View("centre"), tokenize, UnitPolicy(), 1))
    assert (caught.value.shard, caught.value.key) == ("shard-000000.tar", "half")


def test_the_geometry_of_the_other_kind_is_refused(shards: ShardSet) -> None:
    with pytest.raises(DataError, match="is a volume, the geometry is for the other kind"):
        list(stream(shards, geometry=PlanarGeometry(), view=View("centre")))


def test_an_ordered_pass_sees_every_row_once(shards: ShardSet) -> None:
    rows, view = np.array([12, 3, 10, 1, 0]), View("centre", (8, 9, 10))
    settings = (GEOMETRY, view, tokenize, UnitPolicy())
    batches = list(ordered_pass(shards, rows, *settings, batch_size=2, label_names=("nodule",)))
    assert torch.cat([b.rows_B for b in batches]).tolist() == rows.tolist()
    source, meta = shards.scan(10)
    want = torch.from_numpy(apply_view(source, meta, GEOMETRY, view))
    assert torch.equal(batches[1].images_BCDHW[0], want)
    for a, b in zip(batches, ordered_pass(shards, rows, *settings, 2, workers=2, label_names=("nodule",)), strict=True):
        same(a, b)
    with pytest.raises(DataError, match="the view is random"):
        ordered_pass(shards, rows, GEOMETRY, View("random", (8, 9, 10)), tokenize, UnitPolicy(), 2)
