"""Zero-shot tasks: which findings are asked for, and in which words. Never imports torch.

A task is a YAML file, packaged in `eval_zero_shot/tasks/` or anywhere on disk:

    name: chest
    classes:
      pleural_effusion:                       # the label's name in the shards
        positive: ["There is a pleural effusion."]
        negative: ["There is no pleural effusion."]
        synonyms_positive: ["Fluid in the pleural space."]      # optional; scored apart, never mixed in
        synonyms_negative: ["The pleural space is dry."]

With `templates`, prompts are words for their gap, and every word is said in every template, as CLIP's ensembles are:

    name: chest
    templates: ["There is {}.", "{} is seen."]
    classes:
      pleural_effusion: {positive: ["a pleural effusion", "pleural fluid"], negative: ["no pleural effusion"]}
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, field_validator, model_validator

from eval_zero_shot.errors import EvalError

PACKAGED = Path(__file__).with_name("tasks")
PromptSet = Literal["main", "synonyms"]
FORM = """
    name: chest
    classes: {effusion: {positive: ["There is an effusion."], negative: ["There is no effusion."]}}"""
SAID = {  # pydantic's kinds of mistakes, in the words of a task file; its own speak of tuples and models
    "tuple_type": "should be a list of sentences",
    "string_type": "should be text, in quotes",
    "too_short": "is empty",
    "missing": "is missing",
    "extra_forbidden": "is not a key that a task knows",
    "dict_type": "should be findings by name, as in the form below",
    "model_type": "should hold keys with values, as in the form below",
}


class Finding(BaseModel):
    """The prompts of one finding. Several prompts of a side are an ensemble, see `eval_zero_shot.classify`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positive: tuple[StrictStr, ...] = Field(min_length=1)
    negative: tuple[StrictStr, ...] = Field(min_length=1)
    synonyms_positive: tuple[StrictStr, ...] = ()
    synonyms_negative: tuple[StrictStr, ...] = ()

    @field_validator("positive", "negative", "synonyms_positive", "synonyms_negative")
    @classmethod
    def _clean(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not prompt.strip() for prompt in prompts):
            raise ValueError("a prompt is blank; it would be scored as the embedding of no text")
        if len(set(prompts)) != len(prompts):
            raise ValueError("a prompt is given twice; it would weigh twice in the ensemble")
        return prompts

    @model_validator(mode="after")
    def _sides(self) -> Finding:
        if bool(self.synonyms_positive) != bool(self.synonyms_negative):
            raise ValueError("synonyms need both sides: a score is positive minus negative")
        for positive, negative in (self.prompts("main"), self.prompts("synonyms")):
            if set(positive) & set(negative):
                raise ValueError("the same prompt is positive and negative; it would cancel in the score")
        return self

    def prompts(self, which: PromptSet = "main") -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(positive, negative) of the main prompts or of the synonyms."""
        if which == "main":
            return self.positive, self.negative
        return self.synonyms_positive, self.synonyms_negative


class Task(BaseModel):
    """A named list of findings with prompts; `classes` keeps the file's order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr = Field(min_length=1)
    templates: tuple[StrictStr, ...] = ()
    classes: dict[StrictStr, Finding] = Field(min_length=1)

    @field_validator("templates")
    @classmethod
    def _gaps(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if any(template.count("{}") != 1 for template in templates):
            raise ValueError("a template needs one gap, written {}; without it every class would have the same prompt")
        return templates

    def expanded(self) -> Task:
        """The same task with every prompt written out: templates x words, first letters capital."""
        if not self.templates:
            return self

        def say(words: tuple[str, ...]) -> tuple[str, ...]:
            said = (template.replace("{}", word) for word in words for template in self.templates)
            return tuple(dict.fromkeys(prompt[0].upper() + prompt[1:] for prompt in said))

        classes = {
            name: Finding(**{side: say(getattr(finding, side)) for side in Finding.model_fields})
            for name, finding in self.classes.items()
        }
        return Task(name=self.name, classes=classes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def has_synonyms(self) -> bool:
        return any(finding.synonyms_positive for finding in self.classes.values())

    @property
    def identity(self) -> str:
        """sha256 of the task's canonical JSON: two scores compare only where findings and words are the same."""
        canonical = json.dumps(self.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def texts(self) -> tuple[str, ...]:
        """Every distinct prompt, synonyms included, in file order."""
        seen: dict[str, None] = {}
        for finding in self.classes.values():
            for side in (*finding.prompts("main"), *finding.prompts("synonyms")):
                seen.update(dict.fromkeys(side))
        return tuple(seen)


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one: half the prompts of a finding would vanish."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for (key_node, _), key in zip(node.value, keys, strict=True):
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
    return loader.construct_mapping(node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def packaged_tasks() -> tuple[str, ...]:
    """Names of the tasks that ship with the package."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.yaml")))


def load_task(name_or_path: str | Path) -> Task:
    """Read a task, templates written out: a YAML file as given, else a packaged name.

    Raises EvalError when there is no such task, or listing every mistake in it with its key path.
    """
    path = Path(name_or_path)
    if not path.is_file():
        path = PACKAGED / f"{Path(name_or_path).name}.yaml"
        if str(name_or_path) not in packaged_tasks():
            known = packaged_tasks()
            near = difflib.get_close_matches(str(name_or_path), known, n=1)
            raise EvalError(
                f"no zero-shot task {str(name_or_path)!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                why="it is neither a YAML file that exists nor a task that ships with eval_zero_shot",
                fix=f"give a file, or one of: {', '.join(known) or '(none packaged)'}",
            )
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvalError(
            f"task {path.name} is not readable YAML: {error}", why="no prompt can be taken from it", fix="correct it"
        ) from None
    try:
        return Task.model_validate(raw).expanded()
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, e['loc'])) or 'the file'}: "
            + SAID.get(e["type"], e["msg"].removeprefix("Value error, "))
            for e in error.errors()
        ]
        raise EvalError(
            f"task {path.name} has {len(mistakes)} mistake(s):\n    " + "\n    ".join(mistakes),
            why="a finding with missing or misspelt prompts would be scored on the wrong words",
            fix=f"correct the keys named above; the form (more in docs/data.md, Prompts):{FORM}",
        ) from None
