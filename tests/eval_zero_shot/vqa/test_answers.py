"""Closed VQA through its command: the answers are those of a plain loop, controls show what needs no image, and what
cannot be scored is refused or counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_shards.shard_set import ShardSet
from eval_zero_shot.errors import EvalError
from eval_zero_shot.resample import clustered_means
from eval_zero_shot.run import main as suite
from eval_zero_shot.vqa.__main__ import main
from eval_zero_shot.vqa.answers import hits, majority_hits, position_hits
from eval_zero_shot.vqa.items import Item

from .items import answer, default_sentences, plain_accuracy, rows, write


def test_answers_are_those_of_a_plain_loop(planar: Path, images: Path, tmp_path: Path) -> None:
    outcome = answer(planar, write(tmp_path / "q.jsonl", rows()), tmp_path / "out", "--images", images)
    assert (outcome.protocol, outcome.headline, outcome.task) == ("vqa", "accuracy", "q")
    assert (outcome.studies, outcome.patients, outcome.main.n) == (12, 6, 24)
    assert outcome.main.value == pytest.approx(plain_accuracy(planar, images, default_sentences))
    blank = outcome.metric("blank_accuracy")
    assert blank is not None and blank.value == pytest.approx(plain_accuracy(planar, images, default_sentences, 0, 1))
    corrected = outcome.metric("corrected_accuracy")
    assert corrected is not None
    assert corrected.value == pytest.approx(plain_accuracy(planar, images, default_sentences, 1, -1))
    gain = outcome.metric("image_gain")
    assert gain is not None and gain.value != 0 and gain.value == pytest.approx(outcome.main.value - blank.value)
    values = {(m.name, m.of, m.at.get("options")): m for m in outcome.metrics}
    assert values["chance", "", None].value == pytest.approx((0.25 + 0.5) / 2)
    assert values["accuracy", "", 2].value == values["accuracy", "effusion", None].value
    assert values["accuracy", "organ", None].n == 12
    assert values["majority_accuracy", "", None].value == pytest.approx((3 / 12 + 8 / 12) / 2)
    assert outcome.main.low is not None and outcome.main.low <= outcome.main.value <= outcome.main.high
    assert outcome.prompts["option_counts"] == {"2": 12, "4": 12}
    assert outcome.prompts["caption_rules"] == {"question and option": 12, "statement": 12}


def test_the_order_of_options_and_of_items_changes_nothing(planar: Path, images: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shuffled = rows()
    for row in shuffled:
        correct = row["options"][row["answer"]] if isinstance(row["answer"], int) else row["answer"]
        row["options"], row["answer"] = [row["options"][j] for j in rng.permutation(len(row["options"]))], correct
    one = answer(planar, write(tmp_path / "q.jsonl", rows()), tmp_path / "one", "--images", images)
    two = answer(planar, write(tmp_path / "s.jsonl", shuffled), tmp_path / "two", "--images", images, "--name", "q")
    for name in ("accuracy", "blank_accuracy", "corrected_accuracy", "majority_accuracy"):
        assert one.metric(name) is not None and one.metric(name).value == two.metric(name).value
    assert one.provenance["items_sha256"] == two.provenance["items_sha256"]
    a, b = (o.scores.sort_values(["variant", "key", "of"])["score"].to_numpy() for o in (one, two))
    np.testing.assert_array_equal(a, b)


def test_two_runs_write_the_same_bytes_and_no_name_of_a_patient(planar: Path, images: Path, tmp_path: Path) -> None:
    items = write(tmp_path / "q.jsonl", rows())
    for name in ("one", "two"):
        answer(planar, items, tmp_path / name, "--images", images)
    for file in ("results.json", "scores.parquet", "items.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert b"jane" not in (tmp_path / "one" / file).read_bytes().lower()
    kept = [json.loads(line) for line in (tmp_path / "one" / "items.jsonl").read_text().splitlines()]
    assert [row["n_options"] for row in kept[:2]] == [4, 2]
    assert kept[1]["captions"] == ["There is a pleural effusion.", "There is no pleural effusion."]


def test_images_that_show_nothing_gain_nothing(planar: Path, images: Path, tmp_path: Path) -> None:
    for file in images.iterdir():
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[0, 0] = 1  # one constant value would be refused as unreadable
        Image.fromarray(pixels).save(file)
    outcome = answer(planar, write(tmp_path / "q.jsonl", rows()), tmp_path / "out", "--images", images)
    gain = outcome.metric("image_gain")
    assert (
        gain is not None
        and gain.value == 0
        and gain.low is None
        and (gain.reason or "").startswith("all resamples agree")
    )


def test_captions_and_templates(planar: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    items = rows()
    for row in items:
        row["captions"] = [f"caption {j} of {row['category']}" for j in range(len(row["options"]))]
    given = answer(planar, write(tmp_path / "q.jsonl", items), tmp_path / "given", "--images", images)
    assert given.main.value == pytest.approx(
        plain_accuracy(planar, images, lambda r: [f"caption {j} of {r['category']}" for j in range(len(r["options"]))])
    )
    plain = write(tmp_path / "p.jsonl", rows())
    filled = answer(planar, plain, tmp_path / "t", "--images", images, "--template", "a scan with {option}")
    expected = plain_accuracy(planar, images, lambda r: [f"a scan with {o}" for o in r["options"]])
    assert filled.main.value == pytest.approx(expected)
    assert main(["--model", str(planar), "--items", str(plain), "--template", "a scan"]) == 1
    assert "{option}" in capsys.readouterr().err


def test_sentences_cut_to_the_same_tokens_tie(planar: Path, images: Path, tmp_path: Path) -> None:
    long = "very " * 40
    items = [{**row, "captions": [f"{long}{j}" for j in range(len(row["options"]))]} for row in rows()]
    outcome = answer(planar, write(tmp_path / "q.jsonl", items), tmp_path / "out", "--images", images)
    assert outcome.main.value == pytest.approx(outcome.metric("chance").value)
    assert any("24 items two sentences are the same" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": ["Liver", "liver "]}, "two options are the same"),
        ({"options": ["Liver", "Lung"], "answer": "Spleen"}, "the answer is not among the options"),
        ({"options": ["Liver", "Lung"], "answer": 2}, "the answer is not among the options"),
        ({"options": ["Liver"], "answer": "Liver"}, "one option only"),
        ({"options": []}, "no options"),
        ({"captions": ["a", "b"]}, "captions are not one different sentence for each option"),
        ({"captions": ["a", "a", "b", "c"]}, "captions are not one different sentence for each option"),
        ({"n_options": 3}, "n_options is not the number of options"),
        ({"choices": ["a", "b"]}, "unknown field 'choices'"),
    ],
)
def test_wrong_items_are_refused_with_their_line(
    change: dict[str, Any], reason: str, images: Path, tmp_path: Path, capsys: Any
) -> None:
    items = rows()
    items[2] |= change
    path = write(tmp_path / "q.jsonl", items)
    assert main(["--model", "nowhere", "--items", str(path), "--images", str(images)]) == 1
    told = capsys.readouterr().err
    assert f"line 000003: {reason}" in told and "jane" not in told.lower()


def test_missing_and_unreadable_images(planar: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    (images / "jane_doe_0.png").unlink()
    (images / "jane_doe_1.png").write_bytes(b"no image")
    items = write(tmp_path / "q.jsonl", rows())
    words = ["--model", str(planar), "--items", str(items), "--images", str(images), "--device", "cpu"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "2 of 12 images are missing or unreadable (1 unreadable)" in told and "jane" not in told.lower()
    outcome = answer(planar, items, tmp_path / "out", "--images", images, "--max-missing", 2)
    assert outcome.main.n == 20 and outcome.provenance["missing_images"] == 2
    assert any("4 items are left out" in note for note in outcome.notes)


def test_volumes_in_files_and_studies_of_shards(volumetric: Path, toy_folder: Path, tmp_path: Path) -> None:
    for i in range(4):
        array = np.random.default_rng(i).normal(0, 300, (9, 9, 6)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / f"v{i}.nii.gz")
    question = {"question": "Is the scan bright?", "options": ["yes", "no"]}
    files = [{"image": f"v{i}.nii.gz", "answer": i % 2, **question} for i in range(4)]
    outcome = answer(volumetric, write(tmp_path / "q.jsonl", files), tmp_path / "files")
    assert outcome.main.n == 4 and outcome.provenance["data_sha256"] is None

    shards = ShardSet.open(toy_folder)
    keyed = [{"image": shards.key(int(row)), "answer": int(row) % 2, **question} for row in shards.rows("test")]
    outcome = answer(volumetric, write(tmp_path / "k.jsonl", keyed), tmp_path / "keys", "--data", toy_folder)
    assert outcome.main.n == 24 and outcome.provenance["data_sha256"] == shards.manifest_hash


def test_ties_share_the_answer() -> None:
    scores = np.array([0.3, 0.1, 0.5, 0.5, 0.5, 0.2, 0.9])
    np.testing.assert_array_equal(hits(scores, np.array([0, 2, 5]), np.array([0, 3, 5])), [1, 1 / 3, 0])


def test_majority_is_no_leak_where_every_answer_is_its_own() -> None:
    unique = [Item(str(i), "x", "q", (f"a{i}", f"b{i}", f"c{i}", f"d{i}"), i % 4, category="k") for i in range(40)]
    assert majority_hits(unique).mean() == pytest.approx((1 + 39 / 4) / 40)
    few = [Item(str(i), "x", "q", ("yes", "no"), 0, category=f"k{i}") for i in range(8)]
    mixed = [*few, *(Item("n", "x", "q", ("yes", "no"), 1, category=f"n{i}") for i in range(8))]
    assert majority_hits(mixed).mean() == 0.5  # each category alone would be known with certainty
    assert position_hits(unique).mean() == 0.25


def test_intervals_resample_patients() -> None:
    """Twenty items of one patient are one draw: the interval is that of the patients, wider than that of items."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 20)
    values = np.repeat(rng.integers(0, 2, 30), 20).astype(float)[:, None]
    (clustered,) = clustered_means(values, patients.astype(str))
    (single,) = clustered_means(values, np.arange(600).astype(str))
    width = 2 * 1.96 * values[::20].std() / np.sqrt(30)
    assert clustered.high - clustered.low == pytest.approx(width, rel=0.15)
    assert single.high - single.low < 0.35 * (clustered.high - clustered.low)
    (alone,) = clustered_means(values, ["p"] * 600)
    assert alone.low is None and alone.reason == "a single patient"


def test_scores_are_what_comparisons_read(planar: Path, images: Path, tmp_path: Path) -> None:
    from eval_zero_shot.paired import cases_of, paired_difference, require_comparable

    items = write(tmp_path / "q.jsonl", rows())
    one = answer(planar, items, tmp_path / "one", "--images", images)
    require_comparable(one, one)
    ours, blank = cases_of(one), cases_of(one, "blank")
    difference, _ = paired_difference(ours, blank)
    assert difference.value == pytest.approx(one.metric("image_gain").value)
    options = one.scores[one.scores["variant"] == "options"]
    assert options.groupby("key")["label"].sum().eq(1).all() and len(options) == 12 * 6
    assert isinstance(options, pd.DataFrame)


def _other_picture(file: Path) -> None:
    Image.fromarray(np.random.default_rng(99).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(file)


def test_answers_about_other_images_are_not_compared(planar: Path, images: Path, tmp_path: Path) -> None:
    from eval_zero_shot.paired import require_comparable

    items = write(tmp_path / "q.jsonl", rows())
    one = answer(planar, items, tmp_path / "one", "--images", images)
    again = answer(planar, items, tmp_path / "again", "--images", images)
    require_comparable(one, again)
    picture = next(iter(sorted(images.iterdir())))
    _other_picture(picture)
    other = answer(planar, items, tmp_path / "other", "--images", images)
    with pytest.raises(EvalError, match="the two results differ in images_sha256"):
        require_comparable(one, other)


def test_a_suite_asks_again_when_an_image_was_replaced_and_goes_on_without_a_text_tower(
    planar: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    """The images lie beside the items, which is where they are looked for when no folder is named."""
    write(images / "q.jsonl", rows())
    (tmp_path / "suite.yaml").write_text("name: asked\nentries: [{protocol: vqa, items: images/q.jsonl}]\n")
    words = ["--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out"), "--no-cache", "--no-cases"]

    def run(*models: str) -> str:
        assert suite([*words, "--device", "cpu", "--models", *models]) == ("pixels:image" in models)
        return capsys.readouterr().err

    assert "(kept)" not in run(str(planar))
    assert "(kept)" in run(str(planar))
    _other_picture(images / "jane_doe_3.png")
    assert "(kept)" not in run(str(planar))
    told = run("pixels:image", str(planar))
    assert "pixels:image, vqa q: pixels:image has no text tower" in told and "(kept)" in told
