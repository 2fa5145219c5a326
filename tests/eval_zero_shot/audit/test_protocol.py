"""A control that bites: what is planted is caught, and what is clean is not accused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards.schema import Caption, Texts
from eval_zero_shot.feature_cache import FeatureCache
from eval_zero_shot.outcome import read_results, write_results

from .conftest import NAMES, SIDE, PatternEncoder, Write, audited, encoded, picture, severities, study, truth

TEST, TRAIN = 80, 120


def clean(write: Write, seed: int = 0, mark: bool = False) -> tuple:
    first = 10_000 * seed
    test = [study(first + i, "test", "hospital a", mark=mark) for i in range(TEST)]
    train = [study(first + 1000 + i, "train", "hospital b") for i in range(TRAIN)]
    return test, train


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 10))])
def test_a_clean_set_is_not_accused(write: Write, seed: int) -> None:
    test, train = clean(write, seed)
    audit = audited(write("test", test), [write("train", train)], seed=seed)
    found = severities(audit)
    assert "fail" not in found.values(), audit.outcome.notes
    assert "warn" not in found.values(), audit.outcome.notes
    # Other salts: whether patients are shared is unknown, so nobody can say that nothing had to be removed.
    unknown = {"patients", "identical reports", "decontaminated scores"}
    assert {name for name, severity in found.items() if severity == "not checked"} == unknown
    assert not [pair for pair in audit.pairs if pair["kind"] != "embedding"]
    assert audit.outcome.notes[0].startswith("Nothing was found against these scores")


def copies(how: str) -> list[bytes]:
    """One in ten of the test pictures as training got them: byte for byte, or in another format and size."""
    out = []
    for i in range(0, TEST, 10):
        x = picture(i, truth(i))
        if how == "identical":
            out.append(encoded(x))
        elif how == "lossless":
            out.append(encoded(np.stack([x] * 3, -1), "TIFF"))
        else:
            larger = Image.fromarray(x).resize((SIDE * 2, SIDE * 2 - 6), Image.Resampling.BICUBIC)
            out.append(encoded(np.asarray(larger), "JPEG", quality=70))
    return out


@pytest.mark.parametrize(
    ("how", "ext", "check", "kind"),
    [
        ("identical", "png", "identical images", "exact"),
        ("lossless", "tif", "identical images", "exact"),
        ("re-encoded", "jpg", "near-identical images", "perceptual"),
    ],
)
def test_a_planted_leak_is_caught(write: Write, how: str, ext: str, check: str, kind: str) -> None:
    test, train = clean(write)
    leaked = [study(5000 + i, "train", "hospital b", image=data, ext=ext) for i, data in enumerate(copies(how))]
    audit = audited(write("test", test), [write("train", [*train, *leaked])])
    assert severities(audit)[check] == "fail", audit.outcome.notes
    pairs = {(pair["test_key"], pair["train_key"]) for pair in audit.pairs if pair["kind"] == kind}
    assert pairs == {(test[10 * i].key, one.key) for i, one in enumerate(leaked)}
    removed = audit.outcome.metric("auroc", on="decontaminated")
    assert removed is not None and removed.n == TEST - len(leaked)
    assert audit.outcome.metric("auroc_loss", on="decontaminated").low is not None
    assert audit.outcome.notes[0].startswith("Do not report these scores as they are")


def test_a_leak_that_raises_the_score_is_said_to(write: Write) -> None:
    """A model that knows the leaked studies by heart and nothing else."""
    test, train = clean(write)
    leaked = [study(5000 + i, "train", "hospital b", image=one.scans[0].image) for i, one in enumerate(test[:40])]
    shards, training = write("test", test), write("train", [*train, *leaked])

    class Memory(PatternEncoder):
        def encode_image(self, images):  # type: ignore[no-untyped-def]
            found = super().encode_image(images)
            known = {round(float(np.asarray(picture(i, truth(i)) / 255, np.float32).mean()), 4): i for i in range(40)}
            for row, image in enumerate(images):
                i = known.get(round(float(image[0].mean()), 4))
                signs = np.random.default_rng(int(image.sum() * 1e3) % 2**31).normal(0, 1, 3)
                said = signs if i is None else 3 * (2.0 * np.asarray(truth(i)) - 1)
                found.study_BD[row, :3] = found.study_BD.new_tensor(said)
            return found

    audit = audited(shards, [training], Memory())
    assert severities(audit)["decontaminated scores"] == "fail", audit.outcome.notes
    full, rest = audit.outcome.main, audit.outcome.metric("auroc", on="decontaminated")
    assert full.value - rest.value > 0.1


@pytest.mark.parametrize(("leans", "anatomy"), [(0.2, 0.05), (0.1, 1.0)], ids=["mark", "mark and anatomy"])
def test_a_planted_shortcut_is_caught(write: Write, leans: float, anatomy: float) -> None:
    shards = write("test", clean(write, mark=True)[0])
    audit = audited(shards, [], PatternEncoder(leans=leans, anatomy=anatomy))
    assert severities(audit)["border shortcut"] == "fail", audit.outcome.notes
    (said,) = [note for note in audit.outcome.notes if "border shortcut:" in note]
    assert "alpha with AUROC" in said and "beta with" not in said and "the model uses it" in said
    probe = audit.outcome.metric("auroc", "alpha", **{"from": "border shortcut"})
    assert probe.value > 0.9 and probe.low > 0.75


def test_a_shortcut_that_the_model_does_not_take_is_the_datas_alone(write: Write) -> None:
    audit = audited(write("test", clean(write, mark=True)[0]), [])
    assert severities(audit)["border shortcut"] == "warn", audit.outcome.notes


def test_a_label_permuted_model_is_caught(write: Write) -> None:
    audit = audited(write("test", clean(write)[0]), [], PatternEncoder(names=(1, 2, 0)))
    found = severities(audit)
    assert found["permuted class names"] == "fail", audit.outcome.notes
    (said,) = [note for note in audit.outcome.notes if "permuted class names:" in note]
    assert "alpha by the score of gamma" in said and "beta by the score of alpha" in said
    assert found["better than chance"] == "warn"


def test_labels_the_wrong_way_round_are_caught(write: Write) -> None:
    class Inverted(PatternEncoder):
        def encode_image(self, images):  # type: ignore[no-untyped-def]
            found = super().encode_image(images)
            found.study_BD[:, 1] *= -1
            return found

    audit = audited(write("test", clean(write)[0]), [], Inverted())
    assert severities(audit)["inverted findings"] == "fail"
    assert any("wrong way round for beta: AUROC" in note for note in audit.outcome.notes)


def test_a_model_that_does_not_look_at_the_image_order_fails_the_shuffle(write: Write) -> None:
    """Brightness gives alpha away, and the model reads nothing else."""
    brighter = [
        study(i, "test", "hospital a", image=encoded(picture(i, truth(i)) // 2 + 60 * truth(i)[0])) for i in range(TEST)
    ]
    audit = audited(write("test", brighter), [], PatternEncoder(blind=True))
    found = severities(audit)
    assert found["shuffled voxels"] == "fail", audit.outcome.notes
    assert found["acquisition shortcut"] == "warn"


def test_shared_patients_fail_and_leave_the_decontaminated_part(write: Write) -> None:
    test, train = clean(write)
    again = [study(7000 + i, "train", "b", patient=test[i].patient) for i in range(5)]
    audit = audited(write("test", test), [write("train", [*train, *again])], resamples=20)
    assert severities(audit)["patients"] == "fail"
    assert audit.outcome.metric("auroc", on="decontaminated").n == TEST - 5


def test_patients_of_one_set_can_be_compared_and_of_two_salts_cannot(write: Write) -> None:
    test, train = clean(write)
    one = write("one", [*test, *train])
    audit = audited(one, [one], resamples=20)
    assert severities(audit)["patients"] == "ok"
    leaked = [study(5000, "train", "hospital b", image=test[0].scans[0].image)]
    audit = audited(write("test", test), [write("train", [*train, *leaked])], resamples=20)
    (said,) = [note for note in audit.outcome.notes if " patients:" in note]
    assert said.startswith("NOT CHECKED") and "different salts" in said


def test_prompts_that_are_training_captions_are_counted(write: Write) -> None:
    test, train = clean(write)
    texts = Texts(captions=(Caption("Alpha  seen."), Caption("Here it is. No beta seen.")))
    audit = audited(
        write("test", test), [write("train", [*train, study(6000, "train", "b", texts=texts)])], resamples=20
    )
    assert severities(audit)["prompts in training texts"] == "warn"
    (said,) = [note for note in audit.outcome.notes if "prompts in training texts:" in note]
    assert "1 of 6 prompts are a whole caption" in said and "1 more are a sentence" in said


def test_long_reports_word_for_word_in_training_are_named(write: Write) -> None:
    long = " ".join(f"word{i}" for i in range(40))
    test, train = clean(write)
    test[3] = study(3, "test", "hospital a", texts=Texts(report=f"{long}."))
    train[5] = study(1005, "train", "hospital b", texts=Texts(report=long.upper()))
    audit = audited(write("test", test), [write("train", train)], resamples=20)
    assert severities(audit)["identical reports"] == "warn"
    (pair,) = [pair for pair in audit.pairs if pair["kind"] == "report"]
    assert (pair["test_key"], pair["train_key"]) == (test[3].key, train[5].key)


def test_without_training_set_leakage_is_not_claimed_to_be_absent(write: Write) -> None:
    test, _ = clean(write)
    audit = audited(write("test", test), [])
    found = severities(audit)
    assert found["identical images"] == found["patients"] == found["decontaminated scores"] == "not checked"
    assert found["shuffled voxels"] == "ok"


def test_a_handful_of_studies_is_not_judged(write: Write) -> None:
    test, train = clean(write)
    found = severities(audited(write("test", test[:12]), [write("train", train[:8])], resamples=20))
    assert found.pop("identical images") == found.pop("prompts in training texts") == "ok"
    assert set(found.values()) == {"not checked"}, found


def test_rare_findings_are_left_out_and_named(write: Write) -> None:
    test = [replace(one, labels={**one.labels, "beta": int(i < 2)}) for i, one in enumerate(clean(write)[0])]
    audit = audited(write("test", test), [])
    (said,) = [note for note in audit.outcome.notes if "rare findings:" in note]
    assert "beta: fewer than 5 patients" in said and "alpha" not in said
    assert audit.outcome.main.low is not None
    assert severities(audit)["shuffled voxels"] == "ok"


def test_several_training_sets_and_a_part_of_one(write: Write) -> None:
    test, train = clean(write)
    leaked = study(5000, "train", "c", image=test[7].scans[0].image)
    audit = audited(write("test", test), [write("one", train), write("two", [leaked])], resamples=20)
    (pair,) = [pair for pair in audit.pairs if pair["kind"] == "exact"]
    assert (pair["train_set"], pair["train_key"]) == (2, leaked.key)


def test_files_and_the_cache(write: Write, tmp_path: Path) -> None:
    test, train = clean(write)
    shards, training = write("test", test), write("train", train)
    model, cache = PatternEncoder(), FeatureCache(tmp_path / "cache")
    first = audited(shards, [training], model, cache=cache)
    assert len(list((tmp_path / "cache" / "audit").iterdir())) == 2
    seen = model.seen
    assert seen == TEST * 4 + 2 + TRAIN
    second = audited(shards, [training], model, cache=cache)
    assert model.seen == seen, "everything came out of the cache"
    assert json.dumps(first.outcome.to_dict()) == json.dumps(second.outcome.to_dict())
    write_results(tmp_path / "out", [first.outcome])
    (read,) = read_results(tmp_path / "out")
    assert read.notes == first.outcome.notes
    assert set(read.scores["variant"]) == {"", "shuffled", "corners blanked", "frame blanked", *_matches(first)}
    assert len(read.scores[(read.scores["variant"] == "") & (read.scores["of"] == NAMES[0])]) == TEST


def _matches(audit) -> set[str]:  # type: ignore[no-untyped-def]
    return {"match"} if audit.pairs else set()
