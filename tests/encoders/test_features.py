"""Features over ranks: two real gloo processes with 3 and 5 units give what one process gives."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from encoders.features import TextFeatures, gather_rows, gather_text

RANKS = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def shared() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(RANKS)))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [
        subprocess.Popen([sys.executable, str(RANKS), str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=600)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_gradients_are_those_of_one_process(shared: SimpleNamespace, ranks: list[dict]) -> None:
    x = shared.inputs()
    weights = [x["image_weight"].requires_grad_(), x["text_weight"].requires_grad_()]
    images, text = shared.towers(x, slice(0, 5), slice(0, 8))
    # One process meets each text once: its second copy (unit 3) is the first (unit 1).
    keep = torch.tensor([0, 1, 2, 4, 5, 6, 7])
    number = torch.tensor([0, 1, 2, 1, 3, 4, 5, 6])
    once = TextFeatures(
        text.units_UD[keep], text.kind_U[keep], text.hash64_U[keep], text.pair_sample_P, number[text.pair_unit_P]
    )
    value = shared.loss(images, once)
    value.backward()
    for rank in ranks:
        assert (rank["units"], rank["pairs"]) == (7, 8)
        torch.testing.assert_close(rank["loss"], value.detach(), rtol=1e-6, atol=1e-9)
        for ours, theirs in zip(rank["grads"], weights, strict=True):
            torch.testing.assert_close(ours, theirs.grad, rtol=1e-6, atol=1e-8)


def test_stems_are_scaled_by_the_batch_of_all_ranks(shared: SimpleNamespace, ranks: list[dict]) -> None:
    together = shared.scales(shared.inputs()["volumes"])
    for rank in ranks:
        for name, value in together.items():
            torch.testing.assert_close(rank["scales"][name], value, rtol=1e-6, atol=1e-6)


def test_ranks_agree(ranks: list[dict]) -> None:
    assert torch.equal(ranks[0]["loss"], ranks[1]["loss"])
    assert all(torch.equal(a, b) for a, b in zip(ranks[0]["grads"], ranks[1]["grads"], strict=True))


def test_one_process_gathers_nothing(shared: SimpleNamespace) -> None:
    _, text = shared.towers(shared.inputs(), slice(0, 5), slice(0, 8))
    assert gather_text(text, 5) is text
    rows, counts = gather_rows(text.units_UD)
    assert rows is text.units_UD and counts == [8]


def test_only_keeps_pairs_with_their_units(shared: SimpleNamespace) -> None:
    _, text = shared.towers(shared.inputs(), slice(0, 5), slice(0, 8))
    reports = text.only({0})
    assert reports.hash64_U.tolist() == [70, -50]
    assert reports.pair_sample_P.tolist() == [0, 3]
    assert reports.pair_unit_P.tolist() == [0, 1]
    assert text.only({0, 2}) is text
    assert len(text.only({3}).units_UD) == 0
