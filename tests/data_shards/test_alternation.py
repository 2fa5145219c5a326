"""Every other batch is about one anatomical section: the same for any ranks and workers, exact after a restart."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DataError, Texts
from data_shards.alternation import Alternation
from data_shards.batch import Batch
from data_shards.preprocess import Geometry, View
from data_shards.schema import UNIT_KINDS
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.stream import Stream, ordered_pass
from data_shards.units import UnitPolicy

POLICY = UnitPolicy(report_text="findings", alternate="anatomy")
SECTION, REPORT = UNIT_KINDS.index("section"), UNIT_KINDS.index("report")


def findings(i: int) -> str:
    """Of the liver in all of 24 studies, of the spleen in 12, of the pancreas in one."""
    said = [f"The liver has {i} cysts."] + ["The spleen is normal."] * (i % 2) + ["The pancreas is small."] * (i == 5)
    return " ".join(said)


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory, study: Any) -> ShardSet:
    out = tmp_path_factory.mktemp("organs") / "set"
    with ShardWriter(out, max_samples=7) as writer:
        for i in range(24):
            texts = Texts(findings=findings(i), impression=f"Case {i}.")
            writer.write(replace(study(i, "train", (4, 6, 6)), texts=texts))
    return ShardSet.open(out)


def tokenize(text: str) -> list[int]:
    return [ord(c) for c in text]


def texts_of(batch: Batch) -> list[str]:
    letters = "".join(chr(c) for c in batch.texts.tokens_T.tolist())
    bounds = batch.texts.cu_seqlens_U1.tolist()
    return [letters[a:b] for a, b in pairwise(bounds)]


def stream(shards: ShardSet, **changes: Any) -> Stream:
    settings: dict[str, Any] = {
        "shards": shards, "rows": shards.rows("train"), "geometry": Geometry(spacing_mm=(3.0, 2.0, 2.0)),
        "view": View("centre", (4, 4, 4)), "tokenize": tokenize, "units": POLICY, "batch_size": 8,
        "seed": 3, "steps": 40,
    }  # fmt: skip
    return Stream(**{**settings, **changes})


def test_whole_findings_and_one_section_take_turns(organs: ShardSet) -> None:
    told: dict[str, int] = {"liver": 0, "spleen": 0}
    for batch in stream(organs):
        of = batch.texts.pair_sample_P.tolist()
        number = [int(organs.key(int(row)).removeprefix("study")) for row in batch.rows_B]
        if batch.step % 2 == 0:
            assert set(batch.texts.kind_U.tolist()) == {REPORT}
            assert texts_of(batch) == [findings(i) for i in number]
            continue
        assert set(batch.texts.kind_U.tolist()) <= {SECTION}
        (organ,) = {next(organ for organ in told if organ in text) for text in texts_of(batch)}
        told[organ] += 1
        assert sorted(of) == [at for at, i in enumerate(number) if organ == "liver" or i % 2]  # others have no text
        if organ == "spleen":
            assert texts_of(batch) == ["The spleen is normal."], "the same words are one unit"
    # Drawn 2 : 1, as often as reports have them; of the pancreas a batch would have a third of a text.
    assert sum(told.values()) == 20
    assert told["liver"] > told["spleen"] >= 3


def test_ranks_workers_and_restarts_agree(organs: ShardSet) -> None:
    whole = list(stream(organs, steps=12))
    for batch, again in zip(whole, stream(organs, steps=12, workers=2), strict=True):
        assert texts_of(batch) == texts_of(again)
    resumed = stream(organs, steps=12, workers=1)
    resumed.load_state_dict({**resumed.state_dict(), "step": 5})
    assert [texts_of(b) for b in resumed] == [texts_of(b) for b in whole[5:]]
    ranks = [stream(organs, steps=12, batch_size=4, rank=r, world=2) for r in (0, 1)]
    for left, right, batch in zip(*ranks, whole, strict=True):
        assert {*texts_of(left), *texts_of(right)} == set(texts_of(batch))
    other = [texts_of(b) for b in stream(organs, steps=12, seed=4)]
    assert other != [texts_of(b) for b in whole]


def test_the_draw_depends_on_seed_and_batch_alone() -> None:
    shares = {"spleen": 0.25, "pancreas": 0.75}
    a, b = Alternation(0, shares), Alternation(0, shares)
    drawn = [a.section(step) for step in range(4000)]
    assert drawn == [b.section(step) for step in range(4000)]
    assert drawn[::2] == [None] * 2000
    assert drawn.count("pancreas") == pytest.approx(1500, abs=80)  # 4 standard deviations


def test_rare_sections_wait_for_larger_batches(organs: ShardSet) -> None:
    rows = organs.rows("train")
    assert set(Alternation.measured(organs, rows, 0, 96).shares) == {"liver and biliary tree", "spleen", "pancreas"}
    assert Alternation.measured(organs, rows, 0, 8).shares == {"liver and biliary tree": 1.0, "spleen": 0.5}
    # None is in a batch of 2 four times: the most frequent has to do.
    assert Alternation.measured(organs, rows, 0, 2).shares == {"liver and biliary tree": 1.0}


def test_reports_without_anatomy_are_refused(organs: ShardSet, shards: ShardSet, tmp_path: Path, study: Any) -> None:
    with ShardWriter(tmp_path / "set") as writer:
        for i in range(3):
            writer.write(replace(study(i), texts=Texts(report="Unremarkable examination.")))
    plain = ShardSet.open(tmp_path / "set")
    with pytest.raises(DataError, match=r"none of 3 reports has an anatomical section") as caught:
        stream(plain)
    assert "data.units.alternate" in str(caught.value)


def test_evaluation_reads_whole_reports(organs: ShardSet) -> None:
    rows, geometry, view = organs.rows("train")[:6], Geometry(spacing_mm=(3.0, 2.0, 2.0)), View("centre", (4, 4, 4))
    for batch in ordered_pass(organs, np.asarray(rows), geometry, view, tokenize, POLICY, 2):
        assert set(batch.texts.kind_U.tolist()) == {REPORT}


def test_words_are_dropped_from_sections_too(organs: ShardSet) -> None:
    policy = replace(POLICY, drop_words=0.5)
    section = [b for b in stream(organs, units=policy, steps=30) if b.step % 2]
    whole = {findings(i).split(".")[0] + "." for i in range(24)}
    assert any(text not in whole for batch in section for text in texts_of(batch))
    again = [b for b in stream(organs, units=policy, steps=30, workers=2) if b.step % 2]
    assert [texts_of(b) for b in section] == [texts_of(b) for b in again]
