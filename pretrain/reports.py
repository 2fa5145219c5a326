"""TriBERT in training: made of a recipe, cut down to what is trained, and given a batch's sentence units as reports.

Legend: R reports, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from data_shards.batch import Batch
from data_shards.schema import UNIT_KINDS
from encoders.dual import DualEncoder
from encoders.report_layout import Marks, Reports
from encoders.report_transformer import LEVELS, ReportTransformer, image_width
from pretrain.errors import ConfigError
from pretrain.schema import Recipe

REPORT, SENTENCE = UNIT_KINDS.index("report"), UNIT_KINDS.index("sentence")
WRAP = 1 << 64
# What objectives read of TriBERT beside fields of its passes: layers that they call themselves.
LAYERS = frozenset({"report_fusion", "report_matching", "report_vocabulary"})


def report_transformer(recipe: Recipe, dual: DualEncoder, marks: Marks) -> ReportTransformer:
    """`model.report` with fresh weights. marks: of the tokenizer of the text tower, which its reports come from.

    Raises:
        ConfigError: layers that look at an image, and a tower that gives no patch tokens.
    """
    section, width = recipe.model.report, image_width(dual.clip.visual)
    assert section is not None
    if section.fusion_layers and not width:
        raise ConfigError(
            "model.report.fusion_layers: this image tower gives no patch tokens to look at",
            why="matching and masked words would be answered without the image",
            fix="use a timm tower (a voxvit), or set it to 0",
        )
    sizes = section.model_dump(exclude={"grad_checkpointing"})
    made = ReportTransformer(len(marks.special), embed_dim=recipe.model.embed_dim, image_width=width, **sizes)
    made.marks, made.grad_checkpointing = marks, section.grad_checkpointing
    return made


def reports_of(transformer: ReportTransformer, batch: Batch, studies: slice) -> tuple[Reports, Tensor, int]:
    """The reports of some studies: each study's sentence units in the order they stand in its report.

    Returns them, the study of each, and how many there are. Where no study has a sentence they are one lone [CLS], and
    the number is 0: every rank and part then goes through the same layers.
    """
    texts = batch.texts
    ids, kinds = texts.tokens_T.tolist(), texts.kind_U.tolist()
    bounds = texts.cu_seqlens_U1.tolist()
    sentences: list[list[list[int]]] = [[] for _ in range(studies.stop - studies.start)]
    for study, unit in zip(texts.pair_sample_P.tolist(), texts.pair_unit_P.tolist(), strict=True):
        if kinds[unit] == SENTENCE and studies.start <= study < studies.stop:
            sentences[study - studies.start].append(ids[bounds[unit] : bounds[unit + 1]])
    reports = transformer.lay_out(sentences)
    if not reports.lengths:
        reports = transformer.lay_out([[]], lone=True)
        return reports, reports.source_R + studies.start, 0
    return reports, reports.source_R + studies.start, len(reports.lengths)


def identities(batch: Batch, study_R: Tensor) -> Tensor:
    """Two hashes of what each study's report says, int64 [R, 2]: of its report unit (of its sentences where it has
    none), and of its sentences in any order. Reports are one text where either is equal."""
    texts = batch.texts
    kinds, hashes = texts.kind_U.tolist(), texts.hash64_U.tolist()
    whole: dict[int, int] = {}
    said: dict[int, int] = {}
    for study, unit in zip(texts.pair_sample_P.tolist(), texts.pair_unit_P.tolist(), strict=True):
        if kinds[unit] == REPORT:
            whole[study] = hashes[unit]
        elif kinds[unit] == SENTENCE:
            said[study] = (said.get(study, 0) + hashes[unit] * (2 * hashes[unit] + 1)) % WRAP
    signed = {study: value - WRAP if value >= WRAP // 2 else value for study, value in said.items()}
    rows = [(whole.get(study, signed[study]), signed[study]) for study in study_R.tolist() if study in signed]
    return torch.tensor(rows, dtype=torch.int64, device=study_R.device).view(-1, 2)


def keep_read(transformer: ReportTransformer, reads: Iterable[str]) -> None:
    """Drop the layers of TriBERT that no objective reads.

    Raises:
        ConfigError: none reads anything of it.
    """
    reads = set(reads)
    if not any(read.startswith("report:") for read in reads):
        raise ConfigError(
            "model.report: no objective reads it",
            why="the release would hold a report transformer of random weights",
            fix="add report_contrastive, matching or masked_language, or set model.report to null",
        )
    levels = [level for level in LEVELS if f"report:units.{level}" in reads]
    transformer.keep(levels, "report_fusion" in reads, "report_matching" in reads, "report_vocabulary" in reads)
