"""Findings by organ: the thirteen anatomical sections that Merlin's training alternates with the full report
(arXiv 2406.06512, "report splitting"). The words that lead to each are this project's own."""

from __future__ import annotations

import re

from .names import fold, listed
from .sentences import paragraphs

ANATOMY = (
    "lower thorax", "liver and biliary tree", "gallbladder", "spleen", "pancreas", "adrenal glands",
    "kidneys and ureters", "gastrointestinal tract", "peritoneum", "pelvic organs", "vasculature", "lymph nodes",
    "musculoskeletal",
)  # fmt: skip
OTHER = "other"
TEMPLATE = 5  # so many subheadings in one paragraph, and they are a form that was filled in

# Word beginnings in lower case without accents, in English, German, French and Spanish; a "$" ends the word. DECISIVE
# ones tell the section wherever they stand in a sentence ("portal vein", "splenic flexure", "pelvic lymph nodes"); of
# the others the first in the sentence does.
_DECISIVE = {
    "lymph nodes": "lymph node, lymphadeno, adenopath, adenopatia, lymphknoten, ganglion, ganglio, adenomegal",
    "vasculature": """
        portal vein, portal venous system, splenic vein, splenic arter, hepatic arter, hepatic vein, renal arter,
        renal vein, mesenteric arter, mesenteric vein, mesenteric vess, celiac, coeliac, vena cava, iliac arter, iliac
        vein, femoral arter, femoral vein, pulmonary embol, gonadal vein, pulmonary arter, vertebral arter, carotid,
        portosystemic, tep$, lae$, varices, abdominal aort, thoracic aort, aortic aneurysm, pfortader, milzvene,
        nierenarterie, lebervene, lungenembol, lungenarterie, veine porte, artere hepatique, artere renale, embolie
        pulmonaire, artere pulmonaire, veine cave, vena porta, arteria hepatica, arteria renal, tromboembolismo
        pulmonar, arteria pulmonar, suprahepatica, truncus coeliacus
    """,
    "gastrointestinal tract": """
        hepatic flexure, splenic flexure, hiatal hernia, hiatus hernia, gastroesophageal, small bowel, large bowel,
        bowel wall, bowel loop, bowel obstruction, appendi, divertic, hiatushernie, gastrooesophage, hernie hiatale,
        hernia de hiato, hernia hiatal
    """,
    "peritoneum": """
        free fluid, free air, free intraperitoneal, free gas, subdiaphragmatic air, ascites, pneumoperiton, peritone,
        omental, omentum, aszites, freie flussigkeit, freie luft, freies gas, ascite$, ascitis, liquido libre,
        neumoperiton, epanchement peritone, epanchement intraperitone, liquide libre
    """,
    "musculoskeletal": """
        pelvic bone, iliac bone, bony pelvis, osseous, bones$, bony, fractur, vertebra$, vertebrae, vertebral bod,
        compression deformit, degenerative, spondyl, scolio, abdominal wall, body wall, chest wall, soft tissue,
        umbilical hernia, inguinal hernia, ventral hernia, incisional hernia, subcutaneous, musculoskeletal, femoral
        head, femoral neck, lytic, sclerotic lesion, fraktur, wirbelkorper, wirbelsaule, knochen, ossar, bauchwand,
        weichteil, leistenhernie, rachis, structures osseuses, lesion osseuse, cadre osseux, parties molles, paroi
        abdominale, fractura, osea$, oseas$, oseo, pared abdominal, partes blandas, columna, cuerpos vertebrales,
        hernia inguinal, hernia umbilical
    """,
    "kidneys and ureters": """
        renal pelvis, renal collecting, pelvicaly, pyelocaly, perinephric, nierenbecken, bassinet, pielocal
    """,
    "liver and biliary tree": """
        common bile duct, bile duct, biliary, hepatic duct, gallenweg, gallengang, voies biliaires, via biliar, vias
        biliares, coledoco, choledoch
    """,
    "lower thorax": """
        pleural effusion, pericardial effusion, pleuraerguss, perikarderguss, epanchement pleural, epanchement
        pericard, derrame pleural, derrame pericard, lung base
    """,
    "pancreas": "pancreatic duct, pankreasgang, canal pancreatique, conducto pancreatico, wirsung",
}
_TERMS = {
    "lower thorax": """
        lung, pulmon, pleura, pneumothor, pneumon, atelecta, consolidat, heart$, cardiac, cardio, pericard, coronary,
        mediastin, hilum, hilar, bronch, trache, airway, thorax, thoracic, chest, diaphragm, hemidiaphragm, lobe,
        infiltrate, opacit, airspace, ground-glass, ground glass, emphysem, breast, thyroid, esophageal hiatus, lunge,
        herz, zwerchfell, oberlappen, unterlappen, mittellappen, poumon, plevre, coeur, parenchyme pulmonaire,
        corazon, torax, bases pulmonares, derrame, cardiomegal, kardio, linguia, lingula, costophrenic, air space,
        effusion, cabg
    """,
    "liver and biliary tree": """
        liver, hepat, intrahepat, cirrho, steato, leber, zirrhose, foie, higado, parenquima hepatic
    """,
    "gallbladder": """
        gallbladder, gall bladder, cholecyst, cholelith, gallstone, gallenblase, gallenstein, vesicule, vesicula
        biliar, vesicula$, colelitia, colecist, lithiase vesicul
    """,
    "spleen": "spleen, splen, milz, la rate, bazo, esplen",
    "pancreas": "pancrea, pankrea, bauchspeichel, peripancrea",
    "adrenal glands": "adrenal, nebenniere, surrenal, suprarrenal, glandulas suprarrenales",
    "kidneys and ureters": """
        kidney, renal, nephr, hydroneph, ureter, hydrouret, niere, harnleiter, harnstau, nieren, rein$, reins$,
        renale, uretere, rinon, riñon, urolith, urinary tract
    """,
    "gastrointestinal tract": """
        gastrointestin, gi tract, stomach, gastric, duoden, jejun, ileum, ileal, ileus, bowel, colon, colonic, cecum,
        cecal, sigmoid, rectum, rectal, esophag, oesophag, intestin, enter, magen, darm, kolon, rektum, osophag,
        estomac, grele, tube digestif, tubo digestivo, estomag, esofag, asas intest, asas de, ciego, recto$, caecum,
        colique
    """,
    "peritoneum": """
        peritoin, mesenter, retroperiton, intraperiton, bauchfell, fluid collection, hemoperiton
    """,
    "pelvic organs": """
        bladder, uterus, uterine, ovar, adnex, prostat, seminal vesic, cervix, endometri, pelvic organ, pelvis,
        pelvic, vagina, harnblase, samenblase, becken, vessie, vesicules seminales, vejiga, utero, vesiculas
        seminales, pelvien
    """,
    "vasculature": """
        aort, vascul, vessel, arter, vein, venous, aneurysm, thromb, atheroscl, dissection, ivc$, sma$, smv$, iliac,
        gefaß, gefass, arterie, vene$, venen, aneurysma, vaisseau, veine, anevrisme, vaso$, vasos, venas, aneurisma
    """,
    "lymph nodes": "nodes$, nodal, lymph, axilla",
    "musculoskeletal": """
        bone, skelet, spine$, spinal, rib$, ribs$, stern, osseus, clavic, scapul, sacr, hip$, hips$, femur, femoral,
        muscle, psoas, hernia, osteo, arthr, facet, disc$, disk$, disc space, lumbar, joint, wirbel, rippe, hufte,
        muskel, sakrum, cotes$, vertebr, hanche, os$ iliaque, hueso, costilla, cadera, musculo
    """,
}
_WHERE = re.compile(r"[ctls]\d{1,2}(?:[-/][ctls]?\d{1,2})?(?!\w|\.\d)")  # "L4-5"
# A sentence that begins like this goes on about the organ of the one before.
_GOES_ON = re.compile(
    r"(?:it|its|this|these|they|those|which|the (?:lesion|largest|cyst|mass|nodule)s?|unchanged|stable|measuring|again|"
    r"diese[rsn]?|er|es|sie|letztere[rs]?|il|elle|ils|elles|celui|celle|ces?|cette|este|esta|estos|estas|esto|mide)\b"
)
_SUBHEADING = re.compile(
    r"^[*_]{0,3}([^\W\d_][\w /,&()-]{1,50}):[*_]{0,3}(?=\s|$)|^([^\W\d_][\w /,&()-]{1,50})\s[-–]\s"
)
# Regions are no organ: their sentences go by their own words, and to this where they have none.
_REGIONS = {
    "abdomen": OTHER, "abdomen and pelvis": OTHER, "abdomen/pelvis": OTHER, "abdomen & pelvis": OTHER,
    "mediastinum": "lower thorax", "mediastinum and hila": "lower thorax", "mediastino": "lower thorax",
    "chest": "lower thorax", "thorax": "lower thorax", "pelvis": "pelvic organs", "becken": "pelvic organs",
    "bassin": "pelvic organs", "retroperitoneum": "peritoneum", "torax": "lower thorax", "lower chest": "lower thorax",
    "upper abdomen": OTHER, "oberbauch": OTHER,
    "chest/abdomen/pelvis": OTHER, "hepatobiliary": "liver and biliary tree",
}  # fmt: skip


def anatomical_sections(findings: str) -> dict[str, str]:
    """The sentences of `findings` by anatomical section: ANATOMY's names and "other", "" where nothing is said.

    Every sentence of `sentences(findings)` is in exactly one section, in order, one a line. A subheading ("LIVER AND
    BILIARY TREE:") decides for all sentences up to the next subheading or blank line (in running text with fewer than
    TEMPLATE subheadings: up to the next sentence about another organ), one that names several organs between these;
    without a subheading the words of the sentence decide. All of the chest but vessels, nodes and bones is "lower
    thorax".
    """
    kept: dict[str, list[str]] = {name: [] for name in (*ANATOMY, OTHER)}
    lines = [line.lstrip(" \t-*•") for line in findings.splitlines() if line.strip()]
    for paragraph in paragraphs(findings):
        allowed: tuple[str, ...] = ()
        default, last, strict = OTHER, "", True
        template = sum(bool(_SUBHEADING.match(sentence)) for sentence in paragraph) >= TEMPLATE
        for sentence in paragraph:
            heading = _SUBHEADING.match(sentence)
            own = sentence
            if heading and (named := _named(heading.group(1) or heading.group(2), bool(heading.group(1)))) is not None:
                allowed, default, last = *named, ""
                words = heading.group().strip()
                strict = (
                    template or words.isupper() or (len(lines) > 1 and any(line.startswith(words) for line in lines))
                )
                own = sentence[heading.end() :]
            elif not strict and _by_words(own, allowed) == OTHER and (free := _by_words(own, ())) != OTHER:
                allowed, default, last = (), OTHER, free  # "Spleen: normal. The kidneys ..." in one line
            section = allowed[0] if len(allowed) == 1 else _by_words(own, allowed)
            if section == OTHER:
                section = last if last and _GOES_ON.match(fold(own)) else allowed[0] if allowed else default
            kept[section].append(sentence)
            last = section
    return {name: "\n".join(found) for name, found in kept.items()}


def _named(words: str, colon: bool) -> tuple[tuple[str, ...], str] | None:
    """(sections that a subheading names, where its sentences go that name none of them); None: it is no subheading."""
    folded = fold(words).strip()
    if folded in _REGIONS:
        return (), _REGIONS[folded]
    hits = sorted(_hits(_ALL, folded))
    sections = tuple(dict.fromkeys(section for _, section in hits))
    if not sections:
        return ((), OTHER) if colon and words.isupper() else None
    return (sections, sections[0]) if colon or words.isupper() else None


def _by_words(sentence: str, allowed: tuple[str, ...]) -> str:
    folded = fold(sentence)
    for patterns in (_DECISIVE_PATTERNS, _PATTERNS):
        hits = sorted(hit for hit in _hits(patterns, folded) if not allowed or hit[1] in allowed)
        if hits:
            return hits[0][1]
    return "musculoskeletal" if not allowed and _WHERE.search(folded) else OTHER


def _hits(patterns: dict[str, re.Pattern[str]], folded: str) -> list[tuple[int, str]]:
    return [(match.start(), name) for name, pattern in patterns.items() if (match := pattern.search(folded))]


def _compiled(table: dict[str, str]) -> dict[str, re.Pattern[str]]:
    def one(words: str) -> re.Pattern[str]:
        parts = [re.escape(w.rstrip("$")) + (r"(?!\w)" if w.endswith("$") else "") for w in listed(fold(words))]
        return re.compile(r"(?<![^\W_])(?:" + "|".join(sorted(parts, key=len, reverse=True)) + ")")

    return {name: one(words) for name, words in table.items()}


_DECISIVE_PATTERNS, _PATTERNS = _compiled(_DECISIVE), _compiled(_TERMS)
_ALL = _compiled({name: ", ".join(t[name] for t in (_DECISIVE, _TERMS) if name in t) for name in ANATOMY})
