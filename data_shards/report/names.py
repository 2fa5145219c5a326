"""The names of sections in radiology reports, by language, and the canonical section each stands for.

Written down from the field's usage, all in lower case without accents (see `fold`). A name that is also an ordinary
word ("report", "history") is WEAK: it needs a colon, or a line of its own.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def listed(text: str) -> list[str]:
    """What stands between commas, on however many lines."""
    return " ".join(text.split()).split(", ")


SECTIONS = (
    "findings", "impression", "technique", "comparison", "history", "examination", "recommendation", "addendum",
    "other",
)  # fmt: skip

# "it" also holds Portuguese and Dutch. "title" only says that a report begins: what follows has no heading yet.
# "report" holds the findings, unless another heading does.
NAMES: dict[str, dict[str, str]] = {
    "en": {
        "findings": (
            "findings, finding, observations, description, results, findings and impression, findings/impression, "
            "impression and findings, impression/findings"
        ),
        "impression": (
            "impression, impressions, imp, impr, conclusion, conclusions, opinion, summary, assessment, "
            "interpretation, diagnosis, impression and recommendation, impression and recommendations, impression and "
            "plan, impression/recommendation, impression/recommendations, impression/plan, conclusion and "
            "recommendation, summary and recommendation, summary of findings, bottom line"
        ),
        "technique": (
            "technique, techniques, tech, protocol, contrast, contrast material, radiation dose, dose, limitations, "
            "technique and contrast, procedure and technique, scan technique, imaging technique, views, examination "
            "technique, image quality, medications"
        ),
        "comparison": (
            "comparison, comparisons, comp, comparison studies, comparison study, comparison exam, comparison exams, "
            "comparison examination, comparison examinations, prior studies, prior study, previous studies, previous "
            "study, prior exam, prior exams, prior examinations, previous examinations, prior imaging, compared to, "
            "comparison date, comparison films, comparison with prior studies"
        ),
        "history": (
            "history, hx, clinical hx, indication, indications, clinical indication, clinical indications, clinical "
            "information, clinical history, clinical data, clinical details, clinical statement, clinical question, "
            "clinical notes, clinical diagnosis, clinical background, clinical context, medical history, patient "
            "history, past history, past medical history, relevant history, brief history, pertinent history, history "
            "and indication, indication and history, indication/history, history/indication, indication for study, "
            "indication for exam, indication for examination, reason for exam, reason for examination, reason for "
            "study, reason for this examination, reason for this exam, reason for the exam, reason for visit, reason "
            "for request, reason, symptoms, admitting diagnosis, preoperative diagnosis, underlying medical "
            "condition, history of present illness, clinical, background"
        ),
        "examination": (
            "examination, exam, procedure, study, type of exam, type of examination, exam type, exam description, "
            "examination performed, procedure performed, study performed, exams, examinations, final examination"
        ),
        "recommendation": "recommendation, recommendations, follow-up, follow up, followup, management, advice, plan",
        "addendum": "addendum, addenda",
        "other": (
            "notification, notifications, communication, critical results, critical result, attestation, disclaimer, "
            "wet read, preliminary report, electronically signed by, signed by, dictated by, dictated, transcribed "
            "by, attending, attending radiologist, reading physician, signature, comment, comments"
        ),
        "title": "final report, radiology report, imaging report, report text",
        "report": "report, body of report",
    },
    "de": {
        "findings": "befund, befunde, befundung, befund und beurteilung, befund/beurteilung",
        "impression": (
            "beurteilung, zusammenfassung, fazit, bewertung, einschatzung, gesamtbeurteilung, diagnose, diagnosen, "
            "zusammenfassende beurteilung, ergebnis, beurteilung und empfehlung"
        ),
        "technique": (
            "technik, untersuchungstechnik, aufnahmetechnik, methode, methodik, kontrastmittel, protokoll, technik "
            "und methode, durchfuhrung, kontrastmittelgabe, untersuchungsprotokoll"
        ),
        "comparison": (
            "voraufnahmen, voraufnahme, voruntersuchung, voruntersuchungen, vergleich, vergleichsuntersuchung, "
            "vergleichsuntersuchungen, vergleichsaufnahme, vergleichsaufnahmen, vorbefund, vorbefunde, zum vergleich, "
            "im vergleich, bildgebende voruntersuchungen"
        ),
        "history": (
            "klinische angaben, klinische angabe, klinik, anamnese, indikation, rechtfertigende indikation, "
            "fragestellung, klinische fragestellung, klinik und fragestellung, klinik/fragestellung, klinische "
            "information, klinische informationen, vorgeschichte, klinische daten, klinischer kontext, indikation und "
            "fragestellung, indikation/fragestellung, anamnese und fragestellung, klinische angaben und "
            "fragestellung, klinische angaben/fragestellung, untersuchungsgrund, angaben zur klinik, vorerkrankungen"
        ),
        "examination": "untersuchung, untersuchungen, untersuchungsart, durchgefuhrte untersuchung",
        "recommendation": "empfehlung, empfehlungen, procedere, prozedere, weiteres vorgehen",
        "addendum": "nachtrag, erganzung, zusatz",
        "other": "unterschrift, mitteilung",
        "title": "befundbericht, radiologischer befund",
    },
    "fr": {
        "findings": "resultats, resultat, constatations, description, observation",
        "impression": (
            "conclusion, conclusions, synthese, au total, en resume, en conclusion, impression, impression "
            "diagnostique, interpretation, diagnostic"
        ),
        "technique": (
            "technique, technique d'examen, technique d'acquisition, protocole, protocole d'examen, technique de "
            "l'examen, injection, technique utilisee, qualite de l'examen"
        ),
        "comparison": (
            "comparaison, comparaisons, examens anterieurs, examen anterieur, examens comparatifs, examen comparatif, "
            "examen de reference, examens precedents, elements de comparaison, comparatif, comparaison avec examens "
            "anterieurs, comparaison avec les examens anterieurs"
        ),
        "history": (
            "indication, indications, indication clinique, renseignements cliniques, contexte, contexte clinique, "
            "motif, motif de l'examen, antecedents, histoire clinique, donnees cliniques, indication de l'examen, "
            "histoire de la maladie, question posee, renseignement clinique, informations cliniques"
        ),
        "examination": "examen, examens, type d'examen, examen realise",
        "recommendation": "recommandation, recommandations, conduite a tenir",
        "addendum": "complement",
        "other": "signe par, medecin, commentaire, commentaires",
        "title": "compte rendu d'examen, compte rendu radiologique",
        "report": "compte rendu, compte-rendu",
    },
    "es": {
        "findings": "hallazgos, hallazgo, descripcion, resultados",
        "impression": (
            "impresion, impresion diagnostica, conclusion, conclusiones, diagnostico, juicio diagnostico, opinion, "
            "resumen, impresion radiologica, valoracion, juicio clinico"
        ),
        "technique": (
            "tecnica, metodo, protocolo, contraste, tecnica de exploracion, tecnica de estudio, tecnica y protocolo"
        ),
        "comparison": (
            "comparacion, comparaciones, estudios previos, estudio previo, estudios anteriores, examenes previos, "
            "estudio comparativo, exploraciones previas, comparado con"
        ),
        "history": (
            "antecedentes, indicacion, indicaciones, motivo, motivo de consulta, motivo de la exploracion, motivo de "
            "estudio, motivo del estudio, historia clinica, datos clinicos, informacion clinica, indicacion clinica, "
            "sospecha diagnostica, antecedentes clinicos, antecedentes personales, orientacion diagnostica, clinica, "
            "contexto clinico"
        ),
        "examination": (
            "exploracion, estudio, tipo de estudio, prueba, estudio realizado, examen realizado, esame, exame, "
            "onderzoek"
        ),
        "recommendation": "recomendacion, recomendaciones, sugerencia, sugerencias, raccomandazioni, recomendacao",
        "addendum": "adenda",
        "other": "firma, firmado, observaciones",
        "report": "informe, informe radiologico",
    },
    "it": {
        "findings": "reperti, reperto, achados, bevindingen",
        "impression": "conclusioni, conclusione, impressao, impressao diagnostica, conclusao, conclusie",
        "technique": "tecnica d'esame, metodica, techniek, tecnica di esame",
        "comparison": "confronto, esami precedenti, comparacao, exames anteriores, vergelijking",
        "history": (
            "quesito clinico, quesito diagnostico, notizie cliniche, indicazione, anamnesi, indicacao, indicacao "
            "clinica, historia clinica, klinische gegevens, vraagstelling, indicatie"
        ),
        "report": "referto, relatorio, verslag",
    },
}

# Names that are also ordinary words: they need a colon, or a line of their own.
WEAK = frozenset(
    listed("""
    hx, imp, impr, tech, comp, advice, anamnese, assessment, attending, au total, background, befundung, bewertung,
    bottom line, clinica, clinical, comment, comments, communication, comparado con, comparatif, compared to,
    complement, contexte, contrast, contrast material, contraste, description, diagnose, diagnosen, diagnosis,
    diagnostic, diagnostico, dictated, dictated by, dose, durchfuhrung, electronically signed by, en conclusion, en
    resume, erganzung, ergebnis, esame, estudio, exam, exame, examen, examens, examination, examinations, exams,
    exploracion, finding, firma, firmado, follow up, follow-up, followup, history, im vergleich, image quality,
    indikation, informe, injection, interpretation, klinik, kontrastmittel, limitations, management, medecin,
    medications, methode, metodo, mitteilung, motif, motivo, notification, observation, observations, opinion, plan,
    procedure, protocol, protocole, protocolo, protokoll, prueba, radiation dose, reason, referto, relatorio,
    report, resultat, results, resumen, signature, signe par, signed by, study, sugerencia, summary, symptoms,
    transcribed by, unterschrift, untersuchung, untersuchungen, vergleich, verslag, views, zum vergleich, zusatz
""")
)

# Words before a name that keep it the same section: "CT FINDINGS", "FINAL IMPRESSION".
BEFORE = words("""
    ct cta mr mri mra pet pet/ct pet-ct us xr cxr ultrasound radiographic radiological radiologic imaging chest
    abdomen abdominal abdomen/pelvis pelvis pelvic thorax thoracic head brain neck spine lumbar cervical cardiac
    mammographic sonographic final preliminary overall additional other incidental key main general relevant
    pertinent detailed positive significant diagnostic radiology radiologist's my report scan clinical brief and of
    tomographic
""")

# Of these, the ones that never begin a heading by themselves.
GENERIC_BEFORE = words("and of my report")


def _accents() -> dict[int, str]:
    import unicodedata

    table = {}
    for code in range(0x250):
        low = chr(code).lower()
        base = unicodedata.normalize("NFD", low)[0]
        table[code] = base
    return table | {0x2019: "'", 0x00A0: " ", 0x2011: "-"}


_FOLD = _accents()
# name -> (section, language it is first listed under)
BY_NAME: dict[str, tuple[str, str]] = {}
for _language, _sections in NAMES.items():
    for _section, _names in _sections.items():
        for _name in _names.split(", "):
            BY_NAME.setdefault(_name, (_section, _language))


def fold(text: str) -> str:
    """Lower case without accents, of the same length: offsets in it are offsets in `text`."""
    return text.translate(_FOLD)
