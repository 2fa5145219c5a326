"""`contrastive`'s positives: each loss against loops in double precision, by tiles, and what is a false negative."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.features import TextFeatures
from pretrain import tiled_loss
from pretrain.config import load_recipe
from pretrain.errors import ConfigError
from pretrain.objectives.base import GlobalBatch, Surroundings, pairs_of
from pretrain.objectives.contrastive import Contrastive, own_pairs
from pretrain.runs import named_files
from pretrain.schema_objectives import BY_LABEL, ContrastiveOptions
from pretrain.studies import Data

CAPTION = 3
NAN = float("nan")
LABELS = ("nodule", "effusion", "mass")
# Patient, text, labels: equal texts across classes, classes across patients, none present, some or all unknown.
STUDIES: list[tuple[int, int, tuple[float, float, float]]] = [
    (0, 0, (1, 0, 0)),
    (1, 1, (1, 0, 0)),
    (2, 0, (0, 1, 0)),
    (3, 2, (1, 1, 0)),
    (3, 3, (0, 0, 0)),
    (4, 4, (0, 0, 0)),
    (5, 5, (1, NAN, NAN)),
    (6, 6, (NAN, NAN, NAN)),
    (7, 7, (NAN, NAN, NAN)),
    (7, 8, (1, 0, 0)),
]


def objective(positives: str, columns: int = 3, **options: Any) -> Contrastive:
    one = Contrastive(ContrastiveOptions(units=("caption",), positives=positives, **options))  # type: ignore[arg-type]
    one.columns = list(range(columns))
    return one


def batch(studies: list[tuple[int, int, tuple[float, ...]]], extra: list[tuple[int, int]] | None = None) -> GlobalBatch:
    """Random unit vectors in double precision; `extra`: more (study, text) pairs."""
    torch.manual_seed(0)
    patients, own, labels = zip(*studies, strict=True)
    pairs = [*enumerate(own), *(extra or [])]
    texts = max(text for _, text in pairs) + 1
    images, units = (
        F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1).requires_grad_() for n in (len(own), texts)
    )
    sample, unit = (torch.tensor([pair[i] for pair in pairs]) for i in (0, 1))
    text = TextFeatures(units, torch.full((texts,), CAPTION, dtype=torch.int8), torch.arange(texts), sample, unit)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    listed = torch.tensor([0 if math.isnan(a) else int(1 + a + 2 * (2 if math.isnan(b) else b)) for a, b, *_ in labels])
    return GlobalBatch(
        images, text, torch.tensor(patients) * 10**12, scale, None, torch.tensor(labels), LABELS, {}, captions_B=listed
    )


EXTRA = [(1, 9), (6, 9), (4, 2)]  # a second text of three studies, one of them shared, one that another has as well
CASES = {"one text each": None, "several": EXTRA}


def alike(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Cosine of the labels that are present, among those known of both."""
    known = [(x, y) for x, y in zip(a, b, strict=True) if not (math.isnan(x) or math.isnan(y))]
    mine, theirs = sum(x for x, _ in known), sum(y for _, y in known)
    if not known:
        return 0.0
    if mine == theirs == 0:
        return 1.0
    return sum(x * y for x, y in known) / math.sqrt(mine * theirs) if mine and theirs else 0.0


def spelt_out(b: GlobalBatch, positives: str, temperature: float, smoothing: float) -> Tensor:
    """Weights pair by pair, then torch's cross_entropy with soft targets, row by row: with graph."""
    pairs = list(zip(b.text.pair_sample_P.tolist(), b.text.pair_unit_P.tolist(), strict=True))
    labels = [tuple(row) for row in b.labels_BL.tolist()]
    texts_of = [{unit for study, unit in pairs if study == i} for i in range(len(labels))]
    n, m = len(labels), len(pairs)
    weight, taken = torch.zeros(n, m, dtype=torch.float64), torch.ones(n, m, dtype=torch.bool)
    for i in range(n):
        for c, (j, unit) in enumerate(pairs):
            known = any(not math.isnan(v) for v in labels[i])
            kin = known and all(
                x == y or (math.isnan(x) and math.isnan(y)) for x, y in zip(labels[i], labels[j], strict=True)
            )
            text, patient = unit in texts_of[i], bool(b.patient_B[i] == b.patient_B[j])
            if positives == "own":
                weight[i, c] = float(j == i)
            elif positives == "same_label":
                weight[i, c] = float(text or kin)
                taken[i, c] = text or kin or not patient
            elif positives == "same_label_masked":
                weight[i, c] = float(text)
                taken[i, c] = text or not (kin or patient)
            else:
                weight[i, c] = math.exp(((1.0 if text else alike(labels[i], labels[j])) - 1) / temperature)
                taken[i, c] = text or not patient
    weight = weight * taken
    logits = (b.logit_scale.exp() * b.images_BD @ b.text.units_UD[b.text.pair_unit_P].T).masked_fill(~taken, -torch.inf)

    def cross_entropy(s: Tensor, w: Tensor, t: Tensor) -> Tensor:
        rows = []
        for i in range(len(s)):
            if w[i].sum() == 0:
                continue
            log_share = torch.log_softmax(s[i][t[i]], 0)
            target = (1 - smoothing) * w[i][t[i]] / w[i].sum() + smoothing / t[i].sum()
            rows.append(-(target * log_share).sum())
        return torch.stack(rows).mean()

    return (cross_entropy(logits, weight, taken) + cross_entropy(logits.T, weight.T, taken.T)) / 2


def of_inputs(b: GlobalBatch, loss: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, (b.images_BD, b.text.units_UD, b.logit_scale))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tile", [1, 3, 64])
@pytest.mark.parametrize("positives", ["same_label", "same_label_masked", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_what_it_says_pair_by_pair(
    case: str, tile: int, positives: str, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_loss, "TILE", tile)
    b = batch(STUDIES, CASES[case])
    temperature = {"soft_temperature": 0.5} if positives == "soft" else {}
    ours, logs = objective(positives, label_smoothing=smoothing, **temperature)(b)
    assert float(logs["units"]) == len(b.text.pair_unit_P)
    theirs = spelt_out(b, positives, 0.5, smoothing)
    for got, want in zip(of_inputs(b, ours), of_inputs(b, theirs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)  # similarities are in single precision
        assert got.abs().max() > 0


def test_own_is_the_loss_of_clip_with_a_text_for_every_image() -> None:
    """Equal texts stand in the matrix as often as studies have them, and are negatives of each other."""
    b = batch(STUDIES)
    ours, _ = objective("own")(b)
    logits = b.logit_scale.exp() * b.images_BD @ b.text.units_UD[b.text.pair_unit_P].T
    target = torch.arange(len(STUDIES))
    theirs = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    for got, want in zip(of_inputs(b, ours), of_inputs(b, theirs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(ours, objective("same_caption")(b)[0])


def test_classes_by_captions_are_classes_by_what_identifies_the_list() -> None:
    b = batch(STUDIES)
    by_captions = objective("same_label", classes="captions")
    assert by_captions.reads[-1] == "captions" and objective("soft").reads[-1] == "labels"
    positive, _ = by_captions.targets(b)[1].dense()
    listed = b.captions_B.tolist() if b.captions_B is not None else []
    for i, (_, text, _) in enumerate(STUDIES):
        for j, (_, other, _) in enumerate(STUDIES):
            assert bool(positive[i, j]) == (text == other or (listed[i] == listed[j] != 0))
    assert len(set(listed)) == 6


def test_a_study_of_which_nothing_is_known_and_that_has_no_text_says_nothing() -> None:
    b = batch([*STUDIES, (9, 0, (NAN, NAN, NAN))])
    silent = len(STUDIES)
    keep = b.text.pair_sample_P != silent
    text = TextFeatures(
        b.text.units_UD, b.text.kind_U, b.text.hash64_U, b.text.pair_sample_P[keep], b.text.pair_unit_P[keep]
    )
    b = dataclasses.replace(b, texts=text)
    for positives in ("same_label", "same_label_masked", "soft"):
        one = objective(positives)
        assert float(one.targets(b)[1].dense()[0][silent].abs().sum()) == 0
        assert torch.isfinite(one(b)[0])


# ------------------------------------------------------------------------------------------------- false negatives

RADIMAGENET, CLASSES, CAPTIONS, BATCH = 407, 165, 10, 2048  # of 5.28 M pairs 1.05 M are RadImageNet's


def drawn_as_unimed(seed: int) -> tuple[GlobalBatch, Tensor, Tensor]:
    """A batch of UniMed-CLIP: 407 images of 165 classes, a caption of ten of their class each, and 1,641 captions that
    nobody else has. Also the class of each study (-1 for none) and its text."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.randint(CLASSES, (RADIMAGENET,), generator=generator)
    drawn = of * CAPTIONS + torch.randint(CAPTIONS, (RADIMAGENET,), generator=generator)
    text = torch.cat([drawn, torch.arange(BATCH - RADIMAGENET) + CLASSES * CAPTIONS])
    class_B = torch.cat([of, torch.full((BATCH - RADIMAGENET,), -1)])
    _, unit = torch.unique(text, return_inverse=True)
    units = int(unit.max()) + 1
    labels = torch.full((BATCH, CLASSES), NAN)
    labels[:RADIMAGENET] = F.one_hot(of, CLASSES).float()
    kinds = torch.full((units,), CAPTION, dtype=torch.int8)
    features = TextFeatures(torch.zeros(units, 2), kinds, torch.arange(units), torch.arange(BATCH), unit)
    number = torch.arange(BATCH)
    listed = torch.where(class_B < 0, number + CLASSES, class_B) + 1
    b = GlobalBatch(torch.zeros(BATCH, 2), features, number, torch.tensor(0.0), None, labels, (), {}, captions_B=listed)
    return b, class_B, text


def false_negatives(negative: Tensor, same_text: Tensor, same_class: Tensor) -> tuple[float, float]:
    """Negatives with the very caption, and of the very class, a RadImageNet sample."""
    of = slice(0, RADIMAGENET)
    return tuple(float((negative & same)[of].sum() / RADIMAGENET) for same in (same_text, same_class))  # type: ignore[return-value]


def test_false_negatives_of_the_original_and_of_ours() -> None:
    """Reference: at batch 2,048 about 0.25 identical captions and 2.5 images of the same class a RadImageNet sample."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(5):
        b, class_B, text_B = drawn_as_unimed(seed)
        same_class = (class_B[:, None] == class_B) & (class_B >= 0)[:, None]
        same_text = text_B[:, None] == text_B

        def note(name: str, negative: Tensor, text_M: Tensor, class_M: Tensor) -> None:
            found.setdefault(name, []).append(false_negatives(negative, text_M, class_M))

        note("own", own_pairs(b, ("caption",))[1].dense()[1], same_text, same_class)
        unit_M = torch.unique(text_B)  # same_caption: a column a distinct text, of the class that its caption is of
        class_M = torch.where(unit_M < CLASSES * CAPTIONS, unit_M // CAPTIONS, -2)
        negative = pairs_of(b, ("caption",))[1].dense()[1]
        note("same_caption", negative, text_B[:, None] == unit_M, class_B[:, None] == class_M)
        for name, options in (
            ("same_label", {}), ("same_label", {"classes": "captions"}), ("same_label_masked", {}), ("soft", {})
        ):  # fmt: skip
            negative = objective(name, CLASSES, **options).targets(b)[1].dense()[1]
            note(f"{name} {options}", negative, same_text, same_class)
            assert negative.sum(1).min() > 0.95 * BATCH
    identical, kin = (sum(x) / 5 for x in zip(*found.pop("own"), strict=True))
    assert identical == pytest.approx(406 / 1650, abs=0.04) and kin == pytest.approx(406 / 165, abs=0.1)
    texts, kin = zip(*found.pop("same_caption"), strict=True)
    assert (
        set(texts) == {0.0} and min(kin) > 1.5
    )  # equal captions are one text; other captions of the class are against
    assert len(found) == 4
    assert all(each == [(0.0, 0.0)] * 5 for each in found.values()), found


def test_what_is_kept_grows_with_the_batch_when_half_of_all_pairs_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled_loss, "TILE", 256)
    kept = {}
    for studies in (512, 1024, 2048):
        b = batch([(i, i, (i % 2, 0, NAN)) for i in range(studies)])
        for positives in ("same_label", "soft"):
            storages: dict[int, Any] = {}

            def pack(tensor: Tensor, into: dict[int, Any] = storages) -> Tensor:
                into[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss, _ = objective(positives)(b)
            kept[positives, studies] = sum(storage.nbytes() for storage in storages.values())
            loss.backward()
            assert b.images_BD.grad is not None and b.images_BD.grad.abs().max() > 0
    for positives in ("same_label", "soft"):
        assert kept[positives, 2048] <= 2.1 * kept[positives, 1024] <= 2.1 * 2.1 * kept[positives, 512]
        assert kept[positives, 2048] < 2048 * 2048, "less than a byte a pair"


# ------------------------------------------------------------------------------------------------------- refused


def around(names: tuple[str, ...], labels: list[list[float]], captions: Callable[[], list[int]] = list) -> Surroundings:
    return Surroundings(None, names, lambda: torch.tensor(labels), captions)  # type: ignore[arg-type]


def test_labels_are_chosen_and_what_cannot_be_is_refused() -> None:
    known = [[1.0, 0.0, 1.0], [1.0, 1.0, NAN], [0.0, 1.0, NAN]]
    one = objective("same_label", labels=("mass", "nodule"))
    with pytest.raises(ConfigError, match="no two training studies have the same known labels"):
        one.attach(around(LABELS, known))
    one = objective("same_label", labels=("effusion",))
    one.attach(around(LABELS, known))
    assert one.columns == [1]
    with pytest.raises(ConfigError, match=r"contrastive.labels: efusion no label .*\n.*\n.*did you mean effusion"):
        objective("soft", labels=("efusion",)).attach(around(LABELS, known))
    for positives in ("same_label", "same_label_masked", "soft"):
        with pytest.raises(ConfigError, match="the shards have no labels"):
            objective(positives).attach(around((), [[]]))
        with pytest.raises(ConfigError, match="no two training studies"):
            objective(positives).attach(around(("nodule",), [[NAN], [NAN]]))
    by_captions = objective("same_label", classes="captions")
    by_captions.attach(around((), [[]], lambda: [0, 5, 0, 5]))
    with pytest.raises(ConfigError, match="the same list of captions"):
        by_captions.attach(around((), [[]], lambda: [0, 0, 5]))


def test_a_run_knows_the_file_of_its_labels_and_trains_on_them(tiny: Any, tmp_path: Path) -> None:
    """The made-up studies have labels; four of sixteen a class."""
    (tmp_path / "labels.txt").write_text("nodule\neffusion\n")
    terms = [{"name": "contrastive", "positives": one, "labels": str(tmp_path / "labels.txt")} for one in BY_LABEL]
    assert tiny("run", objectives=[*terms, {"name": "labels"}], train__steps=3, train__chunk=2) == 0
    losses = {row.split(",")[1] for row in tiny.metrics("run")}
    assert {f"loss/contrastive{i}" for i in range(3)} <= losses
    recipe = load_recipe(str(tiny.folder("run") / "recipe.yaml"))
    assert set(named_files(recipe)) == {f"objectives.{i}.labels" for i in range(3)}


def test_shards_without_labels_are_refused_before_a_run_folder_is_made(
    make_fit: Any, radiograph_data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = {"name": "resnet10t", "image_size": 32, "token_dropout": 0.0}
    term = {"name": "contrastive", "positives": "same_label"}
    runs = make_fit(tmp_path, data=radiograph_data, model={"image": image}, objectives=[term])
    assert runs("run") == 1
    assert "the shards have no labels" in capsys.readouterr().err
    runs = make_fit(tmp_path, data=radiograph_data, model={"image": image}, objectives=[term | {"classes": "captions"}])
    assert runs("run") == 1
    assert "no two training studies have the same list of captions" in capsys.readouterr().err
    assert not runs.folder("run").exists()


def test_few_of_many_studies_without_a_class_in_common_prove_nothing() -> None:
    """One caption a study for the first hundred, ten classes after that."""

    def data(read: int) -> Data:
        def texts(row: int) -> dict[str, Any]:
            text = f"figure {row}" if row < 100 else f"class {row % 10}"
            return {"texts": {"captions": [{"text": text, "weight": 1.0}]}}

        rows = np.arange(read)
        return Data(SimpleNamespace(json=texts), None, None, None, None, rows, rows, rows)  # type: ignore[arg-type]

    term = objective("same_label", classes="captions")
    with pytest.raises(ConfigError, match="no two training studies have the same list"):
        term.attach(around((), [[]], lambda: data(100).train_captions(most=100)))
    assert data(90).train_captions(most=45) == [], "every second of ninety that are all different"
    term.attach(around((), [[]], lambda: data(90).train_captions(most=45)))
    assert len(data(200).train_captions(most=100)) == 100
    term.attach(around((), [[]], lambda: data(200).train_captions(most=100)))
