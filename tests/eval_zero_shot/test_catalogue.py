"""The tasks that ship: their classes, labels, words, and the page that lists them."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from data_shards.build import main as build
from data_shards.foreign import ForeignShards
from data_shards.shard_set import ShardSet
from data_shards.sources.medmnist import medmnist_words, read_medmnist
from data_shards.sources.presets import read_preset
from eval_zero_shot import tasks
from eval_zero_shot.catalogue import main, markdown, unimed_averages, unimed_groups
from eval_zero_shot.errors import EvalError
from eval_zero_shot.labels import require_labels, task_labels
from eval_zero_shot.tasks import Task, packaged_tasks
from tests.data_shards import foreign_tars
from tests.data_shards.sources import test_medmnist as medmnist
from tests.data_shards.sources import test_presets as presets

REPO = Path(__file__).resolve().parents[2]
load_task = cache(tasks.load_task)
# Written for data of this repository, with rules of their own (tests of phantom and of real data).
OURS = ("hannover_cxr", "head_neck_ct", "phantom", "public_images")
CATALOGUE = [name for name in packaged_tasks() if name not in OURS]
UNIMED = [name for names in unimed_groups().values() for name in names]


def words(text: str) -> list[str]:
    return text.split()


# The published lists, in their order.
CT_RATE = words(
    """medical_material arterial_wall_calcification cardiomegaly pericardial_effusion
    coronary_artery_wall_calcification hiatal_hernia lymphadenopathy emphysema atelectasis lung_nodule lung_opacity
    pulmonary_fibrotic_sequela pleural_effusion mosaic_attenuation_pattern peribronchial_thickening consolidation
    bronchiectasis interlobular_septal_thickening"""
)
MERLIN = words(
    """submucosal_edema renal_hypodensities aortic_valve_calcification coronary_calcification thrombosis
    metastatic_disease pancreatic_atrophy renal_cyst osteopenia surgically_absent_gallbladder atelectasis
    abdominal_aortic_aneurysm anasarca hiatal_hernia lymphadenopathy prostatomegaly biliary_ductal_dilation
    cardiomegaly splenomegaly hepatomegaly atherosclerosis ascites pleural_effusion hepatic_steatosis appendicitis
    gallstones hydronephrosis bowel_obstruction free_air fracture"""
)
# Abnormalities of RAD-ChestCT's label tables.
SARLE = words(
    """air_trapping airspace_disease aneurysm arthritis aspiration atelectasis atherosclerosis bandlike_or_linear
    breast_implant breast_surgery bronchial_wall_thickening bronchiectasis bronchiolectasis bronchiolitis bronchitis
    cabg calcification cancer cardiomegaly catheter_or_port cavitation chest_tube clip congestion consolidation
    coronary_artery_disease cyst debris deformity density dilation_or_ectasia distention emphysema fibrosis fracture
    gi_tube granuloma groundglass hardware heart_failure heart_valve_replacement hemothorax hernia honeycombing
    infection infiltrate inflammation interstitial_lung_disease lesion lucency lung_resection lymphadenopathy mass
    mucous_plugging nodule nodulegr1cm opacity other_path pacemaker_or_defib pericardial_effusion
    pericardial_thickening plaque pleural_effusion pleural_thickening pneumonia pneumonitis pneumothorax
    postsurgical pulmonary_edema reticulation scarring scattered_calc scattered_nod secretion septal_thickening
    soft_tissue staple stent sternotomy suture tracheal_tube transplant tree_in_bud tuberculosis"""
)
CHEXPERT = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"]
CHEXPERT += ["Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"]
CHEXPERT += ["Pneumothorax", "Support Devices"]
MEDMNIST = {
    "medmnist_path": "pathmnist", "medmnist_chest": "chestmnist", "medmnist_derma": "dermamnist",
    "medmnist_oct": "octmnist", "medmnist_pneumonia": "pneumoniamnist", "medmnist_retina": "retinamnist",
    "medmnist_breast": "breastmnist", "medmnist_blood": "bloodmnist", "medmnist_tissue": "tissuemnist",
    "medmnist_organ_a": "organamnist", "medmnist_organ_c": "organcmnist", "medmnist_organ_s": "organsmnist",
    "medmnist_organ3d": "organmnist3d", "medmnist_nodule3d": "nodulemnist3d", "medmnist_adrenal3d": "adrenalmnist3d",
    "medmnist_fracture3d": "fracturemnist3d", "medmnist_vessel3d": "vesselmnist3d",
    "medmnist_synapse3d": "synapsemnist3d",
}  # fmt: skip

# A negative prompt says that the finding is not there by one of these words, or says what is seen in its place.
NEGATION = re.compile(r"\b(no|not|without|absent|free of|negative for|nor|neither)\b", re.IGNORECASE)
INSTEAD = re.compile(r"\b(normal|normally|clear|benign|intact|healthy|inhibitory)\b", re.IGNORECASE)
# Here the finding is that an organ is missing, so its negative side says that the organ is there.
MISSING_ORGAN = "surgically_absent_gallbladder"


def sides(task: Task) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """(set, class, positive, negative) of a task of findings."""
    return [(s, name, *task.prompts(name, s)) for s in task.prompt_sets for name in task.names]


def labels(task: Task) -> list[str]:
    return [label for name in task.names for label in task.label_of(name)]


def test_the_tasks_of_the_issue_are_there() -> None:
    assert {"ct_rate_18", "ct_rate_16", "rad_chestct_15", "merlin_30", "chexpert_5x200"} <= set(CATALOGUE)
    assert set(UNIMED) | set(MEDMNIST) <= set(CATALOGUE)
    assert len(MEDMNIST) == len(medmnist_words()["sets"]), "every MedMNIST set that we read has a task"
    assert {f"ubench_{name}" for name in ("domain", "modality", "submodality", "stain")} <= set(CATALOGUE)


def test_class_lists_are_the_published_ones_in_order() -> None:
    assert list(load_task("ct_rate_18").names) == CT_RATE and len(CT_RATE) == 18
    few = [name for name in CT_RATE if name not in ("medical_material", "lymphadenopathy")]
    assert list(load_task("ct_rate_16").names) == few and len(few) == 16
    fewer = [name for name in few if name != "mosaic_attenuation_pattern"]
    assert list(load_task("rad_chestct_15").names) == fewer and len(fewer) == 15
    assert list(load_task("merlin_30").names) == MERLIN and len(MERLIN) == 30
    assert load_task("chexpert_5x200").names == (
        "atelectasis", "cardiomegaly", "consolidation", "edema", "pleural_effusion",
    )  # fmt: skip
    counts = {"unimed_dr": 5, "unimed_fives": 4, "unimed_odir200x3": 3, "unimed_lc25000_lung": 3, "unimed_pcam": 2}
    counts |= {
        "unimed_lc25000_colon": 2,
        "unimed_nck_crc": 8,
        "unimed_bach": 4,
        "unimed_osteo": 3,
        "unimed_ct_axial": 11,
    }
    counts |= {"unimed_ct_coronal": 11, "unimed_ct_sagittal": 11, "unimed_skin_cancer": 16, "unimed_skin_tumor": 4}
    binary = {"rsna_pneumonia", "refuge", "acl_mri", "meniscus_mri", "breast_us", "thyroid_us"}
    counts |= {f"unimed_{name}": 1 for name in binary} | {"chexpert_5x200": 5}
    assert {name: len(load_task(name).names) for name in UNIMED} == counts
    assert {name for name in UNIMED if load_task(name).kind == "findings"} == {f"unimed_{name}" for name in binary}


def test_published_templates_give_the_published_prompts() -> None:
    for name in ("ct_rate_18", "ct_rate_16", "rad_chestct_15"):
        task = load_task(name)
        assert task.prompts("lung_nodule", "ct_clip") == (
            ("Lung nodule is present.",),
            ("Lung nodule is not present.",),
        )
        assert task.prompts("lung_nodule", "colipri_short") == (("Lung nodule present",), ("No lung nodule present",))
        assert task.prompts("lung_nodule", "fvlm_short") == (("Lung nodule.",), ("Not lung nodule.",))
        assert task.threshold == "validation" and task.rule == "ensemble"
    assert load_task("ct_rate_18").default_set == load_task("rad_chestct_15").default_set == "ct_clip"
    hlip = load_task("ct_rate_16").prompts("lung_nodule", "hlip")
    assert hlip == (("The volume shows: Lung nodule.",), ("The volume shows: Not lung nodule.",))


def test_pools_are_large_enough() -> None:
    for name in CATALOGUE:
        assert len(load_task(name).prompt_sets) >= 2, name
    shared = [load_task(name) for name in ("ct_rate_18", "ct_rate_16", "rad_chestct_15")]
    for finding in shared[-1].names:
        said = {task.prompts(finding, "ensemble") for task in shared}
        assert len(said) == 1, f"{finding} is said alike in the three tasks that ask for it"
        assert all(len(side) >= 5 for side in said.pop())
    merlin = load_task("merlin_30")
    assert (merlin.rule, merlin.threshold) == ("mean_cosine", "sign") and len(merlin.prompt_sets) >= 5
    assert all(len(side) >= 4 for finding in MERLIN for side in merlin.prompts(finding))
    for name in UNIMED:
        task = load_task(name)
        assert all(len(side) >= 5 for one in task.names for side in task.prompts(one)), name


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_prompt_stands_twice_or_for_two_classes(name: str) -> None:
    task = load_task(name)
    for prompt_set in task.prompt_sets:
        said = [
            text.lower().rstrip(".") for one in task.names for side in task.prompts(one, prompt_set) for text in side
        ]
        assert len(set(said)) == len(said), prompt_set


@pytest.mark.parametrize("name", CATALOGUE)
def test_spelling(name: str) -> None:
    task = load_task(name)
    assert task.name == name and task.about.isascii() and ". " in task.about, "its source, then its caveats"
    for prompt_set in task.prompt_sets:
        texts = task.texts(prompt_set)
        for text in texts:
            assert text.isascii() and text == " ".join(text.split()), text
            assert text[0].isupper() or text[0].isdigit(), text
            assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), text
            assert " ." not in text and ".." not in text and "{" not in text, text
        assert len({text[-1] == "." for text in texts}) == 1, f"{prompt_set}: full stops"


@pytest.mark.parametrize("name", [name for name in CATALOGUE if load_task(name).kind == "findings"])
def test_positive_and_negative_prompts_are_not_swapped(name: str) -> None:
    for prompt_set, finding, positive, negative in sides(load_task(name)):
        if finding == MISSING_ORGAN:
            assert all(re.search("absent|cholecystectomy|removed", text) for text in positive)
            assert all("gallbladder" in text.lower() and not NEGATION.search(text) for text in negative)
            continue
        for text in negative:
            assert NEGATION.search(text) or INSTEAD.search(text), f"{prompt_set}.{finding}: {text}"
        for text in positive:
            assert not NEGATION.search(text) and not INSTEAD.search(text), f"{prompt_set}.{finding}: {text}"


def test_prompts_fit_the_text_towers() -> None:
    encode = SimpleTokenizer().encode
    longest = max((text for name in CATALOGUE for text in load_task(name).texts()), key=lambda text: len(encode(text)))
    assert len(encode(longest)) + 2 <= 77, longest


def test_left_and_right_differ() -> None:
    """UniMed's own prompts give both kidneys one identical prompt."""
    for name in [n for n in CATALOGUE if "organ" in n or "unimed_ct" in n]:
        task = load_task(name)
        for prompt_set in task.prompt_sets:
            for organ in ("kidney", "lung", "femur"):
                left, right = (task.prompts(f"{side}_{organ}", prompt_set)[0] for side in ("left", "right"))
                assert not set(left) & set(right)
                assert all("right" not in text.lower() for text in left)
                assert all("left" not in text.lower() for text in right)


@pytest.mark.parametrize("name", list(MEDMNIST))
def test_medmnist_labels_are_those_of_our_reader(name: str, tmp_path: Path) -> None:
    about = medmnist_words()["sets"][MEDMNIST[name]]
    classes, many = len(about["classes"]), about["task"] == "multi-label"
    path = tmp_path / f"{MEDMNIST[name]}.npz"
    medmnist.archive(path, (8, 8, 8) if name.endswith("3d") else (8, 8), classes if many else 1, 2 if many else classes)
    task = load_task(name)
    assert all(list(row.labels) == labels(task) for row in read_medmnist(path).rows)
    assert task.kind == ("findings" if many or about["task"] == "binary" else "classes")


def rows(preset: str, root: Path) -> set[str]:
    return {label for row in read_preset(preset, root).rows for label in row.labels}


def test_labels_are_those_of_the_presets(tmp_path: Path) -> None:
    for folder in ("merlin", "rad", "mimic"):
        (tmp_path / folder).mkdir()
    ids = presets.merlin(tmp_path / "merlin")
    table = [{"study id": name, **dict.fromkeys(MERLIN, (-1, 0, 1)[i % 3])} for i, name in enumerate(ids)]
    presets.write(tmp_path / "merlin" / "zero_shot_findings_disease_cls.csv", table)
    assert set(labels(load_task("merlin_30"))) == rows("merlin", tmp_path / "merlin")

    presets.rad_chestct(tmp_path / "rad")
    for part, name in (("imgtrain", "trn00001"), ("imgvalid", "val00001"), ("imgtest", "tst00001")):
        table = [
            {"NoteAcc_DEID": name, **{f"{finding}*{place}": 0 for finding in SARLE for place in ("lung", "heart")}}
        ]
        presets.write(tmp_path / "rad" / f"{part}_Abnormality_and_Location_Labels.csv", table)
    assert set(labels(load_task("rad_chestct_15"))) <= rows("rad-chestct", tmp_path / "rad") == set(SARLE)

    presets.mimic(tmp_path / "mimic", in_zip=False)
    table = [{"subject_id": "10000032", "study_id": "50414267", **dict.fromkeys(CHEXPERT, "1.0")}]
    presets.write(tmp_path / "mimic" / "mimic-cxr-2.0.0-chexpert.csv.gz", table, zipped=True)
    assert set(labels(load_task("chexpert_5x200"))) <= rows("mimic-cxr", tmp_path / "mimic")


def test_a_build_of_ct_rate_answers_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXCLIP_SALT", "test")
    presets.ct_rate(tmp_path / "in", fixed=True, patients=2)
    assert build(["--preset", "ct-rate", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    shards = ShardSet.open(tmp_path / "out")
    for name in ("ct_rate_18", "ct_rate_16"):
        task = load_task(name)
        require_labels(shards, task)
        found_NL = task_labels(shards, np.arange(len(shards)), task)
        np.testing.assert_array_equal(found_NL, [[name == "lung_nodule" for name in task.names]] * len(shards))


def test_class_names_of_clip_benchmark_answer_a_task(tmp_path: Path) -> None:
    task = load_task("unimed_pcam")
    root = foreign_tars.clip_benchmark(tmp_path / "pcam")
    (root / "classnames.txt").write_text("lymph node\nlymph node containing metastatic tumor tissue\n")
    shards = ForeignShards.open(root, cache=tmp_path / "cache")
    require_labels(shards, task)
    found_NL = task_labels(shards, np.arange(len(shards)), task)
    assert (found_NL.sum(axis=1) == 1).all() and (found_NL.sum(axis=0) > 0).all()


def test_the_average_over_21_sets_is_the_printed_one_by_one_weighting_only() -> None:
    groups = unimed_groups()
    assert [len(names) for names in groups.values()] == [2, 4, 3, 2, 2, 8] and len(set(UNIMED)) == 21
    # X-ray, fundus, CT, MRI, ultrasound, histology of BiomedCLIP, PMC-CLIP, UniMed-CLIP B/16; the averages they print.
    table = {
        (55.43, 22.87, 43.99, 64.59, 49.20, 54.50): (49.02, 47.52),
        (52.64, 25.84, 66.06, 63.68, 62.51, 53.56): (53.37, 51.79),
        (68.78, 31.23, 85.54, 68.83, 68.64, 59.96): (61.63, 60.65),
    }
    for means, (printed, by_sets) in table.items():
        scores = {name: mean for mean, names in zip(means, groups.values(), strict=True) for name in names}
        averages = unimed_averages(scores)
        assert averages["printed"] == pytest.approx(printed, abs=0.006)
        assert averages["sets"] == pytest.approx(by_sets, abs=0.006)
        assert averages["groups"] == pytest.approx(np.mean(means))
        scores.pop("unimed_bach")
        with pytest.raises(EvalError, match="unimed_bach"):
            unimed_averages(scores)


def test_the_page_lists_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed == markdown() + "\n"
    page = (REPO / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert printed in page, "write what python -m eval_zero_shot.catalogue --markdown prints into docs/tasks.md"


def test_people_see_an_aligned_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "|" not in "".join(lines) and max(map(len, lines)) <= 80
    head = next(line for line in lines if "task" in line and "classes" in line)
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in packaged_tasks()}
    assert sorted(rows) == sorted(packaged_tasks()), "every name whole, at the start of a row of its own"
    assert {row.index("findings") for row in rows.values() if " findings " in row} == {head.index("kind")}
