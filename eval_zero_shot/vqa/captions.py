"""A question and an option to a sentence, by rules that anybody can read. Never imports torch.

A contrastive model has no answer to a question; it says how well a sentence fits an image. In this order:

1. captions given with the item are used as they are.
2. --template: its gaps {question} and {option} are filled, the same wording for every option.
3. yes/no questions become a statement and its denial where one of the patterns below fits
   ("Is there a pleural effusion?" -> "There is a pleural effusion." / "There is no pleural effusion.").
4. all others: the question, then the option ("Which organ is enlarged? Spleen.").

Limits: the patterns know English and a handful of forms; nothing is parsed, so a question outside them falls to rule 4
for both its answers. Text towers are known to be weak at denials: blank-image accuracy shows what wording alone gives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval_zero_shot.errors import EvalError
from eval_zero_shot.vqa.items import Item

RULES = ("given", "template", "statement", "question and option")
_IMAGE = r"(?:the|this) (?:image|picture|scan|ct|mri|mr|x-?ray|radiograph|photo|slide|volume|study)(?: (?:image|scan))?"
_TAIL = re.compile(rf" (?:in|on|of|from) {_IMAGE}$", re.IGNORECASE)
_STATES = (
    "present|absent|visible|seen|shown|visualized|visualised|identified|noted|evident|normal|abnormal|healthy|unhealthy"
    "|enlarged|dilated|intact|symmetric|symmetrical|asymmetric|clear|fractured|displaced|elevated|flattened|calcified"
)
# (question, said for yes, said for no); \1 and \2 are what the question asks about.
_PATTERNS = (
    (r"^is there (?:any |an? )?evidence of (.+)$", r"There is evidence of \1.", r"There is no evidence of \1."),
    (r"^is there an? (.+)$", r"There is a \1.", r"There is no \1."),
    (r"^(?:is|are) there any (.+)$", r"There is \1.", r"There is no \1."),
    (r"^is there (.+)$", r"There is \1.", r"There is no \1."),
    (r"^are there (.+)$", r"There are \1.", r"There are no \1."),
    (r"^was there (.+)$", r"There was \1.", r"There was no \1."),
    (rf"^(?:does|do) ({_IMAGE}) (?:contain|show|have|include) (.+)$", r"\1 shows \2.", r"\1 does not show \2."),
    (r"^do you (?:see|observe) (?:any |an? )?(.+)$", r"There is \1.", r"There is no \1."),
    (r"^(?:is|was) (this|it) (.+)$", r"\1 is \2.", r"\1 is not \2."),
    (rf"^is (.+) ({_STATES})$", r"\1 is \2.", r"\1 is not \2."),
    (rf"^are (.+) ({_STATES})$", r"\1 are \2.", r"\1 are not \2."),
)
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), yes, no) for pattern, yes, no in _PATTERNS)


def is_yes_no(options: Sequence[str]) -> bool:
    """Whether the options are yes and no, in any order and spelling of capitals."""
    return len(options) == 2 and {option.casefold().strip(".") for option in options} == {"yes", "no"}


def statements(question: str) -> tuple[str, str] | None:
    """(said for yes, said for no) of a yes/no question, or None where no pattern fits."""
    bare = _TAIL.sub("", " ".join(question.split()).rstrip(" ?."))
    for pattern, yes, no in _COMPILED:
        if found := pattern.match(bare):
            said = found.expand(yes), found.expand(no)
            return said[0][0].upper() + said[0][1:], said[1][0].upper() + said[1][1:]
    return None


def check_template(template: str | None) -> None:
    """Raise EvalError on a template without {option}, or with another gap."""
    if template is None:
        return
    gaps = set(re.findall(r"\{(\w*)\}", template))
    if "option" not in gaps or gaps - {"option", "question"}:
        raise EvalError(
            "--template must have the gap {option}, may have {question}, and knows no other",
            why="without {option} every answer would be the same sentence",
            fix='for example --template "a CT scan showing {option}"',
        )


def captions_of(item: Item, template: str | None = None) -> tuple[tuple[str, ...], str]:
    """(a sentence for each option in their order, the rule of RULES that made them)."""
    if item.captions:
        return item.captions, "given"
    if template is not None:
        filled = (template.replace("{question}", item.question).replace("{option}", o) for o in item.options)
        return tuple(filled), "template"
    if is_yes_no(item.options):
        pair = statements(item.question)
        if pair is not None:
            return tuple(pair[0] if o.casefold().startswith("yes") else pair[1] for o in item.options), "statement"
    ending = item.question if item.question.endswith(("?", ".", ":")) else f"{item.question}?"
    return tuple(f"{ending} {option.rstrip('.')}." for option in item.options), "question and option"
