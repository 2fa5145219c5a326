"""Captions made of labels: what is said, how often, and the same by any road."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_shards import DataError
from data_shards.captions import CaptionTemplates, captions_of, draw_caption, load_templates, template_names
from data_shards.schema import UNIT_KINDS
from data_shards.shard_set import ShardSet, ShardWriter
from data_shards.stream import ShardUnion, Stream, UnitPolicy, ordered_pass
from data_shards.units import hash64
from tests.data_shards.test_stream import GEOMETRY, View, same, stream

WORDS: dict[str, Any] = {
    "templates": [{"text": "{}.", "weight": 3}, "CT: {}."],
    "join": ", ",
    "nothing": "a CT",
    "classes": {
        "effusion": {"present": ["an effusion", {"text": "fluid", "weight": 2}], "absent": ["no effusion"]},
        "nodule": {"present": ["a nodule", "a spot", "a nodule"]},
    },
    "modalities": {
        "CR": {"classes": {"nodule": {"present": "an opacity"}}, "templates": "Film: {}.", "max_classes": 1},
        "MR": {"classes": {"nodule": {}}, "join": " and "},
    },
}
TEMPLATES = CaptionTemplates.model_validate(WORDS)


def said(labels: dict[str, int | None], modality: str = "CT") -> dict[str, float]:
    return {c.text: round(c.weight, 4) for c in captions_of(labels, modality, TEMPLATES)}


def test_what_is_said_and_how_often() -> None:
    assert said({"nodule": 1, "effusion": 0}) == {
        "no effusion, a nodule.": 0.5,  # given twice: 2/3, in a frame of 3/4
        "CT: no effusion, a nodule.": 0.1667,
        "no effusion, a spot.": 0.25,
        "CT: no effusion, a spot.": 0.0833,
    }
    assert said({"effusion": 1}) == {
        "an effusion.": 0.25, "CT: an effusion.": 0.0833, "fluid.": 0.5, "CT: fluid.": 0.1667
    }  # fmt: skip


def test_draws_follow_the_weights() -> None:
    for labels, modality in (({"nodule": 1, "effusion": 1}, "CT"), ({"nodule": 1, "effusion": 1}, "CR")):
        rng, n = np.random.default_rng(0), 4000
        drawn = [draw_caption(labels, modality, TEMPLATES, rng) for _ in range(n)]
        want = said(labels, modality)
        assert set(drawn) == set(want)
        for text, weight in want.items():
            assert abs(drawn.count(text) / n - weight) < 4 * (weight * (1 - weight) / n) ** 0.5


def test_unknown_is_never_said() -> None:
    assert set(said({"nodule": 1, "effusion": None})) == set(said({"nodule": 1}))
    assert not any("effusion" in text or "fluid" in text for text in said({"nodule": 1, "effusion": None}))
    nothing: list[dict[str, int | None]] = [{}, {"nodule": None, "effusion": None}, {"nodule": 0}, {"other": 1}]
    for labels in nothing:  # of an absent nodule the file says nothing
        assert said(labels) == {"a CT": 1.0}
        assert draw_caption(labels, "CT", TEMPLATES, np.random.default_rng(0)) == "a CT"
    mute = TEMPLATES.model_copy(update={"nothing": ()})
    assert captions_of({"nodule": None}, "CT", mute) == []
    assert draw_caption({"nodule": None}, "CT", mute, None) is None


def test_a_modality_says_it_otherwise() -> None:
    assert said({"nodule": 1, "effusion": 0}, "CR") == {"Film: no effusion.": 0.5, "Film: an opacity.": 0.5}
    assert "fluid." in said({"nodule": 1, "effusion": 1}, "MR")  # nothing of nodules here
    assert "no effusion, a spot." in said({"nodule": 1, "effusion": 0}, "PT")


def test_without_chance_the_first_and_the_heaviest() -> None:
    assert draw_caption({"nodule": 1, "effusion": 1}, "CT", TEMPLATES, None) == "fluid, a nodule."
    assert draw_caption({"nodule": 1, "effusion": 1}, "CR", TEMPLATES, None) == "Film: fluid."


def test_too_many_to_list_can_still_be_drawn() -> None:
    classes = {f"f{i}": {"present": ["a", "b"]} for i in range(20)}
    many = CaptionTemplates.model_validate({"classes": classes})
    labels: dict[str, int | None] = dict.fromkeys(classes, 1)
    with pytest.raises(DataError, match="more than 10000 captions"):
        captions_of(labels, "CT", many)
    assert draw_caption(labels, "CT", many, np.random.default_rng(0))


def test_shipped_files_are_valid() -> None:
    assert template_names() == ["public_images", "radiographs"]
    shipped = load_templates("radiographs")
    assert len(shipped.classes) == 14
    assert captions_of({"pneumonia": None}, "DX", shipped)[0].text == "A chest radiograph."


def changed(**keys: Any) -> str:
    return yaml.safe_dump(WORDS | keys)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (changed(clases={}), r"clases: Extra inputs"),
        (changed(classes={}), r"classes: Dictionary should have at least 1"),
        (changed(classes={"a": {"presnt": ["x"]}}), r"classes\.a\.presnt: Extra"),
        (changed(classes={"a": {"present": []}}), r"classes\.a\.present: .*at least 1"),
        (changed(classes={"a": {}}), r"classes \['a'\] have neither"),
        (changed(classes={"a": {"present": [" "]}}), r"classes\.a\.present\.0\.text"),
        (changed(classes={"a": {"present": [{"text": "x", "weight": 0}]}}), r"present\.0\.weight: .*greater than 0"),
        (changed(classes={"a": {"present": [{"text": "x", "weight": -1}]}}), r"present\.0\.weight"),
        (changed(classes={"a": {"present": ["x", {"text": "x", "weight": float("nan")}]}}), r"present\.1\.weight"),
        (changed(classes={"a": {"present": [{"text": "x", "weight": float("inf")}]}}), r"weight: .*finite"),
        (changed(classes={"a": {"present": [{"text": "x", "weight": "2"}]}}), r"weight: .*valid number"),
        (changed(templates=["no place"]), r"templates: 'no place' needs \{\} once"),
        (changed(templates=[]), r"templates: .*at least 1"),
        (changed(modalities={"CR": {"templates": "{} {}"}}), r"modalities\.CR\.templates: '\{\} \{\}' needs"),
        (changed(modalities={"CR": {"templates": []}}), r"modalities\.CR\.templates: .*at least 1"),
        (changed(max_classes=0), r"max_classes: .*greater than or equal to 1"),
        (changed(join=". ", classes={"a": {"present": "It is."}}), r"full stop and join begins with one"),
        ("classes: {a: {present: x}, a: {present: y}}", r"key 'a' is given twice"),
        ("classes: [", r"not readable YAML"),
        ("", r"the file: "),
    ],
)
def test_wrong_files_are_refused_with_the_key(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as refused:
        load_templates(str(path))
    assert refused.value.fix


def test_a_file_that_is_not_there_is_refused() -> None:
    for name in ("nowhere.yaml", "radiograps", "../errors"):
        with pytest.raises(DataError, match="no caption templates"):
            load_templates(name)


MADE = UnitPolicy(report=False, templates=TEMPLATES)


def heard(batches: Any) -> list[list[tuple[str, int]]]:
    """(key, identity of its caption) of every sample."""
    return [
        [(b.keys[s], int(b.texts.hash64_U[u])) for s, u in zip(b.texts.pair_sample_P, b.texts.pair_unit_P, strict=True)]
        for b in batches
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_worker_and_a_resume_choose_the_same(shards: ShardSet, workers: int) -> None:
    policy = UnitPolicy(report=False, templates=TEMPLATES, drop_words=0.2)
    want = list(stream(shards, units=policy))
    for a, b in zip(stream(shards, units=policy, workers=workers), want, strict=True):
        same(a, b)
    again = stream(shards, units=policy, workers=workers, start_step=3)
    for a, b in zip(again, want[3:], strict=True):
        same(a, b)
    assert heard(stream(shards, units=MADE, seed=4)) != heard(stream(shards, units=MADE))


def test_epochs_differ_and_every_caption_is_one_of_the_studys(shards: ShardSet) -> None:
    per_key: dict[str, set[int]] = {}
    for key, identity in (pair for batch in heard(stream(shards, units=MADE, steps=20)) for pair in batch):
        per_key.setdefault(key, set()).add(identity)
    assert any(len(found) > 1 for found in per_key.values())
    for row in range(10):
        texts = captions_of(shards.json(row)["labels"], "CT", TEMPLATES)
        assert per_key[shards.key(row)] <= {hash64(" ".join(c.text.split()).casefold()) for c in texts}


def test_the_choice_follows_the_key_and_not_the_row(tmp_path: Path, study: Any) -> None:
    """The same studies in another order have other row numbers: in an epoch each still gets its caption."""
    chosen = []
    for name, order in (("one", range(8)), ("two", range(7, -1, -1))):
        with ShardWriter(tmp_path / name) as writer:
            for i in order:
                writer.write(study(i))
        found = ShardSet.open(tmp_path / name)
        assert found.key(0) == f"study{order[0]}"
        chosen.append(dict(heard(stream(found, units=MADE, batch_size=8, steps=1))[0]))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 8


def test_made_captions_stand_beside_stored_ones_and_change_no_draw(shards: ShardSet) -> None:
    stored = heard(stream(shards, units=UnitPolicy(report=False, captions=True)))
    both = heard(stream(shards, units=UnitPolicy(report=False, captions=True, templates=TEMPLATES)))
    made = heard(stream(shards, units=MADE))
    for a, b, c in zip(stored, made, both, strict=True):
        assert sorted(a + b) == sorted(c)


def test_an_ordered_pass_takes_the_heaviest(shards: ShardSet) -> None:
    (batch,) = ordered_pass(shards, np.arange(4), GEOMETRY, View("centre", (6, 7, 8)), lambda t: [1], MADE, 4)
    assert {UNIT_KINDS[k] for k in batch.texts.kind_U} == {"caption"}
    want = [draw_caption(shards.json(r)["labels"], "CT", TEMPLATES, None) or "" for r in range(4)]
    assert [i for _, i in heard([batch])[0]] == [hash64(text) for text in want]


def test_a_class_that_no_study_has_is_refused(shards: ShardSet) -> None:
    strange = CaptionTemplates.model_validate({"classes": {"efusion": {"present": "x"}}})
    with pytest.raises(DataError, match=r"\['efusion'\] are no labels of the shards; did you mean effusion\?"):
        stream(shards, units=UnitPolicy(report=False, templates=strange))
    assert isinstance(stream(ShardUnion({"a": shards}), units=MADE), Stream)


def test_a_study_with_nothing_to_say_is_named(shards: ShardSet) -> None:
    mute = CaptionTemplates.model_validate({"classes": {"effusion": {"present": "fluid"}}})
    with pytest.raises(DataError, match=r"sample study\d has no text of the kinds asked for") as refused:
        list(stream(shards, units=UnitPolicy(report=False, templates=mute)))
    assert "declare `nothing`" in refused.value.fix
