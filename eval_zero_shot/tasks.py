"""Zero-shot tasks: which classes are asked for, and in which words. Never imports torch.

A task is a YAML file, packaged in `eval_zero_shot/tasks/` or anywhere on disk. Findings, each a yes or no of its own:

    name: chest
    about: "Where the labels are from, how many cases, what must be stated with a score."
    kind: findings                    # the default
    rule: ensemble                    # prompts of a side: mean of unit vectors, of unit length again (CLIP); or
                                      # mean_cosine: the mean of their cosines (Merlin)
    threshold: sign                   # of F1 and the like, as the paper does: sign, or validation (fitted there)
    classes:
      lung_nodule: {label: "Lung nodule", words: ["lung nodule"]}      # label: column(s) of the shards, else the name
      effusion: {label: "Pleural effusion", words: ["pleural effusion"]}
    prompt_sets:                      # a pool; the first is the default and stands for the task
      ct_clip: {positive: ["{} is present."], negative: ["{} is not present."]}
      short: {positive: ["{}."], negative: ["Not {}."]}

Several classes of which exactly one is right: `kind: classes`, and a prompt set is a list of templates:

    name: tissue
    kind: classes
    classes:
      adipose: {label: ADI, words: ["adipose tissue", "fat"]}
      mucus: {label: MUC}             # words: else the name, with spaces
    prompt_sets:
      photo: ["a histopathology image of {}.", "{} on H&E stain."]

Every word is said in every template; where the gap opens the prompt its first letter is made a capital. A class may say
its own sentences in a set: `prompts: {SET: {positive: [...], negative: [...]}}`, or `prompts: {SET: [...]}` of
`kind: classes`. `positive` and `negative` at a class itself, or a bare list `prompts`, are those of the set `main`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, field_validator, model_validator

from data_shards.unique_yaml import read_yaml
from eval_zero_shot.errors import EvalError
from eval_zero_shot.wording import GAP, Sides, Wording, clean, fill, sides_of

PACKAGED = Path(__file__).with_name("tasks")
MAIN = "main"
FORM = """
    name: chest
    classes: {effusion: {positive: ["There is an effusion."], negative: ["There is no effusion."]}}"""
SAID = {  # pydantic's kinds of mistakes, in the words of a task file; its own speak of tuples and models
    "tuple_type": "should be a list of sentences",
    "string_type": "should be text, in quotes",
    "too_short": "is empty",
    "missing": "is missing",
    "extra_forbidden": "is not a key that a task knows",
    "dict_type": "should be classes or sets by name, as in the form below",
    "model_type": "should hold keys with values, as in the form below",
}


class Finding(BaseModel):
    """One class of a task. label: columns of the shards, of which any makes it present (none: its own name). words: its
    names in templates, synonyms of each other. prompts: sentences of its own, by prompt set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: tuple[StrictStr, ...] = ()
    words: tuple[StrictStr, ...] = ()
    prompts: dict[StrictStr, Wording] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        """positive and negative, or a bare list of prompts, are those of the set main; one label needs no list."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        if isinstance(given.get("label"), str):
            given["label"] = (given["label"],)
        if isinstance(given.get("prompts"), (list, tuple, str)):
            given["prompts"] = {MAIN: given["prompts"]}
        sides = {side: given.pop(side) for side in ("positive", "negative") if side in given}
        if sides and isinstance(given.setdefault("prompts", {}), dict):
            given["prompts"] = {MAIN: sides, **given["prompts"]}
        return given

    @field_validator("label", "words")
    @classmethod
    def _cleaned(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return clean(texts)

    @field_validator("prompts")
    @classmethod
    def _cleaned_lists(cls, prompts: dict[str, Any]) -> dict[str, Any]:
        for said in prompts.values():
            for texts in sides_of(said):
                if any(GAP in text for text in clean(texts)):
                    raise ValueError("a sentence of one class has a gap {}; templates belong into prompt_sets")
        return prompts


class Task(BaseModel):
    """Classes with their labels and prompts, in the file's order. See the head of this module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr = Field(min_length=1)
    about: StrictStr = ""
    kind: Literal["findings", "classes"] = "findings"
    rule: Literal["ensemble", "mean_cosine"] = "ensemble"
    threshold: Literal["sign", "validation"] = "sign"
    classes: dict[StrictStr, Finding] = Field(min_length=1)
    prompt_sets: dict[StrictStr, Wording | None] = Field(default_factory=dict)
    groups: dict[StrictStr, tuple[StrictStr, ...]] = Field(default_factory=dict)

    @field_validator("prompt_sets")
    @classmethod
    def _gaps(cls, sets: dict[str, Any]) -> dict[str, Any]:
        for templates in (texts for said in sets.values() if said is not None for texts in sides_of(said)):
            if any(template.count(GAP) != 1 for template in clean(templates)):
                raise ValueError("a template needs one gap, written {}; without it every class has the same prompt")
        return sets

    @model_validator(mode="after")
    def _whole(self) -> Task:
        """Every class has prompts in every set, of the form of its kind, and no prompt speaks for two sides."""
        own = dict.fromkeys(name for finding in self.classes.values() for name in finding.prompts)
        # Sets that only classes name come after those that the file lists; the first is the default.
        object.__setattr__(
            self, "prompt_sets", {**self.prompt_sets, **{s: None for s in own if s not in self.prompt_sets}}
        )
        for check in (self._forms, self._shared, self._labels):  # each presumes that the one before found nothing
            if mistakes := check():
                raise ValueError("\n    ".join(mistakes))
        return self

    def _forms(self) -> list[str]:
        if not self.prompt_sets:
            return ["there is no prompt: give prompt_sets, or positive and negative of each class"]
        wanted = Sides if self.kind == "findings" else tuple
        form = "{positive: [...], negative: [...]}" if self.kind == "findings" else "a list"
        found = []
        if self.kind == "classes":
            if len(self.classes) < 2:
                found.append("classes: one class cannot be told from others; give two, or kind: findings")
            if self.threshold != "sign":
                found.append("threshold: kind classes has none, the best class is the answer")
        for prompt_set, templates in self.prompt_sets.items():
            if templates is not None and not isinstance(templates, wanted):
                found.append(f"prompt_sets.{prompt_set}: should be {form}, as kind is {self.kind}")
            for name, finding in self.classes.items():
                said = finding.prompts.get(prompt_set, templates)
                if said is None:
                    found.append(f"classes.{name}: has no prompts in the set {prompt_set}")
                elif prompt_set in finding.prompts and not isinstance(said, wanted):
                    found.append(f"classes.{name}.prompts.{prompt_set}: should be {form}, as kind is {self.kind}")
        return found

    def _shared(self) -> list[str]:
        found = []
        for prompt_set in self.prompt_sets:
            if self.kind == "findings":
                for name in self.names:
                    if set.intersection(*map(set, self.prompts(name, prompt_set))):
                        found.append(
                            f"classes.{name}: in the set {prompt_set} the same prompt is positive and negative; "
                            "it would cancel in the score"
                        )
                continue
            owner: dict[str, str] = {}
            for name in self.names:
                for text in self.prompts(name, prompt_set)[0]:
                    if owner.setdefault(text, name) != name:
                        found.append(f"classes.{name}: {text!r} is also a prompt of {owner[text]}, set {prompt_set}")
        return found

    def _labels(self) -> list[str]:
        strange = {name for members in self.groups.values() for name in members} - set(self.classes)
        found = [f"groups: {name} is no class of this task" for name in sorted(strange)]
        labels = [label for name in self.names for label in self.label_of(name)]
        if self.kind == "classes":
            twice = sorted({label for label in labels if labels.count(label) > 1})
            found += [f"classes: label {label!r} belongs to two classes; one alone is right" for label in twice]
        return found

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.classes)

    @property
    def default_set(self) -> str:
        """The prompt set that stands for the task: the first."""
        return next(iter(self.prompt_sets))

    def label_of(self, name: str) -> tuple[str, ...]:
        """Columns of the shards that hold this class; it is present where any of them is 1."""
        return self.classes[name].label or (name,)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label column that the task asks for, once."""
        return tuple(dict.fromkeys(label for name in self.names for label in self.label_of(name)))

    def prompts(self, name: str, prompt_set: str | None = None) -> tuple[tuple[str, ...], ...]:
        """Every prompt of a class in a set (None: the default), written out: (positive, negative) of a finding, or
        (prompts,) of kind classes. Raises EvalError where the task has no such set."""
        prompt_set = self.known_set(prompt_set)
        finding = self.classes[name]
        if prompt_set in finding.prompts:
            return sides_of(finding.prompts[prompt_set])
        words = finding.words or (name.replace("_", " "),)
        return tuple(fill(templates, words) for templates in sides_of(self.prompt_sets[prompt_set]))

    def known_set(self, prompt_set: str | None = None) -> str:
        """The name of a set that exists; None is the default. Raises EvalError with the names there are."""
        if prompt_set is None or prompt_set in self.prompt_sets:
            return prompt_set or self.default_set
        raise EvalError(
            f"task {self.name} has no prompt set {prompt_set!r}",
            why="there are no words to score with",
            fix=f"name one of: {', '.join(self.prompt_sets)}",
        )

    def texts(self, prompt_set: str | None = None) -> tuple[str, ...]:
        """Every distinct prompt of one set, or of all (None), in file order."""
        sets = self.prompt_sets if prompt_set is None else (self.known_set(prompt_set),)
        said = (text for s in sets for name in self.names for side in self.prompts(name, s) for text in side)
        return tuple(dict.fromkeys(said))

    def written_out(self, prompt_set: str | None = None) -> dict[str, Any]:
        """Class -> its prompts in one set, as JSON holds them: what a result says was asked."""
        sides = {name: [list(side) for side in self.prompts(name, prompt_set)] for name in self.names}
        if self.kind == "classes":
            return {name: said[0] for name, said in sides.items()}
        return {name: {"positive": said[0], "negative": said[1]} for name, said in sides.items()}

    @property
    def identity(self) -> str:
        """sha256 of what is asked and how it is scored: two scores compare only where it is the same. Templates and the
        same prompts written out have one identity; `about` and `groups` are not part of it."""
        asked = {
            **{key: getattr(self, key) for key in ("name", "kind", "rule", "threshold")},
            "labels": {name: list(self.label_of(name)) for name in self.names},
            "prompts": [[prompt_set, self.written_out(prompt_set)] for prompt_set in self.prompt_sets],
        }
        return hashlib.sha256(json.dumps(asked, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def packaged_tasks() -> tuple[str, ...]:
    """Names of the tasks that ship with the package."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.yaml")))


def load_task(name_or_path: str | Path) -> Task:
    """Read a task: a YAML file as given, else a packaged name.

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
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvalError(
            f"task {path.name} is not readable YAML: {error}", why="no prompt can be taken from it", fix="correct it"
        ) from None
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        mistakes = [_said(mistake) for mistake in error.errors()]
        raise EvalError(
            f"task {path.name} has {len(mistakes)} mistake(s):\n    " + "\n    ".join(mistakes),
            why="a finding with missing or misspelt prompts would be scored on the wrong words",
            fix=f"correct the keys named above; the form (more in docs/benchmarks.md):{FORM}",
        ) from None


def _said(mistake: Any) -> str:
    """One mistake with the path of its key, as the file's author wrote it."""
    place = ".".join(str(key) for key in mistake["loc"] if not str(key).startswith("~"))
    place = place.replace(f".prompts.{MAIN}.", ".")
    said = SAID.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))
    return f"{place}: {said}" if place or mistake["type"] != "value_error" else said
