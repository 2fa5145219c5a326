"""`report:RELEASE`: TriBERT reads prompts and reports, images are the dual encoder's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import encoders
from encoders.heads import describe_head
from encoders.loading import Loaded
from encoders.release import write_release
from encoders.report_transformer import ReportTransformer
from encoders.tokenize import BPE
from eval_zero_shot import EvalError
from eval_zero_shot.embedding import embed_texts
from eval_zero_shot.models import short_name
from eval_zero_shot.release import load_dual

from ..toy_release import write_toy_release

TEXTS = ["No pleural effusion.", "A cyst is seen. The heart is large.", "17"]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """The toy release with a report transformer beside it."""
    toy = encoders.load(write_toy_release(tmp_path / "toy"))
    torch.manual_seed(1)
    report = ReportTransformer(49408, 24, 3, 2, 40, 8, 5, 60, 0, 0)
    report.marks = BPE(32).marks()
    report.keep(("report",), fusion=False, matching=False, vocabulary=False)
    return write_release(
        tmp_path / "velvet" / "release", toy.model.clip.state_dict(), toy.config["model_cfg"], toy.geometry, toy.view,
        heads={"report": describe_head(report)},
        head_weights={f"report.{name}": weight for name, weight in report.state_dict().items()},
    )  # fmt: skip


def by_hand(release: Path, reports: list[list[str]]) -> np.ndarray:
    loaded: Loaded = encoders.load(release)
    assert loaded.tokenizer is not None
    with torch.no_grad():
        found = loaded.heads["report"].encode(reports, loaded.tokenizer).report_RD
    return torch.nn.functional.normalize(found, dim=1).numpy()


def test_a_text_is_a_report_of_its_sentences(release: Path) -> None:
    model = load_dual(f"report:{release}", "cpu")
    assert model.tokenizer is not None
    vectors = embed_texts(model.model, model.tokenizer, TEXTS)
    hand = by_hand(release, [["No pleural effusion."], ["A cyst is seen.", "The heart is large."], ["17"]])
    assert np.allclose(np.stack([vectors[text] for text in TEXTS]), hand, atol=1e-6)
    causal = load_dual(str(release), "cpu")
    assert causal.tokenizer is not None and causal.sha256 != model.sha256
    assert not np.allclose(embed_texts(causal.model, causal.tokenizer, TEXTS)[TEXTS[0]], hand[0], atol=1e-2)


def test_a_whole_evaluation_with_its_page(
    release: Path, toy_folder: Path, score: Callable[[str, Path], dict[str, Any]]
) -> None:
    outcomes = score(f"report:{release}", toy_folder)["outcomes"]
    assert {o["model"] for o in outcomes} == {"report:velvet"}
    assert {o["protocol"] for o in outcomes} >= {"classification", "retrieval"}
    assert short_name("report", str(release)) == "report:velvet"


def test_a_release_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no report transformer that knows whole reports"):
        load_dual(f"report:{write_toy_release(tmp_path / 'toy')}", "cpu")
    with pytest.raises(EvalError, match="nowhere"):
        load_dual(f"report:{tmp_path / 'nowhere'}", "cpu")
