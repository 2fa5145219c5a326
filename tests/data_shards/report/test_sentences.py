"""What ends a sentence of a report and what does not, in four languages. All snippets are made up."""

from __future__ import annotations

import pytest

from data_shards.report import sentences


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
        # sizes and numbers
        ("Mass of 2.5 x 3.1 cm. Cyst of .5 cm. Done.", ["Mass of 2.5 x 3.1 cm.", "Cyst of .5 cm.", "Done."]),
        ("Nodule of 2. 5 cm in the apex. New.", ["Nodule of 2. 5 cm in the apex.", "New."]),
        ("SUV max. 3.5. The mass grew.", ["SUV max. 3.5.", "The mass grew."]),
        ("No. 3 rib is broken, see fig. 2. Old.", ["No. 3 rib is broken, see fig. 2.", "Old."]),
        ("Old fracture? No. None is new.", ["Old fracture?", "No.", "None is new."]),
        ("Stable since 2010. BI-RADS 2. Benign.", ["Stable since 2010.", "BI-RADS 2.", "Benign."]),
        # spinal levels
        ("Disc bulge at L4-5. No stenosis.", ["Disc bulge at L4-5.", "No stenosis."]),
        ("Bulge at L4-5. mild narrowing.", ["Bulge at L4-5. mild narrowing."]),
        ("L3-4. Normal. L4-5. Broad bulge.", ["L3-4. Normal.", "L4-5. Broad bulge."]),
        ("L4-5: Bulge.\nL5-S1: Normal.", ["L4-5: Bulge.", "L5-S1: Normal."]),
        # abbreviations and initials
        ("Mr. Jones vs. Mrs. Smith. Same.", ["Mr. Jones vs. Mrs. Smith.", "Same."]),
        ("Seen at 5 a.m. by Prof. J. R. Doe. Fine.", ["Seen at 5 a.m. by Prof. J. R. Doe.", "Fine."]),
        ("Left at 5 p.m. The tube moved.", ["Left at 5 p.m.", "The tube moved."]),
        (
            "Called at 5 a. m. today. Left at 5 a. m. No pain.",
            ["Called at 5 a. m. today.", "Left at 5 a. m.", "No pain."],
        ),
        ("Known hepatitis C. No mass. Type B. Fine.", ["Known hepatitis C.", "No mass.", "Type B.", "Fine."]),
        (
            "Cysts, nodules, etc. in the liver. Cysts etc. None grew.",
            ["Cysts, nodules, etc. in the liver.", "Cysts etc.", "None grew."],
        ),
        ("Opacity... stable. New.", ["Opacity... stable.", "New."]),
        ("pt with ? pneumonia. Rule out.", ["pt with ? pneumonia.", "Rule out."]),
        # stops without a space
        ("No effusion.The heart is normal.Small cyst.", ["No effusion.", "The heart is normal.", "Small cyst."]),
        ("No mass.. No effusion. .", ["No mass..", "No effusion."]),
        # lists
        ("1.No mass.\n2.Small cyst.", ["No mass.", "Small cyst."]),
        ("1. No mass 2. Small cyst 3. Old clip", ["No mass", "Small cyst", "Old clip"]),
        ("1) No mass 2) Small cyst", ["No mass", "Small cyst"]),
        ("(1) No mass. (2) Small cyst.", ["No mass.", "Small cyst."]),
        ("1. Cyst in segment 2. Stable.\n2. Clip.", ["Cyst in segment 2.", "Stable.", "Clip."]),
        ("Chest 1. No mass. Abdomen 1. No cyst.", ["Chest", "No mass.", "Abdomen", "No cyst."]),
        ("1. Cyst,\n   left kidney.\n2. Clip.\n   - small\n   - old", ["Cyst, left kidney.", "Clip.", "small", "old"]),
        ("• Cyst • Clip", ["Cyst", "Clip"]),
        # lines
        ("Lungs clear\nHeart normal\nNo effusion", ["Lungs clear", "Heart normal", "No effusion"]),
        ("Seen by\nDr.\nSmith of the\nLong ward", ["Seen by Dr. Smith of the Long ward"]),
        ("Lungs clear\n\nHeart normal", ["Lungs clear", "Heart normal"]),
        (
            "There is a small nodule in the left upper lobe that has not changed, and the\nRight lung is clear.",
            ["There is a small nodule in the left upper lobe that has not changed, and the Right lung is clear."],
        ),
        # de-identification marks
        (
            "Compared to ___. Dr. ___ was told at ___ p.m. on ___. Fine.",
            ["Compared to ___.", "Dr. ___ was told at ___ p.m. on ___.", "Fine."],
        ),
        (
            "Seen by [**Name (NI) 1. 2**]. On [**2118-1-3**] a clip.",
            ["Seen by [**Name (NI) 1. 2**].", "On [**2118-1-3**] a clip."],
        ),
        (
            "On <DATE>. [NAME] was told. At [DATE] no change.",
            ["On <DATE>.", "[NAME] was told.", "At [DATE] no change."],
        ),
        ("Told Dr. XXXX at XXXX p.m. XXXX. Normal XXXX.", ["Told Dr. XXXX at XXXX p.m. XXXX.", "Normal XXXX."]),
        # German
        ("Z. B. eine Zyste. Die 5. Rippe ist frei.", ["Z. B. eine Zyste.", "Die 5. Rippe ist frei."]),
        (
            "Rundherd im li. Unterlappen, ca. 3 mm. Erguss bds. Herz normal.",
            ["Rundherd im li. Unterlappen, ca. 3 mm.", "Erguss bds.", "Herz normal."],
        ),
        (
            "Leber o.B. Milz o. B. Z.n. Fraktur, V.a. Metastase.",
            ["Leber o.B.", "Milz o. B.", "Z.n. Fraktur, V.a. Metastase."],
        ),
        (
            "Kontrolle am 12. März 2020. Vom 12. 3. 2020. Keine Änderung.",
            ["Kontrolle am 12. März 2020.", "Vom 12. 3. 2020.", "Keine Änderung."],
        ),
        (
            "Zyste in Segment 4. Die A. carotis ist frei. Dr. med. Muster.",
            ["Zyste in Segment 4.", "Die A. carotis ist frei.", "Dr. med. Muster."],
        ),
        # French
        (
            "Nodule d'env. 3 mm, cf. image 3. M. Dupont va bien.",
            ["Nodule d'env. 3 mm, cf. image 3.", "M. Dupont va bien."],
        ),
        ("Lésion de 1,5 cm. P. ex. un kyste. Mme. Curie.", ["Lésion de 1,5 cm.", "P. ex. un kyste.", "Mme. Curie."]),
        ("Lobe inf. droit libre. Rate : n° 3. Normal.", ["Lobe inf. droit libre.", "Rate : n° 3.", "Normal."]),
        # Spanish
        (
            "Nódulo de aprox. 3 mm. La Dra. García y el Sr. López, p. ej. hoy. Hígado normal.",
            ["Nódulo de aprox. 3 mm.", "La Dra. García y el Sr. López, p. ej. hoy.", "Hígado normal."],
        ),
    ],
)
def test_sentences(text: str, want: list[str]) -> None:
    assert sentences(text) == want


def test_a_subheading_on_its_own_line_belongs_to_what_follows() -> None:
    text = "LUNGS:\nClear. No mass.\n\nLIVER:\n\n- Cyst\n- Clip\n\n**Heart:** Normal.\nSPLEEN:"
    want = ["LUNGS: Clear.", "No mass.", "LIVER: Cyst", "Clip", "**Heart:** Normal.", "SPLEEN:"]
    assert sentences(text) == want


def test_headings_are_left_out_and_break() -> None:
    report = "FINDINGS\nLungs clear\n\n**Impression**\n1. Normal\nBeurteilung: Kein Erguss"
    assert sentences(report) == ["Lungs clear", "Normal", "Kein Erguss"]


def test_masks_stay_whole_and_in_their_places() -> None:
    text = "[**A. B**] saw\n[**C.\nD**]. <NAME> came. It was [**E! F**]."
    assert sentences(text) == ["[**A. B**] saw [**C. D**].", "<NAME> came.", "It was [**E! F**]."]
