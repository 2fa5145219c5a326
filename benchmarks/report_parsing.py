"""How well report text is cut: `python -m benchmarks.report_parsing --reports NLMCXR_reports.tgz [--pysbd PYTHON]`.

The reports are the 3,955 of Open-i (Indiana University; CC BY-NC-ND 4.0, so nothing of them is kept here), which lie
in the PyPI wheel torchxrayvision 1.5.7 as torchxrayvision/data/NLMCXR_reports.tgz; their XML labels four sections.

sections    Flat texts are written from the XML in several styles of heading, and `split_sections` must give each
            section back, word for word. A text counts as right when all four sections are. These texts were also
            what the headings were developed on.
sentences   report_parsing.json holds the sentence boundaries of 2 x 50 reports as numbers of letters before each
            boundary: "uniform" are 50 of all reports (random.Random(4)), "awkward" 50 of the 389 others with a stop
            that no capital follows, an abbreviation, a number inside a line or a capitalised word inside a sentence
            (random.Random(5)). One person (no radiologist) read and labelled them before the splitter was changed,
            and then wrote its rules, looking at the other 3,855 reports and at errors on these 100 only at the end;
            having read them, that person knew what is in them. Boundaries are compared between letters, so list
            numbers may stay or go; a piece without any letter is a false boundary.
masks       What `deidentify` finds in these reports, which were de-identified before they were published.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

from data_shards.deidentify import Counts, deidentify
from data_shards.report import sentences, split_sections

Splitter = Callable[[str], list[str]]
SECTION = {"FINDINGS": "findings", "IMPRESSION": "impression", "COMPARISON": "comparison", "INDICATION": "history"}
STYLES: dict[str, Callable[[str, str], str]] = {
    "`FINDINGS: text`, a line each": lambda k, v: f"{k}: {v}\n",
    "`FINDINGS:`, then lines of 72": lambda k, v: f"{k}:\n{textwrap.fill(v, 72, break_on_hyphens=False)}\n\n",
    "`FINDINGS` on its own line": lambda k, v: f"{k}\n{v}\n\n",
    "`FINDINGS text`, a line each": lambda k, v: f"{k} {v}\n",
    "`Findings: text`, a line each": lambda k, v: f"{k.title()}: {v}\n",
    "`Findings` on its own line": lambda k, v: f"{k.title()}\n{v}\n\n",
    "`Findings - text`, a line each": lambda k, v: f"{k.title()} - {v}\n",
    "`**Findings**` on its own line": lambda k, v: f"**{k.title()}**\n{v}\n\n",
    "`findings: text`, all in lower case": lambda k, v: f"{k.lower()}: {v.lower()}\n",
    "`FINDINGS: TEXT`, all in capitals": lambda k, v: f"{k}: {v.upper()}\n",
    "`FINDINGS: text`, all in one line": lambda k, v: f"{k}: {v} ",
    "`Findings: text`, all in one line": lambda k, v: f"{k.title()}: {v} ",
    "`FINDINGS: TEXT`, capitals in one line": lambda k, v: f"{k}: {v.upper()} ",
    "`FINDINGS text`, all in one line": lambda k, v: f"{k} {v} ",
}


def read(path: Path) -> dict[str, dict[str, str]]:
    """Number -> label -> text of every report; empty sections are left out."""
    reports = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                root = ElementTree.fromstring(file.read())
                texts = {a.get("Label", ""): a.text or "" for a in root.iter("AbstractText")}
                reports[Path(member.name).stem] = {k: v for k, v in texts.items() if k in SECTION and v.strip()}
    return reports


def quirky(report: dict[str, str]) -> bool:
    """Whether a section's own text holds a heading or ends in one cut off: there the XML is no truth."""
    inside = re.compile(rf"\b(?:{'|'.join(SECTION)}|Comparison|History):|\bClinical\s*$")
    return any(inside.search(text) for text in report.values())


def section_accuracy(reports: dict[str, dict[str, str]]) -> list[tuple[str, int, dict[str, int]]]:
    """(style, texts that are right in all sections, right by section)."""
    rows = []
    for style, write in STYLES.items():
        right, by_section = 0, dict.fromkeys(SECTION, 0)
        for report in reports.values():
            want = {label: _plain(report.get(label, "")) for label in SECTION}
            got = split_sections("".join(write(k, " ".join(v.split())) for k, v in report.items()))
            equal = {label: _plain(got[name]) == want[label] for label, name in SECTION.items()}
            right += all(equal.values())
            for label, same in equal.items():
                by_section[label] += same
        rows.append((style, right, by_section))
    return rows


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def boundaries(pieces: Sequence[str]) -> tuple[set[int], int]:
    """(letters before each inner boundary, pieces without a letter)."""
    letters = [sum(c.isalpha() for c in piece) for piece in pieces]
    total, inner = sum(letters), set()
    at = 0
    for n in letters:
        at += n
        inner.add(at)
    return inner - {0, total}, letters.count(0)


def sentence_scores(
    split: Splitter, labels: dict[str, dict], reports: dict[str, dict[str, str]]
) -> tuple[float, float, float]:
    """(precision, recall of boundaries; share of reports that are cut exactly)."""
    hits = wrong = missed = exact = 0
    for number, sections in labels.items():
        errors = 0
        for name, truth in sections.items():
            text = reports[number][name.upper()]
            if sum(c.isalpha() for c in text) != truth["letters"]:
                raise ValueError(f"report {number} is not the text that was labelled: take torchxrayvision 1.5.7")
            found, empty = boundaries(split(text))
            want = set(truth["cuts"])
            hits += len(found & want)
            wrong += (false := len(found - want) + empty)
            missed += (lost := len(want - found))
            errors += false + lost
        exact += errors == 0
    return hits / max(1, hits + wrong), hits / max(1, hits + missed), exact / len(labels)


def naive(text: str) -> list[str]:
    return [piece for piece in re.split(r"(?<=\.)\s+", text) if piece.strip()]


def peer(python: str) -> Splitter:
    """pysbd in its own environment, one process for all texts."""
    code = (
        "import sys, json, pysbd; s = pysbd.Segmenter(language='en', clean=False)\n"
        "for line in sys.stdin: print(json.dumps(s.segment(json.loads(line))), flush=True)"
    )
    process = subprocess.Popen(
        [python, "-W", "ignore", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    give, take = process.stdin, process.stdout

    def split(text: str) -> list[str]:
        give.write(json.dumps(text) + "\n")
        give.flush()
        return json.loads(take.readline())

    return split


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report_parsing", description="How well report text is cut."
    )
    add = parser.add_argument
    add("--reports", type=Path, required=True, metavar="TGZ", help="NLMCXR_reports.tgz of PyPI torchxrayvision 1.5.7")
    add("--pysbd", metavar="PYTHON", help="a Python that has pysbd, to compare with")
    args = parser.parse_args(argv)
    reports = read(args.reports)
    kept = {number: report for number, report in reports.items() if report and not quirky(report)}
    print(
        f"{len(reports)} reports; sections are scored on {len(kept)} "
        "(the others are empty, or the XML has a heading inside a section)\n"
    )
    print(
        "| headings | all sections right | "
        + " | ".join(s.lower() for s in SECTION)
        + " |\n|---|---|"
        + "---|" * len(SECTION)
    )
    for style, right, by_section in section_accuracy(kept):
        shares = [f"{n / len(kept):.2%}" for n in (right, *by_section.values())]
        print(f"| {style} | " + " | ".join(shares) + " |")
    labels = json.loads(Path(__file__).with_suffix(".json").read_text())
    splitters: dict[str, Splitter] = {"data_shards.report.sentences": sentences, "split at every full stop": naive}
    if args.pysbd:
        splitters["pysbd"] = peer(args.pysbd)
    print("\n| reports | sentences by | precision | recall | exact reports |\n|---|---|---|---|---|")
    for name, rows in labels.items():
        for title, split in splitters.items():
            precision, recall, exact = sentence_scores(split, rows, reports)
            print(f"| {len(rows)} {name} | {title} | {precision:.2%} | {recall:.2%} | {exact:.0%} |")
    masks = sum((deidentify("\n".join(report.values()))[1] for report in reports.values()), Counts())
    print(f"\nMasks in these de-identified reports: {masks}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
