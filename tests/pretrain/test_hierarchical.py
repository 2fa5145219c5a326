"""Local contrast against a loop over pairs that spells it out, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import encoders
from data_shards.batch import TextBatch
from data_shards.units import Unit, text_identity
from encoders.features import TextFeatures
from encoders.tokenize import BPE
from pretrain.errors import ConfigError
from pretrain.local_similarity import local_similarity
from pretrain.objectives.base import GlobalBatch, NoUnits, Surroundings
from pretrain.objectives.hierarchical import Hierarchical
from pretrain.passes import Rows
from pretrain.schema_objectives import HierarchicalOptions
from tests.pretrain.test_grad_cache import batch as studies
from tests.pretrain.test_grad_cache import cached, fixed_seed, in_one_graph, module_of  # noqa: F401  a fixture

REPORT, SECTION, SENTENCE = 0, 1, 2


def of_a_pair(cells_VD: Tensor, units_TD: Tensor) -> Tensor:
    """The formula of one image and one text, temperatures 4 and 5."""
    share_TV = (units_TD @ cells_VD.T).softmax(0)
    seen_TD = (4 * share_TV).softmax(1) @ cells_VD
    return (5 * F.cosine_similarity(seen_TD, units_TD)).exp().sum().log()


def of_all_pairs(cells_SVD: Tensor, units_TD: Tensor, lengths: Sequence[int]) -> Tensor:
    texts = units_TD.split(list(lengths))
    return torch.stack([torch.stack([of_a_pair(cells, text) for text in texts]) for cells in cells_SVD])


def random(images: int, cells: int, lengths: Sequence[int], width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(images)
    return (
        torch.randn(images, cells, width, dtype=dtype, requires_grad=True),
        torch.randn(sum(lengths), width, dtype=dtype, requires_grad=True),
    )


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


@pytest.mark.parametrize("cells", [1, 5, 11])  # fewer and more than features
@pytest.mark.parametrize("block", [1, 40, 200, 10**6])
def test_blocks_are_the_loop_over_pairs(cells: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.local_similarity.MOST_TEXTS", 3)
    lengths = [2, 1, 7, 3, 1, 4, 2, 9]
    inputs = random(5, cells, lengths, 8, torch.float64)
    weight = torch.randn(5, len(lengths), dtype=torch.float64)
    ours = local_similarity(unit(inputs[0]), unit(inputs[1]), lengths, block=block)
    theirs = of_all_pairs(unit(inputs[0]), unit(inputs[1]), lengths)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    wanted = torch.autograd.grad((theirs * weight).sum(), inputs)
    for _ in range(2):  # what is kept for the first backward pass is used up by it
        found = torch.autograd.grad((ours * weight).sum(), inputs, retain_graph=True)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cells", [27, 216])
def test_in_single_precision(cells: int) -> None:
    lengths = [12, 7, 20, 3]
    inputs = random(3, cells, lengths, 32, torch.float32)
    double = tuple(x.detach().double().requires_grad_() for x in inputs)
    theirs = of_all_pairs(unit(double[0]), unit(double[1]), lengths)
    ours = local_similarity(unit(inputs[0]), unit(inputs[1]), lengths, block=900)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(theirs.square().sum(), double)
    for a, b in zip(torch.autograd.grad(ours.square().sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation makes."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.found = max(self.found, made.numel())
        return made


def test_memory_is_that_of_a_block() -> None:
    lengths, block = [10] * 16, 8000
    inputs = tuple(unit(x).detach().requires_grad_() for x in random(12, 40, lengths, 16, torch.float32))
    with Largest() as largest:
        local_similarity(*inputs, lengths, block=block).sum().backward()
    assert largest.found <= max(block, inputs[0].numel(), inputs[1].numel())
    assert 9 * block < 12 * 160 * 40, "attention of all pairs"


# Study: patient, sentences. 0 and 3 say the same in another order, 2 and 4 are of one patient, 5 says nothing.
SAID: tuple[tuple[int, tuple[int, ...]], ...] = (
    (0, (0, 1)),
    (1, (1,)),
    (2, (2, 3, 4)),
    (3, (1, 0)),
    (2, (5,)),
    (6, ()),
)
KIN = {(0, 3), (3, 0), (2, 4), (4, 2)}


def global_batch(counts: tuple[int, ...] = (6,)) -> GlobalBatch:
    torch.manual_seed(3)
    cells, units = torch.randn(6, 7, 12, requires_grad=True), F.normalize(torch.randn(6, 10), dim=1).requires_grad_()
    pairs = torch.tensor([(study, u) for study, (_, said) in enumerate(SAID) for u in said])
    kinds = torch.full((6,), SENTENCE, dtype=torch.int8)
    text = TextFeatures(units, kinds, torch.arange(6), pairs[:, 0], pairs[:, 1])
    rows = {"image:global.tokens": Rows(cells, torch.arange(6))}
    patients = torch.tensor([patient for patient, _ in SAID])
    return GlobalBatch(None, text, patients, torch.tensor(1.0), None, torch.zeros(6, 0), (), rows, counts=counts)


def attached(**options: Any) -> Hierarchical:
    visual = SimpleNamespace(trunk=SimpleNamespace(num_features=12))
    dual: Any = SimpleNamespace(clip=SimpleNamespace(visual=visual), model_cfg={"embed_dim": 10}, level_widths=(6, 12))
    torch.manual_seed(1)
    objective = Hierarchical(HierarchicalOptions(width=9, **options))
    objective.attach(Surroundings(dual, ()))
    return objective


def loss_of(objective: Hierarchical, batch: GlobalBatch) -> Tensor:
    """The images of each rank are scored by themselves."""
    [[name, images]] = [(name, one) for name, one in batch.rows.items() if name.startswith("image:")]
    ranks = batch.rank_B[images.owner]
    parts = [Rows(images.values[ranks == r], images.owner[ranks == r]) for r in ranks.unique()]
    scores = [objective.scores({name: part}, batch) for part in parts]
    return objective.of_scores(Rows(torch.cat([one.values for one in scores]), images.owner), batch)[0]


def spelt_out(
    objective: Hierarchical, cells: Tensor, texts: dict[int, Tensor], left_out: set[tuple[int, int]]
) -> Tensor:
    """Cross-entropy both ways over images and the studies with a text."""
    cells, s = objective.projections.cells(cells), {}
    for i, study in ((i, study) for i in range(len(cells)) for study in texts):
        s[i, study] = 10 * of_a_pair(cells[i], objective.projections.units(texts[study]))
    losses: list[list[Tensor]] = [[], []]
    for study in texts:
        to_text = [s[study, other] for other in texts if (study, other) not in left_out]
        to_image = [s[i, study] for i in range(len(cells)) if (i, study) not in left_out]
        for found, every in zip(losses, (to_text, to_image), strict=True):
            found.append(torch.stack(every).logsumexp(0) - s[study, study])
    return (torch.stack(losses[0]).mean() + torch.stack(losses[1]).mean()) / 2


def same_value_and_gradients(objective: Hierarchical, batch: GlobalBatch, wanted: Tensor, inputs: list[Tensor]) -> None:
    inputs = [*inputs, *objective.parameters()]
    found = loss_of(objective, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("exclude", [True, False])
def test_sentences_of_the_dual_encoder(gather: bool, exclude: bool) -> None:
    batch, objective = global_batch((2, 4)), attached(gather=gather, exclude_related=exclude)
    apart = {(i, j) for i in range(6) for j in range(6) if (i < 2) != (j < 2)}
    left_out = (KIN if exclude else set()) | (set() if gather else apart)
    texts = {study: batch.text.units_UD[list(said)] for study, (_, said) in enumerate(SAID) if said}
    cells = batch.rows["image:global.tokens"].values
    wanted = spelt_out(objective, cells, texts, left_out)
    same_value_and_gradients(objective, batch, wanted, [cells, batch.text.units_UD])


def test_a_rank_without_any_text() -> None:
    """It adds nothing: study 5 might as well not be there."""
    batch, objective = global_batch((5, 1)), attached(gather=False)
    cells = batch.rows["image:global.tokens"]
    alone = {"image:global.tokens": Rows(cells.values[:5], cells.owner[:5])}
    torch.testing.assert_close(loss_of(objective, batch), loss_of(objective, replace(batch, rows=alone, counts=(6,))))


@pytest.mark.parametrize("text", ["sentences", "words"])
def test_units_of_a_report_transformer(text: str) -> None:
    """Its rows come in any order of studies; one report's words are its identity."""
    owner = torch.tensor([3, 0, 0, 2, 3, 1, 4, 4, 4])
    values = torch.randn(9, 10, requires_grad=True)
    identity = Rows(torch.tensor([[7, 1], [8, 2], [9, 3], [0, 1], [6, 6]]), torch.arange(5))  # 0 and 3: one text
    batch = global_batch()
    rows = {**batch.rows, f"report:units.{text}": Rows(values, owner), "report:units.identity": identity}
    objective = attached(text=text, level=1)
    assert objective.reads == ("image:global.level1", f"report:units.{text}", "report:units.identity")
    cells = rows["image:global.level1"] = rows.pop("image:global.tokens")
    wanted = spelt_out(objective, cells.values, {study: values[owner == study] for study in range(5)}, KIN)
    same_value_and_gradients(objective, replace(batch, texts=None, rows=rows), wanted, [cells.values, values])


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="level 3 of an image tower that has 2"):
        attached(level=3)
    plain: Any = SimpleNamespace(clip=SimpleNamespace(visual=SimpleNamespace()), model_cfg={"embed_dim": 10})
    with pytest.raises(ConfigError, match="this image tower gives none"):
        Hierarchical(HierarchicalOptions()).attach(Surroundings(plain, ()))
    batch = global_batch()
    with pytest.raises(NoUnits, match="no text unit of kind report in this batch"):
        loss_of(attached(units=("report",)), batch)


def test_with_chunks_its_gradient_is_that_of_one_graph(tiny: Any) -> None:
    words = ["train.chunk=3", "model.image.token_dropout=0.5", 'objectives=[{"name": "hierarchical", "width": 8}]']
    module, whole = module_of(tiny, words), studies()
    want_loss, want = in_one_graph(module, whole, 3)
    loss, got = cached(module, whole)
    torch.testing.assert_close(loss, want_loss, rtol=1e-5, atol=1e-6)
    for name in (
        "dual.clip.visual.trunk.blocks.0.qkv.weight",
        "dual.clip.text.token_embedding.weight",
        "objectives.0.projections.cell.weight",
        "objectives.0.projections.unit.bias",
    ):
        assert want[name].abs().max() > 0
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5 * float(want[name].abs().max()))


@pytest.mark.parametrize("chunk", ["null", "2"])
def test_a_batch_about_one_section_leaves_it_out(tiny: Any, chunk: str) -> None:
    """Where batches about a section alternate with whole reports. One of whole reports has what it reads, or stops."""
    objectives = 'objectives=[{"name": "contrastive", "units": ["report", "section"]}, {"name": "hierarchical"}]'
    alternate = ["data.units.alternate=anatomy"]
    module, whole = module_of(tiny, [objectives, f"train.chunk={chunk}", *alternate]), studies()
    said = [f"{n} nodules." for n in range(len(whole))]
    sections, reports = ([[Unit(kind, one, text_identity(one))] for one in said] for kind in (SECTION, REPORT))
    loss, got = cached(module, replace(whole, texts=TextBatch.of(sections, BPE(64))))
    assert module.logged["loss/hierarchical"] == 0 and module.logged["loss/contrastive0"] > 0 and loss.isfinite()
    assert not any(gradient.any() for name, gradient in got.items() if name.startswith("objectives.1."))
    with pytest.raises(NoUnits, match="no text unit of kind sentence"):
        cached(module, replace(whole, texts=TextBatch.of(reports, BPE(64))))
    cached(module, whole)
    assert module.logged["loss/hierarchical"] > 0


def test_a_run_releases_its_projections(make_fit: Any, tmp_path: Any) -> None:
    objectives = [{"name": "sentence"}, {"name": "hierarchical", "width": 8, "weight": 0.1}]
    runs = make_fit(tmp_path, objectives=objectives, train={"steps": 3})
    assert runs("run") == 0
    release = encoders.load(runs.folder("run") / "release")
    image = release.model.encode_image(torch.zeros(1, 1, 16, 32, 32), tokens=True)
    maps = release.heads["local_tokens_units"](image.tokens_SND, torch.randn(3, 16))
    assert maps.shape == (1, 3, image.tokens_SND.shape[1]) and maps.abs().max() <= 1


def test_data_must_make_the_units_it_reads(make_fit: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_fit(tmp_path, objectives=[{"name": "contrastive"}, {"name": "hierarchical"}])
    assert runs("run", data__units__sentences=False) == 1
    assert "hierarchical compares with sentence units, which data.units does not make" in capsys.readouterr().err
