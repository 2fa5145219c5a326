"""Task files: what is accepted, and that every mistake is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval_zero_shot import EvalError, Task, load_task
from eval_zero_shot.tasks import packaged_tasks

GOOD = {"name": "toy", "classes": {"cyst": {"positive": ["A cyst."], "negative": ["No cyst."]}}}
FINDINGS = """
name: chest
about: "Two findings."
rule: mean_cosine
threshold: validation
classes:
  lung_nodule: {label: "Lung nodule", words: [lung nodule, nodule]}
  effusion: {label: [Effusion left, Effusion right], prompts: {short: {positive: [Fluid.], negative: [Dry.]}}}
prompt_sets:
  present: {positive: ["{} is present.", "There is {}."], negative: ["{} is not present."]}
  short: {positive: ["{}."], negative: ["Not {}."]}
groups: {pleura: [effusion]}
"""
CLASSES = """
name: tissue
kind: classes
classes:
  adipose: {label: ADI, words: [adipose tissue, fat]}
  smooth_muscle: {}
prompt_sets:
  photo: ["an image of {}.", "{} on H&E stain."]
"""


def write(folder: Path, content: object) -> Path:
    path = folder / "toy.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refused(folder: Path, content: object) -> str:
    with pytest.raises(EvalError) as error:
        load_task(write(folder, content))
    assert "why:" in str(error.value) and "fix:" in str(error.value)
    return str(error.value)


def test_the_short_form_is_a_set_called_main(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert (task.names, task.kind, tuple(task.prompt_sets), task.default_set) == (
        ("cyst",),
        "findings",
        ("main",),
        "main",
    )
    assert task.prompts("cyst") == (("A cyst.",), ("No cyst.",))
    assert task.label_of("cyst") == ("cyst",)
    assert task.texts() == ("A cyst.", "No cyst.")


def test_findings_from_templates_words_and_own_sentences(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, FINDINGS))
    assert (task.rule, task.threshold, task.about) == ("mean_cosine", "validation", "Two findings.")
    assert tuple(task.prompt_sets) == ("present", "short")
    assert task.prompts("lung_nodule") == (
        ("Lung nodule is present.", "There is lung nodule.", "Nodule is present.", "There is nodule."),
        ("Lung nodule is not present.", "Nodule is not present."),
    )
    assert task.prompts("effusion") == (("Effusion is present.", "There is effusion."), ("Effusion is not present.",))
    assert task.prompts("effusion", "short") == (("Fluid.",), ("Dry.",))
    assert task.label_of("effusion") == ("Effusion left", "Effusion right")
    assert task.texts("short") == ("Lung nodule.", "Nodule.", "Not lung nodule.", "Not nodule.", "Fluid.", "Dry.")
    assert set(task.texts()) == set(task.texts("present")) | set(task.texts("short"))
    assert task.written_out("short")["effusion"] == {"positive": ["Fluid."], "negative": ["Dry."]}
    with pytest.raises(EvalError, match=r"no prompt set 'long'.*\n.*\n.*present, short"):
        task.prompts("effusion", "long")


def test_classes_from_templates_and_as_free_prompts(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, CLASSES))
    assert task.prompts("adipose") == (
        ("an image of adipose tissue.", "Adipose tissue on H&E stain.", "an image of fat.", "Fat on H&E stain."),
    )
    assert task.prompts("smooth_muscle") == (("an image of smooth muscle.", "Smooth muscle on H&E stain."),)
    assert task.label_of("adipose") == ("ADI",)
    free = {"name": "f", "kind": "classes", "classes": {"a": {"prompts": ["One.", "Two."]}, "b": {"prompts": ["B."]}}}
    assert load_task(write(tmp_path, free)).prompts("a") == (("One.", "Two."),)


@pytest.mark.parametrize("content", [GOOD, FINDINGS, CLASSES], ids=["short", "findings", "classes"])
def test_a_task_survives_json(tmp_path: Path, content: object) -> None:
    task = load_task(write(tmp_path, content))
    again = load_task(write(tmp_path, json.dumps(task.model_dump(mode="json"))))
    assert (again, again.identity) == (task, task.identity)


def test_identity_is_of_words_labels_and_rules(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, FINDINGS))
    written_out = {
        name: {"label": list(task.label_of(name)), "prompts": {s: task.written_out(s)[name] for s in task.prompt_sets}}
        for name in task.names
    }
    same = Task(name="chest", rule="mean_cosine", threshold="validation", classes=written_out)
    assert same.identity == task.identity
    for old, new in (
        ("There is {}.", "There is a {}."),
        ("mean_cosine", "ensemble"),
        ("validation", "sign"),
        ('label: "Lung nodule"', "label: Nodule"),
        ("present:", "default:"),
    ):
        assert load_task(write(tmp_path, FINDINGS.replace(old, new))).identity != task.identity, new
    assert load_task(write(tmp_path, FINDINGS.replace("Two findings", "2"))).identity == task.identity


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    classes = {"cyst": {"positiv": ["A cyst."], "negative": []}, "stone": {"positive": [" "], "negative": ["No."]}}
    said = refused(tmp_path, {"name": "toy", "classes": classes})
    for path in (
        "classes.cyst.positiv:",
        "classes.cyst.positive:",
        "classes.cyst.negative:",
        "classes.stone.positive:",
    ):
        assert path in said
    form = yaml.safe_load(said.partition("benchmarks.md):")[2])
    assert Task.model_validate(form).names == ("effusion",), "the form that is shown is one"


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        ({"positive": ["A."], "negative": ["A."]}, "cancel"),
        ({"positive": ["A.", "A."], "negative": ["B."]}, "twice"),
        (
            {"positive": ["A."], "negative": ["B."], "prompts": {"other": {"positive": ["C."]}}},
            "other.negative: is missing",
        ),
        ({"positive": "A.", "negative": ["B."]}, "cyst.positive: should be a list of sentences"),
        ({"positive": [1], "negative": ["B."]}, "cyst.positive.0: should be text, in quotes"),
        ({"positive": ["{} is seen."], "negative": ["B."]}, "belong into prompt_sets"),
        ({"prompts": ["A."]}, "cyst.prompts.main: should be {positive"),
        ({}, "there is no prompt"),
        (None, "cyst: should hold keys with values"),
    ],
)
def test_prompts_that_would_score_wrongly(tmp_path: Path, finding: dict, words: str) -> None:
    assert words in refused(tmp_path, {"name": "toy", "classes": {"cyst": finding}})


@pytest.mark.parametrize(
    ("task", "old", "new", "words"),
    [
        (FINDINGS, "There is {}.", "There is it.", "needs one gap"),
        (FINDINGS, "threshold: validation", "threshold: test", "threshold: "),
        (FINDINGS, "pleura: [effusion]", "pleura: [effusions]", "groups: effusions is no class"),
        (FINDINGS, "short: {positive: [Fl", "long: {positive: [Fl", "lung_nodule: has no prompts in the set long"),
        (FINDINGS, 'short: {positive: ["{}."], negative: ["Not {}."]}', 'short: ["{}."]', "sets.short: should be"),
        (CLASSES, "[adipose tissue, fat]", "[smooth muscle]", "is also a prompt of adipose"),
        (CLASSES, "smooth_muscle: {}", "smooth_muscle: {label: ADI}", "belongs to two classes"),
        (CLASSES, "  smooth_muscle: {}\n", "", "one class cannot be told"),
        (CLASSES, "kind: classes", "kind: classes\nthreshold: validation", "the best class is the answer"),
        (CLASSES, "kind: classes", "kind: findings", "prompt_sets.photo: should be {positive"),
    ],
)  # fmt: skip
def test_tasks_that_would_score_wrongly(tmp_path: Path, task: str, old: str, new: str, words: str) -> None:
    load_task(write(tmp_path, task))
    assert words in refused(tmp_path, task.replace(old, new))


def test_repeated_key_is_refused(tmp_path: Path) -> None:
    finding = "{positive: [A.], negative: [B.]}"
    said = refused(tmp_path, f"name: toy\nclasses:\n  cyst: {finding}\n  cyst: {finding}\n")
    assert "'cyst' is given twice" in said


def test_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(EvalError, match="no zero-shot task 'nonesuch'"):
        load_task("nonesuch")


@pytest.mark.parametrize("name", packaged_tasks())
def test_packaged_tasks_are_valid(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.about, "a task says where its labels are from"


def test_tasks_and_help_do_not_import_torch() -> None:
    code = (
        "import sys, eval_zero_shot.run as run\n"
        "try: run.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'sklearn', 'pretrain'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--suite" in done.stdout
