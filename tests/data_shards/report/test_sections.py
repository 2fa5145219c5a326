"""Headings as real reports write them, and prose that only looks like one. All snippets are made up."""

from __future__ import annotations

import pytest

from data_shards.report import SECTIONS, split_sections


def said(text: str) -> dict[str, str]:
    sections = split_sections(text)
    assert tuple(sections) == SECTIONS
    return {name: body for name, body in sections.items() if body}


CLEAR = {"findings": "Lungs are clear.", "impression": "Normal."}


@pytest.mark.parametrize(
    "text",
    [
        "FINDINGS: Lungs are clear.\nIMPRESSION: Normal.",
        "FINDINGS:\nLungs are clear.\n\nIMPRESSION:\nNormal.",
        "FINDINGS\nLungs are clear.\n\nIMPRESSION\nNormal.",
        "FINDINGS\n--------\nLungs are clear.\nIMPRESSION\n==========\nNormal.",
        "FINDINGS Lungs are clear. IMPRESSION Normal.",
        "FINDINGS - Lungs are clear.\nIMPRESSION – Normal.",
        "FINDINGS- Lungs are clear. IMPRESSION- Normal.",
        "FINDINGS:Lungs are clear.IMPRESSION:Normal.",
        "Findings: Lungs are clear. Impression: Normal.",
        "Findings\nLungs are clear.\n\nImpression\nNormal.",
        "Findings Lungs are clear.\nImpression Normal.",
        "**Findings**\nLungs are clear.\n\n**Impression:** Normal.",
        "**FINDINGS:**\nLungs are clear.\n__Impression__: Normal.",
        "## Findings\n\nLungs are clear.\n\n### Impression\nNormal.",
        "<b>FINDINGS</b>: Lungs are clear.\n[IMPRESSION]\nNormal.",
        "1. FINDINGS\nLungs are clear.\n2. IMPRESSION\nNormal.",
        "1. Findings: Lungs are clear.\n2. Impression: Normal.",
        "1) Findings: Lungs are clear. 2) Impression: Normal.",
        "A. FINDINGS:\nLungs are clear.\nB. IMPRESSION:\nNormal.",
        "II. FINDINGS: Lungs are clear.\nIII. IMPRESSION: Normal.",
        "FINDINGS\n:\nLungs are clear.\nIMPRESSION\n: Normal.",
        "CT FINDINGS: Lungs are clear.\nFINAL IMPRESSION: Normal.",
        "FINDINGS (CT CHEST): Lungs are clear.\nIMPRESSION (PRELIMINARY):\nNormal.",
        "Radiological Findings:\nLungs are clear.\nDiagnostic Impression:\nNormal.",
        "FINDINGS CT CHEST: Lungs are clear.\nIMPRESSION/RECOMMENDATION: Normal.",
        "FINDINGS: Lungs are clear. IMP: Normal.",
        "DESCRIPTION: Lungs are clear.\nCONCLUSIONS: Normal.",
        "  FINDINGS :   Lungs are clear.\r\n  IMPRESSION :  Normal.\r\n",
        "Befund:\nLungs are clear.\nBeurteilung:\nNormal.",
        "CT-Befund: Lungs are clear.\nZusammenfassende Beurteilung: Normal.",
        "Befund Thorax: Lungs are clear.\nBEURTEILUNG\nNormal.",
        "RÉSULTATS : Lungs are clear.\nCONCLUSION : Normal.",
        "RESULTATS\nLungs are clear.\nAu total : Normal.",
        "Hallazgos:\nLungs are clear.\nImpresión diagnóstica: Normal.",
        "HALLAZGOS Lungs are clear.\nCONCLUSIÓN: Normal.",
        "Reperti: Lungs are clear.\nConclusioni: Normal.",
        "Achados: Lungs are clear.\nImpressão: Normal.",
        "Bevindingen: Lungs are clear.\nConclusie: Normal.",
    ],
)
def test_spellings_of_headings(text: str) -> None:
    assert said(text) == CLEAR


def test_capitals_and_lower_case_throughout() -> None:
    assert said("FINDINGS: THE LUNGS ARE CLEAR. IMPRESSION: NORMAL.") == {
        "findings": "THE LUNGS ARE CLEAR.",
        "impression": "NORMAL.",
    }
    assert said("indication : cough . findings : lungs clear . impression : normal .") == {
        "history": "cough .",
        "findings": "lungs clear .",
        "impression": "normal .",
    }
    assert said("findings\nlungs clear\n\nimpression\nnormal") == {"findings": "lungs clear", "impression": "normal"}


@pytest.mark.parametrize(
    "text",
    [
        "There is no finding: nothing was seen. Deep impression: of the calcaneus.",
        "impression: of the calcaneus, old.",
        "There were no significant\nfindings\nin the lungs.",
        "There were no acute\nfindings: the lungs are clear.",
        "The impression of the aorta is normal. Comparison CT shows a stable nodule.",
        "Impression on the thecal sac, mild. Technique limited by motion.",
        "THERE ARE NO FINDINGS OF NOTE. NO FINDINGS: NONE.",
        "There are no FINDINGS suspicious for cancer.",
        "Im Vergleich zum Befund: keine Änderung. Kein pathologischer\nBefund\nder Leber.",
        "Es liegt kein Befund: vor.",
        "On ne voit pas d'autres résultats: rien. La conclusion: reste la même.",
        "Sin hallazgos: pulmones normales. No hay otros hallazgos significativos.",
        "History of cancer. Procedure well tolerated. Exam limited. Report to follow.",
    ],
)
def test_prose_is_no_heading_and_is_not_lost(text: str) -> None:
    assert said(text) == {"findings": text}


def test_findings_that_an_impression_speaks_of() -> None:
    assert said("IMPRESSION: FINDINGS CONSISTENT WITH ASTHMA.") == {"impression": "FINDINGS CONSISTENT WITH ASTHMA."}
    text = "Impression:\n1. No mass.\n2. Findings suggest old disease."
    assert said(text) == {"impression": "1. No mass.\n2. Findings suggest old disease."}


def test_every_section_of_an_english_report() -> None:
    report = """RADIOLOGY REPORT

Exam: CT abdomen with contrast
Reason for exam: Pain after a fall.
Medical History: Gout.

COMPARISON STUDIES: CT of last year.

TECHNIQUE:
Axial images.
CONTRAST: 100 mL.

FINDINGS:
Liver: Normal.

IMPRESSION:
1. Normal.

RECOMMENDATIONS: None.
ADDENDUM: The spine is normal too.
ELECTRONICALLY SIGNED BY: X"""
    assert said(report) == {
        "examination": "CT abdomen with contrast",
        "history": "Pain after a fall.\nGout.",
        "comparison": "CT of last year.",
        "technique": "Axial images.\n100 mL.",
        "findings": "Liver: Normal.",
        "impression": "1. Normal.",
        "recommendation": "None.",
        "addendum": "The spine is normal too.",
        "other": "X",
    }


@pytest.mark.parametrize(
    "text",
    [
        "Klinische Angaben: A.\nTechnik: B.\nVoraufnahmen: C.\nBefund: D.\nBeurteilung: E.\nEmpfehlung: F.",
        "Rechtfertigende Indikation:\nA.\nUntersuchungstechnik:\nB.\nVoruntersuchungen:\nC.\nBEFUND\nD.\nFazit: E.\n"
        "Procedere: F.",
        "INDICATION : A.\nTECHNIQUE : B.\nCOMPARAISON : C.\nRÉSULTATS : D.\nCONCLUSION : E.\nRecommandations : F.",
        "Renseignements cliniques\nA.\n\nTechnique\nB.\n\nExamens antérieurs\nC.\n\nRésultats\nD.\n\nSynthèse\nE.\n\n"
        "Conduite à tenir : F.",
        "Antecedentes: A.\nTécnica: B.\nComparación: C.\nHallazgos: D.\nImpresión: E.\nRecomendaciones: F.",
        "DATOS CLÍNICOS\nA.\nTÉCNICA\nB.\nESTUDIOS PREVIOS\nC.\nHALLAZGOS\nD.\nJUICIO DIAGNÓSTICO\nE.\n"
        "RECOMENDACIÓN: F.",
    ],
)
def test_every_section_in_german_french_and_spanish(text: str) -> None:
    assert said(text) == {
        "history": "A.",
        "technique": "B.",
        "comparison": "C.",
        "findings": "D.",
        "impression": "E.",
        "recommendation": "F.",
    }


def test_earlier_images_named_without_a_colon() -> None:
    text = "Technik:\nCT.\n\nVoraufnahmen vom Vortag.\n\nBefund:\nKein Erguss."
    assert said(text) == {"technique": "CT.", "comparison": "vom Vortag.", "findings": "Kein Erguss."}


def test_text_without_a_heading_is_findings() -> None:
    assert said("The lungs are clear.\nNo effusion.") == {"findings": "The lungs are clear.\nNo effusion."}
    body = "The lungs are clear. Heart size is normal."
    assert said(f"{body}\n\nIMPRESSION: Normal.") == {"findings": body, "impression": "Normal."}
    set_off = f"HISTORY: Cough.\n\nTECHNIQUE: Two views.\n\n{body}\n\nStable.\n\nIMPRESSION: Normal."
    assert said(set_off) == {
        "history": "Cough.",
        "technique": "Two views.",
        "findings": f"{body}\n\nStable.",
        "impression": "Normal.",
    }


def test_text_without_a_heading_beside_findings_is_other() -> None:
    assert said("One line. FINDINGS: Clear. CONCLUSION: Normal.") == {
        "other": "One line.",
        "findings": "Clear.",
        "impression": "Normal.",
    }
    assert said("CHEST PA AND LATERAL\nIMPRESSION: Normal.") == {
        "other": "CHEST PA AND LATERAL",
        "impression": "Normal.",
    }
    assert said("IMPRESSION: Normal.") == {"impression": "Normal."}
    assert said("") == said(" \n ") == {}


def test_short_forms() -> None:
    want = {
        "history": "Cough.",
        "comparison": "None.",
        "technique": "CT.",
        "findings": "Clear.",
        "impression": "Normal.",
    }
    assert said("HX: Cough.\nCOMP: None.\nTECH: CT.\nFINDINGS: Clear.\nIMP: Normal.") == want
    text = "Tech was Ann. Comp is pending. Hx of cough, imp by phone."
    assert said(text) == {"findings": text}


def test_a_heading_that_only_says_report() -> None:
    assert said("REPORT: Clear.\nIMPRESSION: Normal.") == {"findings": "Clear.", "impression": "Normal."}
    text = "Informe radiológico:\nModalidad: TC\n\nHallazgos:\nNormal.\n\n----------\nConclusión: Nada."
    assert said(text) == {"other": "Modalidad: TC", "findings": "Normal.", "impression": "Nada."}
    text = "FINAL REPORT\nINDICATION: Pain.\nFINDINGS: Clear."
    assert said(text) == {"history": "Pain.", "findings": "Clear."}


def test_markup() -> None:
    text = "# Scanner\n\n## 1. Indication clinique\n\nToux.\n\n---\n\n## 2. Résultats\n\n### 2.1 Plèvre\n\nNormale."
    assert said(text) == {"other": "# Scanner", "history": "Toux.", "findings": "### 2.1 Plèvre\n\nNormale."}
    text = "<h3>IMPRESSION:</h3><p>Normal.</p><h3>FINDINGS:</h3><p>Clear.</p>"
    assert said(text) == {"impression": "<p>Normal.</p>", "findings": "<p>Clear.</p>"}


def test_a_section_given_twice_is_joined() -> None:
    assert said("FINDINGS: A. ADDENDUM: B. FINDINGS: C.") == {"findings": "A.\nC.", "addendum": "B."}
    assert said("FINDINGS AND IMPRESSION: All is well.") == {"findings": "All is well."}


def test_no_word_is_lost() -> None:
    report = "Title\nINDICATION: a b\nTECHNIQUE c d\n\ne f g h. i\nNOTIFICATION: j\nIMPRESSION\nk\nlast"
    words = " ".join(split_sections(report).values()).split()
    assert sorted(words) == ["Title", "a", "b", "c", "d", "e", "f", "g", "h.", "i", "j", "k", "last"]
