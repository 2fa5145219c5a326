"""Phantom studies: physiological, deterministic, free of shortcuts, frozen; reports that say what is in the image."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.phantom import FINDINGS, ensure, generate, nuisance_vector, sample_parameters, write
from data_shards.phantom.__main__ import main
from data_shards.phantom.cache import frozen_digest, measure_digest
from data_shards.phantom.canvas import Canvas
from data_shards.phantom.parameters import PREVALENCE, Parameters, patient_of
from data_shards.phantom.phrases import GRADES, PHRASES
from data_shards.phantom.render import render
from data_shards.phantom.wording import every_sentence, kind_and_side
from data_shards.report import sentences
from data_shards.shard_set import ShardSet
from data_shards.units import is_negation
from eval_zero_shot.tasks import load_task


def normal(text: str) -> str:
    return " ".join(text.casefold().split())


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9-]+", text.casefold()))


def with_labels(index: int, seed: int = 0, **labels: int) -> Parameters:
    """Parameters of a study in which only the given findings are present."""
    p = sample_parameters(index, seed)
    return replace(p, truth={**dict.fromkeys(FINDINGS, 0), **labels})


# ---- the frozen generator


def test_output_is_the_frozen_one():
    """A changed phantom would make old and new results incomparable: change digest.txt only on purpose."""
    assert measure_digest() == frozen_digest()


def test_a_study_does_not_depend_on_order_or_process(tmp_path: Path):
    first = generate(5, 3)
    generate(6, 3)
    again = generate(5, 3)
    assert np.array_equal(first.scans[0].array, again.scans[0].array)
    assert first.to_json() == again.to_json()
    assert not np.array_equal(generate(5, 4).scans[0].array[:40, :40, :40], first.scans[0].array[:40, :40, :40])


# ---- images


def test_grid_spacing_and_step():
    for index in range(12):
        scan = generate(index, 1).scans[0]
        scan.check()
        assert scan.array is not None and scan.spacing_mm is not None
        assert scan.array.dtype == np.int16
        assert all(48 <= n <= top for n, top in zip(scan.array.shape, (64, 96, 96)))
        assert not (scan.array % 2).any()
        assert 6.5 <= scan.spacing_mm[0] <= 8.5 and all(4 <= s <= 5.5 for s in scan.spacing_mm[1:])


def median_at(hu: np.ndarray, canvas: Canvas, heights: range, y: float, x: float) -> float:
    """Median HU along a vertical line (reference mm)."""
    return float(np.median([canvas.at(hu, (z, y + dy, x)) for z in heights for dy in (-4, 0, 4)]))


@pytest.mark.parametrize("phase", ["none", "arterial", "portal"])
def test_tissues_have_physiological_attenuation(phase: str):
    kidney = {"none": (15, 50), "arterial": (120, 175), "portal": (150, 210)}
    liver = {"none": (40, 75), "arterial": (50, 88), "portal": (88, 125)}
    aorta = {"none": (25, 65), "arterial": (220, 320), "portal": (115, 185)}
    for index in (1, 8, 20):
        p = replace(with_labels(index), phase=phase)
        hu, scene = render(p)
        c = scene.canvas
        assert liver[phase][0] < median_at(hu, c, range(-80, -40, 4), 30, 80) < liver[phase][1]
        assert aorta[phase][0] < median_at(hu, c, range(-180, -80, 5), -23, -8.5) < aorta[phase][1]
        assert kidney[phase][0] < median_at(hu, c, range(-125, -100, 3), -40, 76) < kidney[phase][1]
        assert -920 < median_at(hu, c, range(40, 80, 4), 25, 75) < -780  # lung
        assert 150 < np.percentile(hu, 99.5) < 1300  # bone


def test_side_is_the_patients_side():
    """W grows toward the patient's right: a right effusion fills voxels of high W, at the back, low in the chest."""
    for side, right in (("left", False), ("right", True)):
        p = with_labels(7, **{f"effusion_{side}": 1})
        plain = render(with_labels(7))[0].astype(int)
        d, h, w = np.nonzero(np.abs(render(p)[0] - plain) > 400)
        assert len(d) * np.prod(with_labels(7).spacing_mm) > 20_000  # a small effusion: 20 ml
        middle = (p.shape[2] - 1) / 2 + p.nuisance["shift_x"] / p.spacing_mm[2]
        assert (np.mean(w) > middle) is np.bool_(right)
        assert np.mean(h) < p.shape[1] / 2
        assert np.mean(d) > p.shape[0] / 3


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_its_own_place_only(finding: str):
    """No tell-tale: with the same streams, the image with and without it differ in a limited region and not outside."""
    most = {"emphysema": 0.2, "hepatic_steatosis": 0.12, "ascites": 0.12, "cardiomegaly": 0.08}.get(finding, 0.06)
    changed = []
    for index in (2, 11, 19):
        plain, positive = render(with_labels(index))[0], render(with_labels(index, **{finding: 1}))[0]
        difference = np.abs(positive.astype(int) - plain)
        changed.append((difference > 0).mean())
        assert changed[-1] < most
        assert not difference[:, :, :6].any()
        assert not difference[:, -4:, :].any()
        assert difference.max() > 12
    assert min(changed) > 0


# ---- no shortcut


def z_scores(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Held-out AUROC of a logistic regression per finding, fitted on the first half, in standard errors from chance.

    Standard error of an AUROC under no effect: sqrt((n0 + n1 + 1) / (12 n0 n1)) (Mann-Whitney).
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    half = len(x) // 2
    x = StandardScaler().fit(x[:half]).transform(x)
    out = []
    for i in range(y.shape[1]):
        model = LogisticRegression(C=0.1, max_iter=500).fit(x[:half], y[:half, i])
        held = y[half:, i] == 1
        n1, n0 = held.sum(), (~held).sum()
        ranks = rankdata(model.decision_function(x[half:]))
        auroc = (ranks[held].sum() - n1 * (n1 + 1) / 2) / (n0 * n1)
        out.append((auroc - 0.5) / np.sqrt((n0 + n1 + 1) / (12 * n0 * n1)))
    return np.array(out)


# Fourteen findings, two-sided: beyond 3.4 standard errors happens to one set in a hundred without any effect.
CHANCE = 3.4


def test_nuisances_predict_no_finding():
    studies = [sample_parameters(index, 0) for index in range(3000)]
    x = np.array([list(nuisance_vector(p).values()) for p in studies])
    y = np.array([[p.truth[f] for f in FINDINGS] for p in studies])
    assert np.abs(z_scores(x, y)).max() < CHANCE  # at most 0.05 of AUROC from 0.5
    # The test can see a shortcut: noise that is 1 HU higher in positives of one finding.
    x[:, list(nuisance_vector(studies[0])).index("noise_hu")] += y[:, 3]
    assert np.abs(z_scores(x, y)).max() > CHANCE


def image_statistics(index: int) -> list[float]:
    """What can be measured away from every lesion: air and fat noise, grid, spacing, and the share of air."""
    study = generate(index, 0)
    scan = study.scans[0]
    hu, spacing = scan.array, scan.spacing_mm
    assert hu is not None and spacing is not None
    air = hu[:, -6:, :10].astype(float)
    shoulder = hu[-2:]
    return [air.std(), float(np.abs(np.diff(air, axis=2)).mean()), air.mean(), *hu.shape, *spacing[:2],
            hu.shape[0] * spacing[0], hu.shape[2] * spacing[2], float((shoulder < -500).mean()), float(shoulder.std()),
            {"none": 0.0, "arterial": 1.0, "portal": 2.0}[scan.phase or "none"]]  # fmt: skip


@pytest.mark.full
def test_images_away_from_lesions_predict_no_finding():
    x = np.array([image_statistics(index) for index in range(800)])
    y = np.array([[sample_parameters(index, 0).truth[f] for f in FINDINGS] for index in range(800)])
    assert np.abs(z_scores(x, y)).max() < CHANCE  # about 0.1 of AUROC at 400 held-out studies


def test_findings_are_common_and_nearly_independent():
    y = np.array([[sample_parameters(index, 0).truth[f] for f in FINDINGS] for index in range(1500)])
    assert (np.abs(y.mean(0) - PREVALENCE) < 0.07).all()
    correlation = np.corrcoef(y.T)[np.triu_indices(len(FINDINGS), 1)]
    assert np.abs(correlation).max() < 0.2  # the healthy share alone gives about 0.05


def test_every_patient_is_in_one_split_and_splits_are_large_enough():
    rows = [patient_of(index) for index in range(2600)]
    split = {}
    for patient, _, name in rows:
        assert split.setdefault(patient, name) == name
    assert len(rows) / len(split) == pytest.approx(1.15, abs=0.01)
    assert sum(name == "test" for name in split.values()) >= 320
    counts = {name: sum(r[2] == name for r in rows) for name in ("train", "val", "test")}
    assert counts["train"] > 2000
    assert counts["val"] >= 140


# ---- reports


def test_phrase_tables_are_rich():
    for table in PHRASES.values():
        assert len(set(table.positive)) >= 5
        assert len(set(table.negative)) >= 5
        assert len(set(table.impression)) >= 3
        assert not set(table.positive) & set(table.negative)
    assert all(len(words(s)) <= 14 for s in every_sentence())


def test_reports_say_what_the_labels_say():
    """Each sentence of FINDINGS that names a finding comes from the table of its label; unmentioned means None."""
    unknown, total = 0, 0
    source: dict[str, tuple[str, int]] = {}
    for finding in FINDINGS:
        kind, side = kind_and_side(finding)
        for value, templates in ((1, PHRASES[kind].positive + PHRASES[kind].several), (0, PHRASES[kind].negative)):
            for template in templates:
                pattern = re.escape(template)
                grades = "|".join(GRADES.get(kind, ("",)))
                for name, text in (("size", r"\d+"), ("grade", grades), ("Grade", grades.title())):
                    pattern = pattern.replace(re.escape("{" + name + "}"), f"(?:{text})")
                for name, text in (("side", side), ("Side", side.capitalize())):
                    pattern = pattern.replace(re.escape("{" + name + "}"), text or r"\w+")
                source[pattern] = (finding, value)
    for index in range(60):
        study = generate(index, 2)
        lines = sentences(study.texts.findings)
        said: dict[str, int] = {}
        for sentence in lines:
            hits = {source[p] for p in source if re.fullmatch(p, sentence)}
            assert len(hits) <= 1
            said.update(dict(hits))
        assert said == {name: value for name, value in study.labels.items() if value is not None}
        assert set(study.labels) == set(FINDINGS)
        assert all(study.meta["truth"][name] == value for name, value in said.items())
        unknown += len(FINDINGS) - len(said)
        total += len(FINDINGS)
    assert 0.12 < unknown / total < 0.28


def test_sentences_survive_the_splitter_and_are_known():
    known = {normal(s) for s in every_sentence()}
    for index in range(60):
        texts = generate(index, 2).texts
        found = sentences(texts.findings) + sentences(texts.impression)
        assert {normal(s) for s in found} <= known
        assert sentences(texts.report) == found


def test_some_normal_reports_are_identical():
    healthy = [p.index for p in (sample_parameters(i, 0) for i in range(300)) if p.healthy]
    reports = [generate(index, 0).texts.report for index in healthy]
    assert max(reports.count(r) for r in reports) >= 5
    assert len(set(reports)) > 1


def test_order_inside_sections_varies():
    texts = [generate(index, 2).texts.findings.split("\n")[0] for index in range(40)]
    sides = [t.find("left") < t.find("right") for t in texts if "left" in t and "right" in t]
    assert 0 < sum(sides) < len(sides)


# ---- zero-shot prompts


def test_main_prompts_are_withheld_but_made_of_known_words():
    task = load_task("phantom")
    assert task.names == FINDINGS
    training = {normal(s) for s in every_sentence()}
    vocabulary = set().union(*(words(s) for s in training))
    for name in FINDINGS:
        for prompts in task.prompts(name, "main"):
            assert len(prompts) >= 3
            for prompt in prompts:
                assert normal(prompt) not in training
                assert words(prompt) <= vocabulary
        for prompts in task.prompts(name, "synonyms"):
            assert prompts
            assert not {normal(p) for p in prompts} & training


def test_word_dropout_cannot_say_a_prompt():
    """No training sentence becomes a withheld prompt by losing words that `drop_words` may drop."""

    def reachable(sentence: list[str], prompt: list[str]) -> bool:
        place = 0
        for word in sentence:
            if place < len(prompt) and word == prompt[place]:
                place += 1
            elif is_negation(word):
                return False
        return place == len(prompt)

    def in_words(text: str) -> list[str]:
        return re.findall(r"\w+", text.casefold())

    training = [in_words(s) for s in every_sentence()]
    task = load_task("phantom")
    for name in FINDINGS:
        for prompt in itertools.chain(*task.prompts(name, "main")):
            asked = in_words(prompt)
            assert not [s for s in training if set(asked) <= set(s) and reachable(s, asked)], prompt


# ---- writing


def folder_hash(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_the_cache_is_written_once_and_found_again(tmp_path: Path):
    first = ensure(tmp_path, studies=5, seed=1, quiet=True)
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert ensure(tmp_path, studies=5, seed=1, quiet=True) == first
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    assert ensure(tmp_path, studies=3, seed=1, quiet=True) != first
    shards = ShardSet.open(first)
    assert len(shards.index) == 5
    array, _ = shards.scan(2)
    assert np.array_equal(array[:], generate(2, 1).scans[0].array)
    assert shards.json(2)["meta"]["truth"] == generate(2, 1).meta["truth"]


def test_an_unfinished_cache_folder_is_built_anew(tmp_path: Path):
    whole = ensure(tmp_path / "a", studies=3, seed=1, quiet=True)
    broken = tmp_path / "b" / whole.name
    broken.mkdir(parents=True)
    (broken / "shard-000000.tar").write_bytes(b"half")
    assert folder_hash(ensure(tmp_path / "b", studies=3, seed=1, quiet=True)) == folder_hash(whole)


@pytest.mark.full
def test_bytes_do_not_depend_on_workers(tmp_path: Path):
    for workers in (1, 2):
        assert main(["--out", str(tmp_path / str(workers)), "--studies", "30", "--workers", str(workers)]) == 0
    assert folder_hash(tmp_path / "1") == folder_hash(tmp_path / "2")


def test_the_command_refuses_a_full_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "something").write_text("x")
    assert main(["--out", str(tmp_path), "--studies", "2", "--workers", "1"]) == 1
    assert "already holds files" in capsys.readouterr().err
    with pytest.raises(DataError):
        write(tmp_path, 2, quiet=True)
