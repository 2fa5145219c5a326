"""Task files: what is accepted, and that every mistake is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval_zero_shot import EvalError, Finding, Task, load_task
from eval_zero_shot.tasks import packaged_tasks

GOOD = {"name": "toy", "classes": {"cyst": {"positive": ["A cyst."], "negative": ["No cyst."]}}}


def write(folder: Path, content: object) -> Path:
    path = folder / "toy.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_file_is_read(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert task.names == ("cyst",)
    assert task.classes["cyst"].prompts() == (("A cyst.",), ("No cyst.",))
    assert not task.has_synonyms
    assert task.texts() == ("A cyst.", "No cyst.")


def test_texts_hold_synonyms_once() -> None:
    a = Finding(positive=("x", "y"), negative=("z",), synonyms_positive=("y",), synonyms_negative=("w",))
    task = Task(name="t", classes={"a": a, "b": Finding(positive=("w",), negative=("x",))})
    assert task.texts() == ("x", "y", "z", "w")
    assert task.has_synonyms


def test_identity_follows_the_words() -> None:
    task = Task.model_validate(GOOD)
    assert task.identity == Task.model_validate(GOOD).identity
    other = {"name": "toy", "classes": {"cyst": {"positive": ["A cyst"], "negative": ["No cyst."]}}}
    assert task.identity != Task.model_validate(other).identity


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    classes = {"cyst": {"positiv": ["A cyst."], "negative": []}, "stone": {"positive": [" "], "negative": ["No."]}}
    with pytest.raises(EvalError) as error:
        load_task(write(tmp_path, {"name": "toy", "classes": classes}))
    for path in (
        "classes.cyst.positiv:",
        "classes.cyst.positive:",
        "classes.cyst.negative:",
        "classes.stone.positive:",
    ):
        assert path in str(error.value)
    assert "why:" in str(error.value)
    assert "fix:" in str(error.value)
    form = yaml.safe_load(str(error.value).partition("Prompts):")[2])
    assert Task.model_validate(form).names == ("effusion",), "the form that is shown is one"


@pytest.mark.parametrize(
    ("finding", "word"),
    [
        ({"positive": ["A."], "negative": ["A."]}, "cancel"),
        ({"positive": ["A.", "A."], "negative": ["B."]}, "twice"),
        ({"positive": ["A."], "negative": ["B."], "synonyms_positive": ["C."]}, "both sides"),
        ({"positive": "A.", "negative": ["B."]}, "positive: should be a list of sentences"),
        ({"positive": [1], "negative": ["B."]}, "positive.0: should be text, in quotes"),
        (None, "cyst: should hold keys with values"),
    ],
)
def test_prompts_that_would_score_wrongly(tmp_path: Path, finding: dict, word: str) -> None:
    with pytest.raises(EvalError, match=word):
        load_task(write(tmp_path, {"name": "toy", "classes": {"cyst": finding}}))


def test_repeated_key_is_refused(tmp_path: Path) -> None:
    finding = "{positive: [A.], negative: [B.]}"
    with pytest.raises(EvalError, match="'cyst' is given twice"):
        load_task(write(tmp_path, f"name: toy\nclasses:\n  cyst: {finding}\n  cyst: {finding}\n"))


def test_the_examples_of_the_docs_are_tasks(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    plain, templated = (load_task(write(tmp_path, part.partition("```")[0])) for part in page.split("```yaml\n")[1:])
    assert plain.has_synonyms
    assert len(templated.classes["effusion"].positive) == 4


def test_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(EvalError, match="no zero-shot task 'nonesuch'"):
        load_task("nonesuch")


@pytest.mark.parametrize("name", packaged_tasks() or [pytest.param("", marks=pytest.mark.skip("no packaged task"))])
def test_packaged_tasks_are_valid(name: str) -> None:
    assert load_task(name).names


def test_tasks_and_help_do_not_import_torch() -> None:
    code = (
        "import sys, eval_zero_shot.run as run\n"
        "try: run.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'sklearn', 'pretrain'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--allow-geometry-mismatch" in done.stdout


def test_templates_are_filled_with_every_word(tmp_path: Path) -> None:
    file = tmp_path / "chest.yaml"
    file.write_text(
        "name: chest\ntemplates: ['There is {}.', '{} is seen.']\nclasses:\n"
        "  effusion: {positive: [an effusion, fluid], negative: [no effusion]}\n"
    )
    effusion = load_task(file).classes["effusion"]
    assert effusion.positive == (
        "There is an effusion.", "An effusion is seen.", "There is fluid.", "Fluid is seen.",
    )  # fmt: skip
    assert effusion.negative == ("There is no effusion.", "No effusion is seen.")
    written_out = Task(name="chest", classes={"effusion": effusion})
    assert load_task(file).identity == written_out.identity
    file.write_text(file.read_text().replace("There is {}.", "There is it."))
    with pytest.raises(EvalError, match="needs one gap"):
        load_task(file)
