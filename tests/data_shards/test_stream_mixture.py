"""Batches of several sources: the same for any number of workers, ranks and restarts."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DataError, Study, Texts
from data_shards.batch import Batch
from data_shards.preprocess import Geometry, View
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.stream import Mixture, ShardUnion, Stream, UnitPolicy, ordered_pass

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # three workers on two cores
GEOMETRY = Geometry(spacing_mm=(2.5, 2.5, 2.5), windows=((-1000, 0),))
VIEW = View("random", (6, 7, 8), jitter=2)


def tokenize(text: str) -> list[int]:
    return [1, *(ord(c) for c in text[:30]), 2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, study: Callable[..., Study]) -> dict[str, Path]:
    """Ten CTs, and six MRs of whom two are patients of the CTs and one has a CT's report word for word."""
    root = tmp_path_factory.mktemp("mixture")
    for name, numbers in (("ct", range(10)), ("mr", range(6))):
        with ShardWriter(root / name, max_samples=4) as writer:
            for i in numbers:
                one = study(i, "train" if i < 8 else "val", (8, 10, 12))
                if name == "mr":
                    scan = replace(one.scans[0], modality="MR", unit="arbitrary")
                    text = one.texts if i == 2 else Texts(report=f"Brain {i}.")
                    patient = one.patient if i < 2 else f"q{i}"
                    one = replace(one, scans=(scan,), texts=text, patient=patient, labels={"stroke": i % 2})
                writer.write(one)
    return {name: root / name for name in ("ct", "mr")}


@pytest.fixture
def both(folders: dict[str, Path]) -> ShardUnion:
    return ShardUnion({name: ShardSet.open(folder) for name, folder in folders.items()})


def stream(shards: ShardUnion, **changes: Any) -> Stream:
    settings: dict[str, Any] = {
        "rows": shards.rows("train"),
        "geometry": GEOMETRY,
        "view": VIEW,
        "tokenize": tokenize,
        "units": UnitPolicy(sentences=True, shuffle_sentences=True),
        "batch_size": 4,
        "seed": 3,
        "steps": 8,
        "label_names": ("nodule", "stroke"),
        "mixture": Mixture({"ct": 3, "mr": 1}),
    }
    return Stream(shards, **{**settings, **changes})


def same(a: Batch, b: Batch) -> None:
    assert (a.step, a.keys, a.skipped, a.texts.lengths) == (b.step, b.keys, b.skipped, b.texts.lengths)
    assert torch.equal(a.images_BCDHW, b.images_BCDHW) and torch.equal(a.patient_B, b.patient_B)
    assert torch.equal(a.labels_BL.nan_to_num(9), b.labels_BL.nan_to_num(9))
    for name in ("tokens_T", "hash64_U", "pair_sample_P", "pair_unit_P"):
        assert torch.equal(getattr(a.texts, name), getattr(b.texts, name)), name


KINDS = [
    {},
    {"batches": "homogeneous"},
    {"batches": "stratified", "by": "modality"},
]


@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_restarts_give_the_same_batches(both: ShardUnion, kind: dict[str, Any]) -> None:
    mixture = Mixture({"ct": 3, "mr": 1}, **kind)
    whole = list(stream(both, mixture=mixture))
    for workers in (1, 3):
        for a, b in zip(stream(both, mixture=mixture, workers=workers), whole, strict=True):
            same(a, b)
    begun = stream(both, mixture=mixture, workers=1)
    running = iter(begun)
    for _ in range(3):
        next(running)
    state = begun.state_dict()
    again = stream(both, mixture=mixture)
    again.load_state_dict(state)
    for a, b in zip(again, whole[3:], strict=True):
        same(a, b)
    assert again.realised() == stream(both, mixture=mixture).realised(8)


def test_realised_counts_are_those_of_the_batches(both: ShardUnion) -> None:
    one = stream(both)
    assert one.realised() == {"source": {"ct": 0, "mr": 0}, "modality": {"CT": 0, "MR": 0}}
    seen: Counter[str] = Counter()
    for batch in one:
        seen.update(key.partition("/")[0] for key in batch.keys)
        assert one.realised()["source"] == {"ct": seen["ct"], "mr": seen["mr"]}
    assert one.realised() == {"source": {"ct": 24, "mr": 8}, "modality": {"CT": 24, "MR": 8}}
    unweighted = stream(both, mixture=None, steps=7)
    list(unweighted)
    assert unweighted.realised()["source"] == {"ct": 16, "mr": 12}, "two passes over 8 + 6 studies"
    assert sum(stream(both, batch_size=2, rank=1, world=2).realised(8)["source"].values()) == 32, "of all ranks"


def test_labels_that_a_source_lacks_are_unknown(both: ShardUnion) -> None:
    for batch in stream(both):
        for key, (nodule, stroke) in zip(batch.keys, batch.labels_BL, strict=True):
            assert nodule.isnan() == key.startswith("mr/") and stroke.isnan() == key.startswith("ct/")
    rows = both.rows("val")
    (scored,) = ordered_pass(both, rows, GEOMETRY, View("centre", (6, 7, 8)), tokenize, UnitPolicy(), 8, 0, ("stroke",))
    assert scored.keys == ["ct/study8", "ct/study9"] and scored.labels_BL.isnan().all()


def test_another_world_size_goes_on_where_the_global_batch_is_equal(
    both: ShardUnion, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = list(stream(both))
    state = stream(both, start_step=3).state_dict()
    parts = [stream(both, batch_size=2, rank=r, world=2) for r in (0, 1)]
    for part in parts:
        part.load_state_dict(state)
    told = capsys.readouterr().err
    assert told == (
        "resumed on 2 ranks instead of 1: the global batch is still 4, so the same samples follow, 2 a rank\n"
    )
    for left, right, batch in zip(*parts, whole[3:], strict=True):
        assert left.keys + right.keys == batch.keys
    with pytest.raises(DataError, match=r"batch size differs, 4 x 2 ranks[\s\S]*on 2 ranks .* 2 per rank"):
        stream(both, batch_size=4, rank=0, world=2).load_state_dict(state)
    with pytest.raises(DataError, match=r"cannot be dealt to 3 ranks: use a number of ranks that divides it"):
        stream(both, batch_size=1, rank=0, world=3).load_state_dict(state)


@pytest.mark.parametrize(
    "other",
    [
        None,
        Mixture({"ct": 2, "mr": 1}),
        Mixture({"ct": 3, "mr": 1}, batches="homogeneous"),
        Mixture({"ct": 3, "mr": 1}, batches="stratified"),
    ],
)
def test_the_state_of_another_mixture_is_refused(both: ShardUnion, other: Mixture | None) -> None:
    state = stream(both).state_dict()
    with pytest.raises(DataError, match=r"the mixture differs \(mixture: 'mixed: ct 0.75, mr 0.25' saved"):
        stream(both, mixture=other).load_state_dict(state)


def test_weights_must_match_the_sources(both: ShardUnion) -> None:
    with pytest.raises(DataError, match="no weight for mr"):
        stream(both, mixture=Mixture({"ct": 1}))
    with pytest.raises(DataError, match="source 'mr' has no study"):
        stream(both, rows=both.rows("val"))


def test_the_same_caption_or_patient_is_flagged_across_sources(both: ShardUnion) -> None:
    """ct/study2 and mr/study2 have one report, ct/study0, ct/study1 and mr/study0, mr/study1 are one patient."""
    names = ["ct/study0", "ct/study2", "mr/study2", "mr/study0", "ct/study4"]
    rows = [next(r for r in range(len(both)) if both.key(r) == name) for name in names]
    view = View("centre", (6, 7, 8))
    (batch,) = ordered_pass(both, np.array(rows), GEOMETRY, view, tokenize, UnitPolicy(sentences=True), 8)
    patient = torch.eye(5, dtype=torch.bool)
    patient[0, 3] = patient[3, 0] = True
    report = torch.eye(5, dtype=torch.bool)
    report[1, 2] = report[2, 1] = True
    assert torch.equal(batch.related_BB(("report",)), patient | report)
    every = batch.related_BB()
    assert every[0, 1] and not every[3, 4], "two CTs share a sentence, too"


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.fixture
def damaged(folders: dict[str, Path], tmp_path: Path) -> ShardUnion:
    """The same sets after a copy with three flipped bits: in two CTs and an MR."""
    copies = {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in folders.items()}
    for name, row, member in (("ct", 1, 0), ("ct", 6, -1), ("mr", 3, 0)):
        entry = ShardSet.open(copies[name]).index.slice(row, 1).to_pylist()[0]
        place, shard = entry["members"][member], copies[name] / entry["shard"]
        data = bytearray(shard.read_bytes())
        data[place["offset"] + place["bytes"] // 2] ^= 1
        shard.write_bytes(data)
    return ShardUnion({name: ShardSet.open(folder) for name, folder in copies.items()})


def test_damage_within_the_budget_is_replaced_told_and_counted(
    damaged: ShardUnion, both: ShardUnion, capsys: pytest.CaptureFixture[str]
) -> None:
    one = stream(damaged, max_damaged=3)
    got = list(one)
    told = capsys.readouterr().err.splitlines()
    assert {damaged.key(row) for row in one.damaged} == {"ct/study1", "ct/study6", "mr/study3"}
    assert len(told) == 3 and told[0].startswith("warning: damaged sample left out, 1 of at most 3: source ")
    by_key = {s.key: s for batch in got for s in batch.skipped}
    assert by_key["ct/study6"].shard == "ct/shard-000001.tar"
    assert "member json does not match its crc32" in by_key["ct/study6"].reason
    assert "Nodule" not in "".join(told)

    bad = {"ct/study1", "ct/study6", "mr/study3"}
    for batch, sound in zip(got, stream(both), strict=True):
        assert not bad & set(batch.keys)
        for i, (key, meant) in enumerate(zip(batch.keys, sound.keys, strict=True)):
            assert key.partition("/")[0] == meant.partition("/")[0], "a stand-in is of the same source"
            assert (key == meant) == (meant not in bad)
            if key == meant:
                assert torch.equal(batch.images_BCDHW[i], sound.images_BCDHW[i])
        assert {s.key for s in batch.skipped} >= bad & set(sound.keys)
    assert one.realised() == stream(both).realised(8)


def test_stand_ins_are_the_same_for_workers_and_restarts(damaged: ShardUnion) -> None:
    whole = list(stream(damaged, max_damaged=3))
    for workers in (1, 3):
        for a, b in zip(stream(damaged, max_damaged=3, workers=workers), whole, strict=True):
            same(a, b)
    again = stream(damaged, max_damaged=3)
    again.load_state_dict(stream(damaged, start_step=4).state_dict())
    for a, b in zip(again, whole[4:], strict=True):
        same(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_past_the_budget_the_stream_stops_and_lists(damaged: ShardUnion, workers: int) -> None:
    with pytest.raises(DataError) as caught:
        list(stream(damaged, max_damaged=2, workers=workers))
    message = str(caught.value)
    assert message.startswith("3 distinct samples are damaged, and at most 2 may be (max_damaged):")
    for name in ("sample study1: member 00.vol.b2nd", "sample study6: member json", "sample study3: member 00.vol"):
        assert name in message
    with pytest.raises(DataError, match=r"^source (ct|mr): shard-00000\d\.tar, sample study\d: member"):
        list(stream(damaged, workers=workers))
    with pytest.raises(DataError, match="max_damaged is -1"):
        stream(damaged, max_damaged=-1)


def test_evaluation_never_skips(damaged: ShardUnion) -> None:
    rows = damaged.rows()
    with pytest.raises(DataError, match=r"source ct: shard-000000\.tar, sample study1"):
        list(ordered_pass(damaged, rows, GEOMETRY, View("centre", (6, 7, 8)), tokenize, UnitPolicy(), 4))


def test_a_source_that_is_damaged_altogether_ends_the_stream(damaged: ShardUnion) -> None:
    with pytest.raises(DataError, match="does not match its crc32"):
        list(stream(damaged, rows=np.array([1, 6]), mixture=None, max_damaged=9))


def test_other_errors_are_no_damage(damaged: ShardUnion) -> None:
    with pytest.raises(DataError, match="has no text of the kinds asked for"):
        list(stream(damaged, units=UnitPolicy(report=False, captions=True), max_damaged=9))
