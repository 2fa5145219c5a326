"""Where a report names people: after a title ("Dr.", "Frau") or a field ("Patient:", "signed by"), before a degree."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_shards.identifiers import alternatives
from data_shards.report.names import words

_UPPER = "A-ZÀ-ÖØ-Þ"
_PART = alternatives("van, von, der, den, de, del, della, di, da, dos, la, le, bin, ibn, al, el, zu, ter, ten, y, e")
_TOKEN = rf"(?:[{_UPPER}]\.(?:-?[{_UPPER}]\.)*|(?:O'|D'|Mc|Mac|L')?[{_UPPER}][\w’'-]{{0,40}})"
_NAME = re.compile(
    rf"{_TOKEN}(?:,?[ \t]{{1,2}}(?:{_PART}[ \t]+){{0,2}}{_TOKEN}){{0,3}}"
    rf"|(?:(?![ye]\s){_PART}[ \t]+){{1,2}}{_TOKEN}(?:[ \t]+{_TOKEN})?"
)
_ACADEMIC = r"(?:(?:Dr|Prof|med|rer|nat|univ|dent|habil|h\.?[ \t]?c|PD|OA|Priv\.-Doz)\b\.?[ \t]*)*"
_TITLE = re.compile(
    r"(?<![\w-])(?:"
    + alternatives(
        "Drs?, DR, Pr, Prof, PROF, Professor, Doctor, Docteur, Doktor, Mr, Mrs, Ms, Mx, Miss, Nurse, Mme, Mlle, Mmes",
        "Monsieur, Madame, Sra, Srta, Dra, Dña, Señora?, Don, Doña, Dott, Frau, Herrn?, Frl",
        r"Oberarzt, Oberärztin, Chefarzt, Priv\.-Doz",
        r"(?:PD|OA)(?=[ \t]+(?:Dr|Prof)\b)",  # alone: proton density, osteoarthritis
    )
    + r"(?:\.|\b)|(?:MR|MRS|MS|Sr|SR|Fr|Hr)\."  # without the full stop these are MR imaging and the like
    + rf"|M\.(?= [{_UPPER}][a-zà-ö]{{2}}))[ \t]*"
    + _ACADEMIC
)
_FIELD = re.compile(
    r"(?<![\w-])(?:"
    + alternatives(
        r"patient(?:in)?(?:'s)?(?: name)?, (?<!\w )name(?: of patient| des patienten)?, nom(?: du patient)?, prénom",
        r"paciente, nombre(?: del paciente)?, apellidos, nachname, vorname, cc",
        r"fellow, physician, referring doctor",
        r"(?:referring|ordering|requesting) (?:physician|provider), attending(?: physician| radiologist)?",
        r"radiologist, resident, technologist",
        r"zuweiser, überweiser, überweisender arzt, befunder, arzt, ärztin, untersucher, radiologue, prescripteur",
        r"médecin(?: traitant| prescripteur| demandeur)?, médico(?: solicitante| responsable)?, solicitante, radiólogo",
    )
    + r"[ \t*]*:|(?:(?:electronically |digitally )?"
    + alternatives(
        "signed, dictated, reported, read, approved, verified, interpreted, reviewed, authenticated",
        "transcribed, finalized, performed, communicated, validated",
        "signé, validé, dicté, interprété, firmado, informado, validado, dictado",
    )
    + r"(?: electronically)?(?: by| par| por)|"
    + alternatives("befundet, unterschrieben, diktiert, validiert, freigegeben, signiert")
    + r"[ \t]+(?:von|durch))[ \t]*:?)[ \t*]*",
    re.IGNORECASE,
)
_DEGREE = re.compile(
    rf"(?<!\w)(?P<it>{_TOKEN}(?:[ \t]+{_TOKEN}){{1,3}}),?[ \t]+(?:M\.?D|D\.?O|R\.?N|Ph\.?D|FRCR|FACR|MBBS)\b"
)
_INITIAL = re.compile(r" [A-Z](?=[ \t]{2}|[ \t]*\n|[ \t]*$)")  # "DOE, JANE A"
_SECOND = re.compile(rf"(?<!\w)Drs\.?[ \t]+{_TOKEN}[ \t]+(?:and|&)[ \t]+(?P<it>{_TOKEN})")  # "Drs. Roe and Poe"
# Capitalised words after a title or a field that are nobody's name (Linke, Izquierdo, Tse and Flair are somebody's).
_NOT_NAMES = words("""
    the a an and at on in is was has who will by for from of to with no not this he she it they we i if or as are be
    been none unknown male female radiology department emergency attending resident physician staff office clinic
    hospital service team patient date time findings impression chest abdomen ct mr mri xr us notified paged informed
    called read signed electronically md do kollege kollegin kollegen patientin oberarzt der die das und ist wurde hat
    le la et est el los y angiography abdominal brain imaging spectroscopy enterography years year old age sex dob seen
    see status there history clinical indication technique comparison exam examination report page id mrn supine prone
    upright position rotated intubated sclerosis regarding via discussed unremarkable normal rechts links unauffällig
    dr dra sr sra srta mr mrs ms mme prof consultant specialist trainee anonymous anonymized
    deidentified name er icu pacu nicu or gp pcp
    herr herrn frau pd oa left right bilateral rechte rechtes linkes beidseits droite gauche derecha izquierda
    lesion lesions plaque plaques disease relapse progression demyelination coronal axial sagittal oblique
    sequence sequences weighted fat fat-saturated fat-suppressed contrast gadolinium diffusion perfusion enhancement
    arthrogram arthrography angiogram venography cholangiography cholangiopancreatography elastography myelography
    urography protocol scanner scan scans image images
""")
# "performed by Siemens Scanner": a machine. A vendor's name alone may be somebody's (Philips, Ge).
_MACHINE = re.compile(
    alternatives(
        "Siemens, Philips, GE, Canon, Toshiba, Hitachi, Fuji(?:film)?, Hologic, Samsung, United, Carestream, Agfa",
        "Shimadzu, Konica(?: Minolta)?, Neusoft, Mindray, Esaote",
    )
    + rf"(?:[ \t]+[{_UPPER}\d][\w.-]*){{0,2}}?[ \t]+(?i:"
    + alternatives("scanner, system, machine, unit, magnet, tomograph, healthcare, healthineers, medical, imaging")
    + r"|(?:CT|MRI?|PET)\b)"
)
_PARTS = words("van von der den de del della di da dos la le bin ibn al el zu ter ten y e")
# After "M." these are muscles and diseases (Morbus), not Monsieur.
_MUSCLES = tuple(
    words("""
    psoas iliopsoas gluteus quadriceps supraspin infraspin subscap biceps triceps deltoid rectus piriform obturator
    pector trapez latissimus sterno gastrocn soleus tibialis parkinson addison crohn hodgkin bechterew scheuermann
    paget meniere ménière perthes basedow boeck
""")
)


def names(text: str) -> Iterator[tuple[int, int]]:
    """Spans of names in order; titles and fields stay."""
    spans = [span for m in _TITLE.finditer(text) if (span := _name_at(text, m.end(), m.group()))]
    for m in _SECOND.finditer(text):
        spans += [m.span("it")] if _is_name(m.group("it")) else []
    spans += [span for m in _FIELD.finditer(text) if (span := _name_at(text, _after_title(text, m.end()), m.group()))]
    spans += [m.span("it") for m in _DEGREE.finditer(text) if _is_name(m.group("it").split()[0])]
    return iter(sorted(set(spans)))


def _after_title(text: str, at: int) -> int:
    match = _TITLE.match(text, at)
    return match.end() if match else at


def _name_at(text: str, at: int, before: str) -> tuple[int, int] | None:
    """The words at `at` up to the first that is no name; a comma goes on only after a field ("Patient: Doe, John")."""
    match = _NAME.match(text, at)
    if not match or (before.startswith("M.") and match.group().casefold().startswith(_MUSCLES)):
        return None
    field = ":" in before or " " in before.strip()
    if field and _MACHINE.match(text, at):
        return None
    end = at
    for token in re.finditer(r"\S+", match.group()):
        word = token.group().rstrip(",")
        part = word.casefold() in _PARTS  # "von", "Le": only before a name
        if not part and not _is_name(word):
            break
        if part:
            continue
        end = at + token.start() + len(word)
        if token.group() != word and not field:
            break
    if field and (initial := _INITIAL.match(text, end)):
        end = initial.end()
    end -= 2 * text[at:end].endswith(("'s", "’s"))
    return (at, end) if any(len(word.strip(".,")) > 1 for word in text[at:end].split()) else None


def _is_name(word: str) -> bool:
    plain = word.rstrip(".,").casefold()
    if re.fullmatch(rf"(?:[{_UPPER}]\.-?)+", word):
        return True  # an initial
    return plain not in _NOT_NAMES and not plain.startswith(("xxx", "___"))
