"""The scores of report parsing on made-up reports, and the shape of the labels that are kept."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from benchmarks import report_parsing
from data_shards.report import sentences

XML = """<eCitation><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION"/>
</Abstract></eCitation>"""


@pytest.fixture
def reports(tmp_path: Path) -> dict[str, dict[str, str]]:
    made = {"1": ("Cough", "Node at L4-5. No mass of 2.5 cm."), "2": ("FINDINGS: a slip of the pen", "Clear.")}
    with tarfile.open(tmp_path / "r.tgz", "w:gz") as tar:
        for number, (indication, findings) in made.items():
            data = XML.format(indication=indication, findings=findings).encode()
            member = tarfile.TarInfo(f"reports/{number}.xml")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return report_parsing.read(tmp_path / "r.tgz")


def test_sections_are_scored_against_the_xml(reports: dict[str, dict[str, str]]) -> None:
    assert set(reports["1"]) == {"COMPARISON", "INDICATION", "FINDINGS"}
    assert [report_parsing.quirky(reports[n]) for n in "12"] == [False, True]
    rows = report_parsing.section_accuracy({"1": reports["1"]})
    assert len(rows) == len(report_parsing.STYLES)
    assert all(right == 1 and set(by_section.values()) == {1} for _, right, by_section in rows)
    wrong = report_parsing.section_accuracy({"2": reports["2"]})[0]
    assert wrong[1] == 0 and wrong[2]["COMPARISON"] == 1 and wrong[2]["INDICATION"] == 0


def test_sentences_are_scored_against_labels(reports: dict[str, dict[str, str]]) -> None:
    labels = {"1": {"findings": {"letters": 17, "cuts": [7]}}}
    assert report_parsing.sentence_scores(sentences, labels, reports) == (1.0, 1.0, 1.0)
    assert report_parsing.sentence_scores(lambda text: [text], labels, reports) == (0.0, 0.0, 0.0)
    every_stop = report_parsing.sentence_scores(lambda text: text.split("."), labels, reports)
    assert every_stop == (1 / 3, 1.0, 0.0)  # "2|5 cm" and the empty piece after the last stop
    with pytest.raises(ValueError, match="not the text that was labelled"):
        report_parsing.sentence_scores(sentences, {"1": {"findings": {"letters": 5, "cuts": []}}}, reports)


def test_the_labels_hold_numbers_only() -> None:
    labels = json.loads(Path(report_parsing.__file__).with_suffix(".json").read_text())
    assert {name: len(rows) for name, rows in labels.items()} == {"uniform": 50, "awkward": 50}
    assert not set(labels["uniform"]) & set(labels["awkward"])
    for rows in labels.values():
        for sections in rows.values():
            for truth in sections.values():
                assert set(truth) == {"letters", "cuts"}
                assert truth["cuts"] == sorted(set(truth["cuts"]))
                assert all(0 < cut < truth["letters"] for cut in truth["cuts"])
