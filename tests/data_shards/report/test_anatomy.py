"""Findings by organ: subheadings, words, four languages, and that no sentence is lost or doubled."""

from __future__ import annotations

import pytest

from data_shards.report import ANATOMY, anatomical_sections, sentences


def said(text: str) -> dict[str, str]:
    found = anatomical_sections(text)
    assert tuple(found) == (*ANATOMY, "other")
    kept = [line for body in found.values() for line in body.splitlines()]
    assert sorted(kept) == sorted(sentences(text))
    return {name: body for name, body in found.items() if body}


SUBHEADINGS = {
    "lower thorax": ("LOWER THORAX", "LUNG BASES", "Lungs and pleura", "Lower chest", "HEART"),
    "liver and biliary tree": (
        "LIVER AND BILIARY TREE",
        "Liver",
        "HEPATOBILIARY",
        "Biliary",
        "LEBER",
        "Foie",
        "Hígado",
    ),
    "gallbladder": ("GALLBLADDER", "Gallenblase", "Vésicule biliaire", "Vesícula"),
    "spleen": ("SPLEEN", "Milz", "Bazo"),
    "pancreas": ("PANCREAS", "Pankreas", "Páncreas"),
    "adrenal glands": ("ADRENAL GLANDS", "Adrenals", "Nebennieren", "Surrénales", "Suprarrenales"),
    "kidneys and ureters": ("KIDNEYS AND URETERS", "Kidneys, ureters", "Nieren", "Reins", "Riñones"),
    "gastrointestinal tract": ("GASTROINTESTINAL TRACT", "GI TRACT", "Bowel", "Stomach and bowel", "Magen", "Estómago"),
    "peritoneum": ("PERITONEAL CAVITY", "Peritoneum", "Mesentery", "Péritoine"),
    "pelvic organs": ("PELVIC ORGANS", "Bladder", "Uterus and ovaries", "Prostate", "Harnblase", "Vessie", "Vejiga"),
    "vasculature": ("VASCULATURE", "Vessels", "Aorta", "Gefäße", "Vaisseaux"),
    "lymph nodes": ("LYMPH NODES", "Nodes", "Lymphknoten", "Adenopatías"),
    "musculoskeletal": ("MUSCULOSKELETAL", "Bones and soft tissues", "ABDOMINAL WALL", "Osseous structures", "Knochen"),
}


@pytest.mark.parametrize(("section", "names"), SUBHEADINGS.items())
def test_subheadings_decide(section: str, names: tuple[str, ...]) -> None:
    for name in names:
        text = f"SPLEEN: Small.\n{name}: Normal. No change of any kind.\nOTHERS: Nothing."
        want = {"spleen": "SPLEEN: Small.", "other": "OTHERS: Nothing."}
        own = f"{name}: Normal.\nNo change of any kind."
        want[section] = f"{want[section]}\n{own}" if section in want else own
        assert said(text) == want, name


def test_a_subheading_holds_against_the_words() -> None:
    text = "LIVER: No mass. The portal vein is open.\nKIDNEYS: No stone at L4-5."
    assert said(text) == {
        "liver and biliary tree": "LIVER: No mass.\nThe portal vein is open.",
        "kidneys and ureters": "KIDNEYS: No stone at L4-5.",
    }
    assert said("LIVER: Normal.\n\nThe spleen is large.") == {
        "liver and biliary tree": "LIVER: Normal.",
        "spleen": "The spleen is large.",
    }


def test_subheadings_on_their_own_lines_and_in_bold() -> None:
    text = (
        "MEDIASTINUM AND HILA:\n\nThe heart is normal.\nNo adenopathy.\n\nPLEURA:\nNo effusion.\n\n**Spleen:** Large."
    )
    assert said(text) == {
        "lower thorax": "MEDIASTINUM AND HILA: The heart is normal.\nPLEURA: No effusion.",
        "lymph nodes": "No adenopathy.",
        "spleen": "**Spleen:** Large.",
    }


def test_one_of_several_organs_is_chosen_by_words() -> None:
    text = "LIVER, GALLBLADDER AND SPLEEN: Normal. Gallstones. Splenomegaly.\nABDOMEN: Renal cyst. All else is fine."
    assert said(text) == {
        "liver and biliary tree": "LIVER, GALLBLADDER AND SPLEEN: Normal.",
        "gallbladder": "Gallstones.",
        "spleen": "Splenomegaly.",
        "kidneys and ureters": "ABDOMEN: Renal cyst.",
        "other": "All else is fine.",
    }


def test_subheadings_in_running_text_end_where_another_organ_begins() -> None:
    assert said("Leber: homogen. Kein Herd. Milz: normal. Die Nieren sind frei.") == {
        "liver and biliary tree": "Leber: homogen.\nKein Herd.",
        "spleen": "Milz: normal.",
        "kidneys and ureters": "Die Nieren sind frei.",
    }


def test_a_filled_in_form_in_running_text_is_strict() -> None:
    text = (
        "Liver: Normal. Hepatic veins are open. Gallbladder: Normal. Spleen: Normal. Pancreas: Normal. Aorta: Normal."
    )
    assert said(text)["liver and biliary tree"] == "Liver: Normal.\nHepatic veins are open."
    assert said(text)["vasculature"] == "Aorta: Normal."


@pytest.mark.parametrize(
    ("sentence", "section"),
    [
        ("The heart is large.", "lower thorax"),
        ("No pleural effusion or pneumothorax.", "lower thorax"),
        ("Small cyst in the liver next to the right kidney.", "liver and biliary tree"),
        ("The common bile duct is wide.", "liver and biliary tree"),
        ("Portal vein thrombosis.", "vasculature"),
        ("The splenic vein is open.", "vasculature"),
        ("Infrarenal abdominal aortic aneurysm.", "vasculature"),
        ("Stone in the gallbladder neck.", "gallbladder"),
        ("Status post cholecystectomy.", "gallbladder"),
        ("The main pancreatic duct is not dilated.", "pancreas"),
        ("Left adrenal nodule.", "adrenal glands"),
        ("The renal pelvis is wide.", "kidneys and ureters"),
        ("No hydronephrosis.", "kidneys and ureters"),
        ("Thick wall of the splenic flexure.", "gastrointestinal tract"),
        ("The appendix is normal.", "gastrointestinal tract"),
        ("Small hiatal hernia.", "gastrointestinal tract"),
        ("No free fluid in the pelvis.", "peritoneum"),
        ("The prostate is large.", "pelvic organs"),
        ("Enlarged nodes along the aorta; pelvic lymphadenopathy.", "lymph nodes"),
        ("Fracture of the left iliac bone.", "musculoskeletal"),
        ("Loss of height of L2.", "musculoskeletal"),
        ("Small umbilical hernia.", "musculoskeletal"),
        ("Nothing else of note.", "other"),
        ("Keine freie Flüssigkeit.", "peritoneum"),
        ("Kein Pleuraerguss.", "lower thorax"),
        ("Die Nebennieren sind schlank.", "adrenal glands"),
        ("Keine Fraktur.", "musculoskeletal"),
        ("La rate est homogène.", "spleen"),
        ("Pas de dilatation des voies biliaires.", "liver and biliary tree"),
        ("Pas d'épanchement péritonéal.", "peritoneum"),
        ("Pas de lésion osseuse.", "musculoskeletal"),
        ("Sin derrame pleural.", "lower thorax"),
        ("Asas intestinales normales.", "gastrointestinal tract"),
        ("No se observan adenopatías retroperitoneales.", "lymph nodes"),
        ("Estructuras óseas sin lesiones.", "musculoskeletal"),
    ],
)
def test_words_decide_without_a_subheading(sentence: str, section: str) -> None:
    assert said(sentence) == {section: sentence}


def test_a_sentence_that_goes_on_stays_with_the_one_before() -> None:
    text = "There is a cyst in the liver. It measures 3 cm. Nothing more to say. Unchanged spleen."
    assert said(text) == {
        "liver and biliary tree": "There is a cyst in the liver.\nIt measures 3 cm.",
        "spleen": "Unchanged spleen.",
        "other": "Nothing more to say.",
    }


def test_nothing_in_nothing_out() -> None:
    assert said("") == {}
    assert said("FINDINGS: The liver is normal. The liver is normal.") == {
        "liver and biliary tree": "The liver is normal.\nThe liver is normal."
    }
