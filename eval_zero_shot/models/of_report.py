"""A release whose texts its report transformer reads (TriBERT, encoders.report_transformer), in place of the causal
tower that plain open_clip loads: VELVET-Med by its own reader.

Legend: B studies, U texts, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from data_shards.report import sentences
from encoders.errors import ReleaseError
from encoders.features import ImageFeatures, TextFeatures
from encoders.loading import load as load_release
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models.adapter import loaded, remembered, text_features

if TYPE_CHECKING:
    from encoders.dual import DualEncoder
    from encoders.loading import Loaded
    from encoders.report_transformer import ReportTransformer
    from eval_zero_shot.embedding import PackedTexts

BREAK = -1  # between the token ids of two sentences: no tokenizer has it


class ByReport(nn.Module):
    """Images by the dual encoder; a text is a report of its sentences, and its feature is the report's.

    Probabilities are at the dual encoder's temperature; what the report transformer learnt of its own is not released.
    """

    def __init__(self, dual: DualEncoder, report: ReportTransformer) -> None:
        super().__init__()
        self.dual, self.report, self.clip = dual, report, dual.clip

    @property
    def logit_scale(self) -> Tensor:
        return self.dual.logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        return None

    def encode_image(self, images: Tensor, **asked: Any) -> ImageFeatures:
        """As `DualEncoder.encode_image`."""
        return self.dual.encode_image(images, **asked)

    def encode_text(self, text: PackedTexts) -> TextFeatures:
        """Features of packed texts whose sentences are BREAK apart."""
        reports = [_split(ids.tolist()) for ids in text.tokens_T.split(list(text.lengths))]
        laid = self.report.lay_out(reports, lone=True)
        return text_features(self.report.levels(self.report.read(laid), laid, ["report"])["report"], text)


def load(kind: str, rest: str, device: str) -> Loaded:
    """A release folder with the head `report`.

    Raises EvalError: no such release, or one without a report transformer that was trained on whole reports.
    """
    folder = Path(rest).expanduser()
    try:
        release = load_release(folder)
    except ReleaseError as error:
        raise EvalError(f"{folder.name}: {error.what}", why=error.why, fix=error.fix) from error
    report: Any = release.heads.get("report")
    if report is None or "report" not in report.projections:
        raise EvalError(
            f"the release '{folder.name}' has no report transformer that knows whole reports",
            why="there is nothing but its causal tower to read texts with",
            fix=f"name the folder alone ({rest}), or train with model.report and the objective report_contrastive",
        )
    assert release.tokenizer is not None
    model = ByReport(release.model, report)
    about = {"package": "voxclip", "reader": "report", "release": release.sha256}
    ids = remembered(by_sentence(release.tokenizer))
    return loaded(model, release.geometry, release.view, ids, about, device, weights_sha256=release.sha256)


def by_sentence(tokenize: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """Text to the ids of its sentences, BREAK between them; a text that is no sentence is taken as one."""

    def ids(text: str) -> list[int]:
        parts = [tokenize(sentence) for sentence in sentences(text) or [text]]
        return [i for n, part in enumerate(parts) for i in ([BREAK] if n else []) + list(part)]

    return ids


def _split(ids: list[int]) -> list[list[int]]:
    out: list[list[int]] = [[]]
    for i in ids:
        if i == BREAK:
            out.append([])
        else:
            out[-1].append(i)
    return out
