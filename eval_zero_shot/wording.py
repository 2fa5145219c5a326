"""Prompts of one prompt set: both sides of a finding, or the list of a class. Never imports torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictStr, Tag, field_validator

GAP = "{}"


def clean(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The same texts. Raises ValueError where one is blank or given twice."""
    if any(not text.strip() for text in texts):
        raise ValueError("a prompt is blank; it would be scored as the embedding of no text")
    if len(set(texts)) != len(texts):
        raise ValueError("a prompt is given twice; it would weigh twice in the ensemble")
    return texts


class Sides(BaseModel):
    """Prompts, or templates, of a finding that is there and of one that is not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: tuple[StrictStr, ...] = Field(min_length=1)
    negative: tuple[StrictStr, ...] = Field(min_length=1)

    @field_validator("positive", "negative")
    @classmethod
    def _cleaned(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return clean(texts)


def _form(value: Any) -> str:
    return "~sides" if isinstance(value, (dict, Sides)) else "~list"


Texts = Annotated[tuple[StrictStr, ...], Field(min_length=1)]
Wording = Annotated[Annotated[Sides, Tag("~sides")] | Annotated[Texts, Tag("~list")], Discriminator(_form)]


def sides_of(said: Any) -> tuple[tuple[str, ...], ...]:
    """(positive, negative), or (prompts,) of a list."""
    return (said.positive, said.negative) if isinstance(said, Sides) else (said,)


def fill(templates: tuple[str, ...], words: tuple[str, ...]) -> tuple[str, ...]:
    """Every word in every template, each prompt once."""

    def say(template: str, word: str) -> str:
        # Only a word that opens the prompt gets a capital: a template's own first letter is as its author wrote it.
        return template.replace(GAP, word[0].upper() + word[1:] if template.startswith(GAP) else word)

    return tuple(dict.fromkeys(say(template, word) for word in words for template in templates))
