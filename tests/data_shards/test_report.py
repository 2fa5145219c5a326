from __future__ import annotations

import pytest

from data_shards.report import sentences, split_sections


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("No mass. No effusion.", ["No mass.", "No effusion."]),
        ("A 1.5 cm nodule. Stable.", ["A 1.5 cm nodule.", "Stable."]),
        ("Cyst of approx. 3 mm, e.g. simple. Done.", ["Cyst of approx. 3 mm, e.g. simple.", "Done."]),
        ("Dr. J. Smith saw it. It grew.", ["Dr. J. Smith saw it.", "It grew."]),
        ("1. No mass. 2. Effusion, left.\n3) Gallstone", ["No mass.", "Effusion, left.", "Gallstone"]),
        ("IMPRESSION: 1. Nodule. 2. Cyst.", ["Nodule.", "Cyst."]),
        ("The nodule is in segment 4. The liver is normal.", ["The nodule is in segment 4.", "The liver is normal."]),
        ("It measures 12 mm. 2 cysts are seen.", ["It measures 12 mm.", "2 cysts are seen."]),
        ("The lungs\nare clear. The heart\nis normal.", ["The lungs are clear.", "The heart is normal."]),
        ("LUNGS: Clear\nHEART: Normal", ["LUNGS: Clear", "HEART: Normal"]),
        ("lungs are clear . no effusion .", ["lungs are clear .", "no effusion ."]),
        ("Is it new? Yes! It is.", ["Is it new?", "Yes!", "It is."]),
        ("- Effusion\n- Nodule\n\n...", ["Effusion", "Nodule"]),
        ("", []),
    ],
)
def test_sentences(text: str, want: list[str]) -> None:
    assert sentences(text) == want


def test_sections_by_heading() -> None:
    report = (
        "INDICATION: Cough.\nTechnique: CT of the chest.\nFINDINGS:\nLungs: clear. The impression of the aorta "
        "is normal.\n\nImpression: No disease.\nRECOMMENDATION: None."
    )
    assert split_sections(report) == {
        "findings": "Lungs: clear. The impression of the aorta is normal.",
        "impression": "No disease.",
    }
    assert split_sections("One line. FINDINGS: Clear. CONCLUSION: Normal.") == {
        "findings": "Clear.",
        "impression": "Normal.",
    }
    assert split_sections("No headings here.") == {"findings": "", "impression": ""}
