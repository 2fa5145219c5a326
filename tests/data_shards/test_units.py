from __future__ import annotations

import numpy as np
import pytest

from data_shards import DataError
from data_shards.batch import TextBatch
from data_shards.schema import UNIT_KINDS
from data_shards.units import UnitPolicy, captions_identity, study_units, text_identity

TEXTS = {
    "report": "FINDINGS: Lungs are clear. Heart is normal. A cyst of 1.5 cm. IMPRESSION: Cyst. Heart is  NORMAL.",
    "findings": "",
    "impression": "",
    "captions": [{"text": "rare", "weight": 0.0}, {"text": "common", "weight": 2.0}],
}


def tokenize(text: str) -> list[int]:
    return [1, *(ord(c) for c in text), 2]


def kinds(policy: UnitPolicy, seed: int | None = None) -> list[tuple[str, str]]:
    rng = None if seed is None else np.random.default_rng(seed)
    return [(UNIT_KINDS[u.kind], u.text) for u in study_units(TEXTS, policy, rng)]


def test_units_of_a_study() -> None:
    everything = UnitPolicy(sentences=True, sections=True, captions=True)
    assert kinds(everything) == [
        ("report", TEXTS["report"]),
        ("section", "Lungs are clear. Heart is normal. A cyst of 1.5 cm."),
        ("section", "Cyst. Heart is  NORMAL."),
        ("sentence", "Lungs are clear."),
        ("sentence", "Heart is normal."),
        ("sentence", "A cyst of 1.5 cm."),
        ("sentence", "Cyst."),
        ("sentence", "common"),
        ("caption", "common"),
    ]


def test_a_caption_is_also_its_sentences() -> None:
    made = "The larynx. No mandible. The larynx."
    policy = UnitPolicy(report=False, sentences=True)
    units = study_units({}, policy, None, made)
    assert [(UNIT_KINDS[u.kind], u.text) for u in units] == [
        ("sentence", "The larynx."),
        ("sentence", "No mandible."),
        ("caption", made),
    ]
    assert [u.text for u in study_units({}, UnitPolicy(), None, made)] == [made]


def test_sentences_can_be_limited_and_drawn() -> None:
    policy = UnitPolicy(report=False, sentences=True, max_sentences=2)
    assert [t for _, t in kinds(policy)] == ["Lungs are clear.", "Heart is normal."]
    drawn = {tuple(t for _, t in kinds(policy, seed)) for seed in range(20)}
    assert len(drawn) > 3
    assert all(len(d) == 2 for d in drawn)


def test_shuffling_changes_the_words_and_not_the_identity() -> None:
    policy = UnitPolicy(shuffle_sentences=True)
    plain = study_units(TEXTS, policy, None)[0]
    texts = set()
    for seed in range(20):
        unit = study_units(TEXTS, policy, np.random.default_rng(seed))[0]
        assert unit.identity == plain.identity
        assert unit.text.startswith("FINDINGS: ")
        assert unit.text.endswith("IMPRESSION: Cyst. Heart is  NORMAL.")
        assert sorted(unit.text.split()) == sorted(plain.text.split())
        texts.add(unit.text)
    assert len(texts) > 3


def test_words_are_dropped_and_the_identity_stays() -> None:
    policy = UnitPolicy(sentences=True, drop_words=0.5)
    whole = study_units(TEXTS, policy, None)
    assert whole == study_units(TEXTS, UnitPolicy(sentences=True), None)
    left = total = 0
    for seed in range(40):
        units = study_units(TEXTS, policy, np.random.default_rng(seed))
        assert [(u.kind, u.identity) for u in units] == [(u.kind, u.identity) for u in whole]
        for unit, before in zip(units, whole, strict=True):
            words, all_words = unit.text.split(), iter(before.text.split())
            assert words and all(word in all_words for word in words)  # some of them, in their order, never none
            left, total = left + len(words), total + len(before.text.split())
    assert 0.5 < left / total < 0.7  # half of the words, and "clear" and "normal" whenever they are there
    assert units == study_units(TEXTS, policy, np.random.default_rng(39))


def test_dropped_words_never_turn_a_statement_round() -> None:
    policy = UnitPolicy(report=False, sentences=True, drop_words=0.9)
    for text in ("No pleural effusion.", "The scan is NOT normal.", "Free of nodules, without stones."):
        for seed in range(30):
            (unit,) = study_units({"findings": text}, policy, np.random.default_rng(seed))
            for word in ("no", "not", "normal.", "free", "without"):
                assert (word in unit.text.casefold().split()) == (word in text.casefold().split())


def test_findings_and_impression_make_a_report() -> None:
    texts = {"report": "", "findings": "Clear.", "impression": "Normal.", "captions": []}
    assert study_units(texts, UnitPolicy(), None)[0].text == "FINDINGS: Clear.\nIMPRESSION: Normal."
    assert study_units({"report": " ", "findings": ""}, UnitPolicy(), None) == []


def test_a_report_without_headings_is_one_section_of_findings() -> None:
    policy = UnitPolicy(report=False, sections=True, sentences=True)
    units = study_units({"report": "Lungs are clear. Heart is normal."}, policy, None)
    assert [(UNIT_KINDS[u.kind], u.text) for u in units] == [
        ("section", "Lungs are clear. Heart is normal."),
        ("sentence", "Lungs are clear."),
        ("sentence", "Heart is normal."),
    ]


def test_identity_ignores_case_and_white_space() -> None:
    assert text_identity("No  Mass.\n") == text_identity(" no mass.")
    assert text_identity("No mass") != text_identity("No masses")


def test_packing_merges_equal_texts_of_a_batch() -> None:
    policy = UnitPolicy(sentences=True)
    first = study_units({"report": "Clear. Normal."}, policy, None)
    second = study_units({"report": "Normal. Cyst."}, policy, None)
    texts = TextBatch.of([first, second, first], tokenize)
    assert len(texts.lengths) == 5
    assert [UNIT_KINDS[k] for k in texts.kind_U] == ["report", "sentence", "sentence", "report", "sentence"]
    assert texts.pair_sample_P.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert texts.pair_unit_P.tolist() == [0, 1, 2, 3, 2, 4, 0, 1, 2]
    bounds = texts.cu_seqlens_U1.tolist()
    assert np.diff(bounds).tolist() == texts.lengths
    assert texts.tokens_T[bounds[4] : bounds[5]].tolist() == tokenize("Cyst.")


def test_refusals() -> None:
    with pytest.raises(DataError, match="no kind of text unit"):
        UnitPolicy(report=False)
    with pytest.raises(DataError, match="no tokens"):
        TextBatch.of([study_units({"report": "A."}, UnitPolicy(), None)], lambda text: [])


def test_what_identifies_a_list_of_captions() -> None:
    def of(*captions: str) -> int:
        return captions_identity({"captions": [{"text": text, "weight": 1.0} for text in captions]})

    assert of("a cyst", "a  Cyst of the liver") == of("A cyst of the liver", "a cyst", "A CYST") != 0
    assert len({of("a cyst"), of("a cyst", "a stone"), of("a stone"), of("a cyst a stone")}) == 4
    assert of() == of(" ") == captions_identity({}) == 0


def test_a_report_among_the_captions_of_a_class_does_not_make_another_class() -> None:
    def of(report: str, *captions: str) -> int:
        listed = [{"text": text, "weight": 1.0} for text in (report, *captions) if text]
        return captions_identity({"report": report, "captions": listed})

    same = of("", "a cyst", "cystic")
    assert of("A long report.", "a cyst", "cystic") == of("Another one.", "cystic", "a cyst") == same
    assert of("A long report.") != of("Another one.")
