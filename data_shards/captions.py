"""Captions made of a study's labels, from a template file (docs/captions.md).

A caption states what is known of some findings, a phrase each, joined, inside a frame (`templates`). What is unknown is
never said. CLIP's prompt templates (arXiv 2103.00020 §3.1.4) are such frames.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from data_shards.errors import DataError
from data_shards.schema import Caption
from data_shards.unique_yaml import read_yaml

if TYPE_CHECKING:
    import numpy as np

PACKAGED = Path(__file__).with_name("caption_templates")
MOST = 10_000  # captions of one study that `captions_of` lists
SLOT = "{}"
Labels = Mapping[str, int | None]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Phrase(Strict):
    """A wording and its chance of being drawn relative to the others of its list."""

    text: str = Field(pattern=r"\S")
    weight: float = Field(1.0, gt=0.0, strict=True)


def _phrases(value: Any) -> Any:
    """A text alone stands for a list of one, and in a list for a phrase of weight 1."""
    listed = value if isinstance(value, list | tuple) else [value]
    return [{"text": item} if isinstance(item, str) else item for item in listed]


Phrases = Annotated[tuple[Phrase, ...], BeforeValidator(_phrases), Field(min_length=1)]


class Finding(Strict):
    """What is said where a label is 1 (present) and where it is 0 (absent). Nothing listed: nothing is said."""

    present: Phrases = ()
    absent: Phrases = ()

    def of(self, label: int | None) -> tuple[Phrase, ...]:
        return () if label is None else self.present if label else self.absent


class _Wording(Strict):
    @field_validator("templates", check_fields=False)
    @classmethod
    def _one_slot(cls, frames: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
        for frame in frames:
            if frame.text.count(SLOT) != 1:
                raise ValueError(f"'{frame.text}' needs {SLOT} once, where the phrases go")
        return frames


class Override(_Wording):
    """What one modality says otherwise: whole classes, and the other keys where they are given."""

    classes: dict[str, Finding] = {}
    templates: Phrases = ()
    join: str = ""
    max_classes: int | None = Field(None, ge=1, strict=True)
    nothing: Phrases = ()


class CaptionTemplates(_Wording):
    """A template file.

    classes: label -> its phrases, in the order in which they are said. templates: frames with one {}. join: between
    phrases. max_classes: at most so many findings a caption, drawn evenly among those with something to say (null:
    all). nothing: the caption of a study with nothing to say (empty: it has none). modalities: DICOM modality ->
    Override.
    """

    classes: dict[str, Finding] = Field(min_length=1)
    templates: Phrases = (Phrase(text=SLOT),)
    join: str = ". "
    max_classes: int | None = Field(None, ge=1, strict=True)
    nothing: Phrases = ()
    modalities: dict[str, Override] = {}

    @model_validator(mode="after")
    def _something_to_say(self) -> CaptionTemplates:
        silent = [name for name, finding in self.classes.items() if not finding.present + finding.absent]
        if silent:
            raise ValueError(f"classes {silent} have neither present nor absent phrases")
        for modality in ("", *self.modalities):
            said = self.of(modality)
            phrases = [p.text for f in said.classes.values() for p in f.present + f.absent]
            if said.max_classes != 1 and said.join.startswith(".") and any(p.rstrip().endswith(".") for p in phrases):
                where = f"{modality}: " if modality else ""
                raise ValueError(f"{where}phrases end in a full stop and join begins with one: set join to ' '")
        return self

    def of(self, modality: str) -> CaptionTemplates:
        """What holds for one modality."""
        if modality not in self.modalities:
            return self
        other = self.modalities[modality]
        given = {key: getattr(other, key) for key in other.model_fields_set}
        return self.model_copy(update={**given, "classes": {**self.classes, **other.classes}, "modalities": {}})

    def check_labels(self, known: Collection[str]) -> None:
        """Raises DataError for a class that the shards have no label of: what it says would never be said."""
        named = dict.fromkeys([*self.classes, *(c for o in self.modalities.values() for c in o.classes)])
        strange = [name for name in named if name not in known]
        if strange:
            near = [m for name in strange if (m := difflib.get_close_matches(name, known, 1))]
            hint = f"; did you mean {', '.join(m[0] for m in near)}?" if near else ""
            raise DataError(
                f"caption templates: classes {strange} are no labels of the shards{hint}",
                "nothing would ever be said of them",
                f"take them out of a copy of the file, or rename them; there are {sorted(known)}",
            )


def template_names() -> list[str]:
    """The template files that are shipped."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def templates_file(name: str) -> Path:
    """Where the templates of this name or path would lie."""
    return Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PACKAGED / f"{name}.yaml"


def load_templates(name: str) -> CaptionTemplates:
    """A shipped template file by name, or one of your own by the path of its YAML (.yaml, .yml).

    Raises: DataError for a file that is not there, and for one that says something it may not, with every mistake and
    its key.
    """
    path = templates_file(name)
    if not path.is_file() or (path.parent == PACKAGED and path.stem not in template_names()):
        fix = f"name a .yaml file, or one that is shipped: {', '.join(template_names())}"
        raise DataError(f"no caption templates '{name}'", "no caption could be made", fix)
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
        return CaptionTemplates.model_validate(raw)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else type(error).__name__
        raise DataError(f"caption templates {path.name}: not readable YAML: {why}", fix="correct it") from None
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise DataError(
            f"caption templates {path.name} have {len(told)} mistake(s): " + "; ".join(told),
            "studies would be paired with the wrong words, or with none",
            "correct the keys named above; the form is in docs/captions.md",
        ) from None


def draw_caption(
    labels: Labels, modality: str, templates: CaptionTemplates, rng: np.random.Generator | None
) -> str | None:
    """One caption of a study, or None where there is nothing to say and no `nothing`. `rng` None: the first
    `max_classes` findings and the heaviest wordings."""
    said = templates.of(modality)
    spoken = _spoken(labels, said)
    if not spoken:
        return _pick(said.nothing, rng) if said.nothing else None
    count = min(len(spoken), said.max_classes or len(spoken))
    if count < len(spoken):
        chosen = range(count) if rng is None else sorted(rng.choice(len(spoken), count, replace=False))
        spoken = [spoken[i] for i in chosen]
    words = said.join.join(_pick(phrases, rng) for phrases in spoken)
    return _pick(said.templates, rng).replace(SLOT, words)


def captions_of(labels: Labels, modality: str, templates: CaptionTemplates) -> list[Caption]:
    """Every caption that `draw_caption` may give a study, equal ones merged, weights adding up to 1.

    Raises: DataError where there are more than MOST.
    """
    said = templates.of(modality)
    spoken = _spoken(labels, said)
    ways: list[tuple[tuple[Phrase, ...], ...]]
    if not spoken:
        ways = [(said.nothing,)] if said.nothing else []
    else:
        count = min(len(spoken), said.max_classes or len(spoken))
        subsets = itertools.islice(itertools.combinations(spoken, count), MOST + 1)
        ways = [(*subset, said.templates) for subset in subsets]
    if sum(math.prod(map(len, way)) for way in ways) > MOST:
        raise DataError(f"a study has more than {MOST} captions", "a list would not help", "draw some: draw_caption")
    weights: dict[str, float] = {}
    for way in ways:
        for chosen in itertools.product(*way):
            words = said.join.join(p.text for p in chosen[:-1])
            text = chosen[-1].text.replace(SLOT, words) if spoken else chosen[-1].text
            chance = math.prod(p.weight / _total(some) for p, some in zip(chosen, way, strict=True))
            weights[text] = weights.get(text, 0.0) + chance / len(ways)
    return [Caption(text, weight) for text, weight in weights.items()]


def _spoken(labels: Labels, said: CaptionTemplates) -> list[tuple[Phrase, ...]]:
    return [phrases for name, finding in said.classes.items() if (phrases := finding.of(labels.get(name)))]


def _pick(phrases: Sequence[Phrase], rng: np.random.Generator | None) -> str:
    if rng is None:
        return max(phrases, key=lambda p: p.weight).text
    total = _total(phrases)
    return phrases[int(rng.choice(len(phrases), p=[p.weight / total for p in phrases]))].text


def _total(phrases: Sequence[Phrase]) -> float:
    return sum(p.weight for p in phrases)
