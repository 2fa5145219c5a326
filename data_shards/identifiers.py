"""Patterns of dates, telephone and record numbers, postal, e-mail and web addresses in report text, and what looks like
one of them and is none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class Mask(NamedTuple):
    """kind: a field of deidentify.Counts. pattern: its group "it" is masked, or all of it. keep: True: it stays."""

    kind: str
    pattern: re.Pattern[str]
    keep: Callable[[re.Match[str]], bool] | None = None


def alternatives(*lines: str) -> str:
    """Patterns written with commas between them -> one group."""
    return "(?:" + "|".join(part for line in lines for part in line.split(", ")) + ")"


def _any_case(*parts: str) -> re.Pattern[str]:
    return re.compile("".join(parts), re.IGNORECASE)


# Month names and their abbreviations in English, German, French and Spanish.
_MONTH = (
    alternatives(
        "jan(?:uary|uar|vier|v)?, jän(?:ner)?, ene(?:ro)?, feb(?:ruary|ruar|rero)?, f[ée]vr(?:ier)?, mar(?:ch|zo|s)?",
        "märz, mrz, apr(?:il)?, avr(?:il)?, abr(?:il)?, mayo?, mai, june?, juni, juin, junio, july?, juli",
        "julio, juil(?:let)?, aug(?:ust)?, ao[ûu]t, ago(?:sto)?, sept?(?:ember|embre|iembre)?, oct(?:ober|obre|ubre)?",
        "okt(?:ober)?, nov(?:ember|embre|iembre)?, dec(?:ember)?, dez(?:ember)?, déc(?:embre)?, dic(?:iembre)?",
    )
    + r"(?![^\W\d_])"
)
_DAY, _MON, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)\d{2}"
_TWO_DIGITS = r"(?:0[1-9]|[12]\d|3[01])\.(?:0[1-9]|1[0-2])\."  # "12.03." of "12.03.20"
_NO_UNIT = r"(?!\s?(?:mm|cm|ml|cc|mg|hu|mci|%|x\s?\d|°))"
_EDGE, _END = r"(?<![\w.,/+:-])", r"(?![\w/]|[.,-]\d)"
_TH = r"(?:st|nd|rd|th|er|\.)?"
_OF = r"(?:de |del |of )?"


_ALSO_WORDS = frozenset({"may", "march", "mar", "dec", "sept", "august", "ago", "jan", "nov", "oct", "set"})


def _no_month(match: re.Match[str]) -> bool:
    """ "may 3 be", "5 days ago": words that are also months need a capital where no year is told."""
    word = re.search(r"[^\W\d_]{3,}", match.group())
    return not re.search(_YEAR, match.group()) and (word is None or word.group() in _ALSO_WORDS)


def _fraction(match: re.Match[str]) -> bool:
    """ "du 1/3 moyen": halves, thirds and quarters are shares of an organ."""
    first, second = (int(n) for n in re.findall(r"\d+", match.group("it"))[:2])
    return "/" in match.group("it") and first < second <= 5


_BEFORE_SERIES = re.compile(
    r"(?<!\w)(?:series?|images?|img|slices?|serien?|bild(?:er)?|schicht(?:en)?|coupes?|cortes?|imágen(?:es)?|imagen)"
    r"\s*(?:number|no\.?|nr\.?|n°|#)?\s*:?\s*(?P<more>\d+(?:-\d+)+\s?(?:,|to|and|through|und|bis|et|à|y|a)\s)*$",
    re.IGNORECASE,
)


def _series(match: re.Match[str]) -> bool:
    """ "Series 3-4-12, images 2-3-12 to 3-4-12": numbers of series and images, not days of a year of two digits."""
    line = match.string[max(0, match.start() - 80) : match.start()]
    before = _BEFORE_SERIES.search(line)
    return before is not None and (not before.group("more") or "-" in match.group())


_DATES = (
    Mask("date", _any_case(_EDGE, _YEAR, rf"([-/.]){_MON}\1{_DAY}(?:[T ]?\d\d:\d\d(?::\d\d)?Z?)?(?![\w/-])")),
    Mask("date", _any_case(_EDGE, _YEAR, r"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\w)")),
    Mask(
        "date",
        _any_case(
            rf"(?:{_EDGE}|(?<=\d{{4}}-))(?:{_DAY}([-/.])\s?{_MON}\1\s?|{_MON}([-/.])\s?{_DAY}\2\s?)",
            _YEAR,
            r"(?![\w/]|[.,]\d|-\d(?!\d?[./]))",
        ),
    ),
    Mask(
        "date",
        _any_case(_EDGE, rf"(?:{_DAY}([-/]){_MON}\1|{_MON}([-/]){_DAY}\2|{_TWO_DIGITS})\d\d", _NO_UNIT, _END),
        _series,
    ),
    Mask("date", _any_case(_EDGE, _MON, "[/.]", _YEAR, _NO_UNIT, _END)),
    Mask(
        "date",
        _any_case(
            rf"(?<![\w.])(?:{_DAY}{_TH}[ -]?{_OF}{_MONTH}\.?",
            rf"(?:,? ?{_OF}[ -]?(?:{_YEAR}|['’]\d\d|(?<=-)\d\d))?",  # 3 March 2020, 3. März, 3 de marzo de 2020
            rf"|{_MONTH}\.? (?:the )?{_DAY}(?:st|nd|rd|th)?(?!\d|[.,]\d|-\d)(?:,? {_YEAR})?{_NO_UNIT}",  # March 3rd
            rf"|{_MONTH}\.?,? ?{_OF}{_YEAR})(?!\w)",
        ),
        _no_month,
    ),
    # Day and month alone only after a word that dates something.
    Mask(
        "date",
        _any_case(
            r"\b(?:(?:on|dated|since|from|vom|am|bis|seit|le|du|au|desde|fecha)\s+(?=\d+/)|(?:vom|am)\s+)",
            rf"(?P<it>{_DAY}/{_DAY}|{_DAY}\.\s?{_MON}\.(?:\d\d(?!\d))?){_NO_UNIT}(?![\w/]|\s(?:slice|image|level|view|section|cut)s?\b)",
        ),
        _fraction,
    ),
)


def _few_digits(match: re.Match[str]) -> bool:
    return sum(c.isdigit() for c in match.group("it")) < 3


# What a number is called that identifies somebody or something of theirs.
_NUMBER = alternatives("number", r"no\.?", "id", "#", r"n[°º]")
_LABELS = alternatives(
    r"mrn, mr ?#, ssn, acc ?(?:#|no\.?), (?:id|hc|fin|pid|nda|nip|nie)(?= ?[:#])",
    r"(?:acct|csn|ipp|nhc|dni|nss)\.?(?= ?(?:[:#]|\d{5}))",
    rf"medical record(?: {_NUMBER})?, record {_NUMBER}, accession(?: {_NUMBER})?, social security(?: {_NUMBER})?",
    rf"(?:hospital|unit) {_NUMBER}, nhs(?: {_NUMBER})?, patient(?:en)?[- ]?(?:nummer|nr\.?|identifier|{_NUMBER})",
    rf"(?:study|exam|order|visit|encounter|account|case|requisition|report|specimen|episode|policy)[- ]?{_NUMBER}",
    r"pat\.?[- ]?(?:id|nr\.?), (?:fall|auftrags|versicherten|untersuchungs|aufnahme)-?(?:nummer|nr\.?)",
    r"(?:n(?:uméro|úmero|°|o\.?|º) ?(?:de )?)(?:dossier|patient|sécurité sociale|expediente|paciente|seguridad social)",
    r"n(?:°|o\.?|º|úmero) ?(?:de )?historia(?: clínica)?",
    r"(?:historia clínica|expediente|dossier)(?= ?(?:n[°ºo]|:|#|\d))",
)
_VALUE = r"(?P<it>[A-Z]{0,5}[-_/]?\d[\dA-Z]*(?:[-./]\w*\d\w*)*)(?!\w)"

_NUMBERS = (
    Mask("id", re.compile(r"(?<![\w.])\d+(?:\.\d+){5,}(?!\w)")),  # DICOM UIDs
    Mask("id", _any_case(rf"(?<!\w){_LABELS}[\s*]*(?:is\b)?\s*[:#=]?[\s*]*(?:n[°ºo]\.?\s*)?", _VALUE), _few_digits),
    Mask("id", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")),
    Mask("id", re.compile(r"(?<![\w.])[12] \d\d \d\d \d\d \d{3} \d{3}(?: \d\d)?(?!\w)")),  # French social security
)
# What is left of long numbers: no measurement has seven digits in a row.
_LONG = (Mask("id", re.compile(r"(?<![\w.,-])[A-Z]{0,3}\d{7,}(?:-\w*\d\w*|-\w+(?=-\w*\d))*(?!\w|[.,]\d)")),)

_PHONE_WORD = alternatives(
    r"tel(?:ephone|efon|[ée]fono|\.)?, t[ée]l(?:[ée]phone)?\.?, phone, fax, pager, beeper, cell, mobile?, móvil, handy",
    r"portable, ext\.?, extension, durchwahl, call(?:ed)? (?:at|back(?: at)?), contact(?:ed)? at",
)
_PHONES = (
    # With a word for it, or in a form that nothing else has.
    Mask(
        "phone",
        _any_case(
            rf"\b{_PHONE_WORD}\s*(?:number|no\.?|nr\.?|n°|#)?\s*[:#]?\s*",
            r"(?P<it>\+?\(?\d[\d ()/.-]{2,}\d)(?!\w)",
        ),
        _few_digits,
    ),
    Mask("phone", re.compile(r"(?:(?<![\w.+-])\+?1[-. ])?(?<!\d)\(\d{3}\) ?\d{3}[-. ]\d{4}(?!\w)")),
    Mask("phone", re.compile(r"(?<![\w.+-])(?:\+?1[-. ])?\d{3}([-.])\d{3}\1\d{4}(?![\w-])")),
    Mask("phone", re.compile(r"(?<![\w.])(?:\+|00)\d{1,3}[ -]?(?:\(0\)[ -]?)?\d(?:[ ()/-]{0,2}\d){6,12}(?!\w)")),
    Mask("phone", re.compile(r"(?<![\w.])0\d(?:[ .]\d{2}){4}(?!\w|\.\d)")),
    Mask("phone", re.compile(r"(?<![\w.])0\d{2,4} ?/ ?\d{3,}(?:[ -]?\d+)*(?!\w)")),
)

_CAP = r"[A-ZÄÖÜÉÈÀÁÍÓÚÑ][\w'’-]{1,40}"
_STREET = alternatives(
    "Street, St, Avenue, Ave, Road, Rd, Boulevard, Blvd, Lane, Ln, Drive, Court, Place, Parkway, Terrace, Highway"
)
_ZIP = r"[A-Z]{2},? \d{5}(?:-\d{4})?(?!\w)"
# A way or a ring is also in the body ("Gallenweg 12 mm"): those need a town.
_STRASSE = r"(?:straße|strasse|str\.|allee)"
_WEG, _WAYS = r"(?:weg|platz|gasse|ring|damm)", r"(?:Weg|Platz|Gasse|Ring|Damm)"
_ADDRESSES = (
    Mask(
        "address",
        re.compile(rf"(?<![\w.])\d{{1,5}} (?:{_CAP} ){{1,3}}{_STREET}\b\.?(?:,? (?:{_CAP},? ){{1,3}}{_ZIP})?"),
    ),
    Mask("address", re.compile(rf"(?<!\w){_CAP}(?: {_CAP})?, {_ZIP}")),
    Mask(
        "address",
        re.compile(
            rf"(?<!\w)[A-ZÄÖÜ][\w-]{{1,40}}(?:{_STRASSE}|[ -](?:Straße|Strasse|Str\.|Allee)) "
            rf"\d{{1,3}} ?[a-z]?(?!\w)(?:,? (?:D-)?\d{{5}} {_CAP})?"
            rf"|(?<!\w)[A-ZÄÖÜ][\w-]{{1,40}}(?:{_WEG}|[ -]{_WAYS}) \d{{1,3}} ?[a-z]?,? (?:D-)?\d{{5}} {_CAP}"
        ),
    ),
    Mask(
        "address",
        re.compile(
            r"(?<![\w.])\d{1,4},? (?:bis |ter )?(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai) "
            rf"(?:(?:de|du|des|la|le|l'|d')\s?)*{_CAP}(?:[ -]{_CAP})*(?:,? \d{{5}} {_CAP})?"
        ),
    ),
    Mask(
        "address",
        re.compile(
            r"(?<!\w)(?:[Cc]alle|C/|[Aa]venida|Avda\.|[Pp]laza|[Pp]aseo) (?:(?:de|del|la|las|los)\s)*"
            rf"{_CAP}(?: (?:de |del )?{_CAP})*,? (?:n[º°.] ?)?\d{{1,4}}(?:,? \d{{5}} {_CAP})?"
        ),
    ),
)

# In this order: a labelled number before a date or a telephone number could be seen in it.
MASKS: tuple[Mask, ...] = (
    Mask("email", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")),
    Mask("url", _any_case(r"\b(?:https?://|ftp://|www\.)[^\s<>\"')\]]+[^\s<>\"')\].,;:]")),
    *_NUMBERS,
    *_DATES,
    *_PHONES,
    *_ADDRESSES,
    *_LONG,
)
