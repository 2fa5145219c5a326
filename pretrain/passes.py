"""Encoder calls by name: every objective says what it reads, each call is made once, and all share what it gives.

An objective reads fields such as `image:global.pooled`: before the dot the pass, after it what is taken of it. A pass
is a function `(dual, part, fields) -> {field: Rows}`. Known ones:

    image:global   the images as they come: `pooled` [B, D] in the joint space, `trunk` [B, C] before the projection,
                   `tokens` [B, N, C] the image tower's patch tokens, `kept` [B, N] their places in the token grid,
                   `level0` to `level3` [B, N, C] its maps, finest first: strides 4, 8, 16 and 32 of a `swin3d`; other
                   towers have one, their tokens
    text:units     the distinct texts: `units` [U, D] in the joint space
    report:units   the studies' reports through `dual.report`; a study without a sentence has no row: `report` [R, D],
                   `sentences` [S, D], `words` [W, D] in the joint space, `word_sentences` [W] (number of the
                   sentence in its report), `states` [T, C] of its tokens, `places` [T] (encoders.report_layout),
                   `identity` [R, 2] (pretrain.reports), `draws` [R, 2] uniform in [0, 1)
    report:masked  the same with 15 % of the tokens hidden: `states`, `places`, `targets` [T], the hidden ids or -1;
                   report:masked_text and report:masked_image are draws of their own

More are an objective's own (`Objective.passes`).

Legend: B studies of this rank's batch, U its distinct units, N patch tokens, C width of a tower, D joint width,
R reports, S sentences, W words and T tokens of the studies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from data_shards.batch import Batch, TextBatch
from encoders.dual import DualEncoder
from encoders.report_transformer import LEVELS as REPORT_LEVELS
from pretrain.masking import mask_tokens
from pretrain.reports import LAYERS, identities, reports_of


@dataclass(frozen=True)
class Rows:
    """`values` [n, ...] with gradient; `owner` [n] says whose each row is: the number of a study in this rank's batch,
    of the pass `text:units` that of a unit. `grid` is (D, H, W) or (H, W) where rows are maps [n, N, C] of N cells."""

    values: Tensor
    owner: Tensor
    grid: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Part:
    """Consecutive studies and units of a rank's batch. `batch` is the whole; studies `studies`, units `units`."""

    batch: Batch
    studies: slice
    units: slice
    _windows: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def images(self) -> Tensor:
        """[b, C, (D,) H, W]. Where windows have to be made, they are kept until `forget`: several passes look at them,
        and those of all parts would fill the memory that the batch's values save."""
        if self.batch.windows is None:
            return self.batch.images(self.studies)
        if not self._windows:
            self._windows.append(self.batch.images(self.studies))
        return self._windows[0]

    def forget(self) -> None:
        """Free the windows that were made."""
        self._windows.clear()

    @property
    def study_b(self) -> Tensor:
        """Numbers of the part's studies in the batch, [b]."""
        return torch.arange(self.studies.start, self.studies.stop, device=self.batch.images_BCDHW.device)

    @property
    def texts(self) -> TextBatch:
        """The part's units. Pairs stay those of the whole batch: they are read once, there."""
        whole, first, last = self.batch.texts, self.units.start, self.units.stop
        bounds = whole.cu_seqlens_U1[first : last + 1]
        begin, end = (sum(whole.lengths[:n]) for n in (first, last))
        return TextBatch(
            whole.tokens_T[begin:end], bounds - bounds[0], whole.lengths[first:last], whole.kind_U[first:last],
            whole.hash64_U[first:last], whole.visit64_U[first:last], whole.pair_sample_P, whole.pair_unit_P,
        )  # fmt: skip


LEVELS = ("level0", "level1", "level2", "level3")  # maps of an image tower, from fine to coarse
PLACES = ("tokens", *LEVELS)  # thousands of rows an image: under autocast in its dtype
Pass = Callable[[DualEncoder, Part, frozenset[str]], Mapping[str, Rows]]


def whole(batch: Batch) -> Part:
    """All of a batch in one part."""
    return Part(batch, slice(0, len(batch)), slice(0, len(batch.texts.lengths)))


def split(batch: Batch, chunk: int) -> list[Part]:
    """Parts of at most `chunk` studies, as even as can be, each with its share of the units."""
    count = -(-len(batch) // chunk)
    studies, units = (_spans(n, count) for n in (len(batch), len(batch.texts.lengths)))
    return [Part(batch, s, u) for s, u in zip(studies, units, strict=True)]


def _spans(n: int, count: int) -> Iterator[slice]:
    bounds = [n * i // count for i in range(count + 1)]
    return (slice(a, b) for a, b in pairwise(bounds))


def image_global(dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
    return image_rows(dual, part.images, part.study_b, fields)


def image_rows(dual: DualEncoder, images: Tensor, owner: Tensor, fields: frozenset[str]) -> dict[str, Rows]:
    """The image fields of some images [n, C, (D,) H, W], whose studies are `owner` [n], by one call."""
    levels = sorted(LEVELS.index(field) for field in fields if field in LEVELS)
    found = dual(
        images, None, tokens="tokens" in fields, trunk="trunk" in fields, levels=levels, kept="kept" in fields
    ).image
    named = {"pooled": (found.study_BD, None), "trunk": (found.trunk_SC, None), "kept": (found.kept_SN, None)}
    named |= {LEVELS[number]: level for number, level in found.levels.items()}
    if found.tokens_SND is not None:  # those that token dropout leaves have no grid
        kept_all = math.prod(found.grid) == found.tokens_SND.shape[1]
        named["tokens"] = (found.tokens_SND, found.grid if kept_all else None)
    return {
        field: Rows(_narrow(named[field][0]) if field in PLACES else named[field][0], owner, named[field][1])
        for field in fields
    }


def text_units(dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
    device = part.batch.images_BCDHW.device
    number = torch.arange(part.units.start, part.units.stop, device=device)
    if part.units.start < part.units.stop:
        return {"units": Rows(dual(None, part.texts).text.units_UD, number)}
    # No row, but with a graph: other ranks may have texts, and DDP and FSDP2 wait for all that take part in a pass.
    return {"units": Rows(dual(None, _nobodys(part, dual.pad_id)).text.units_UD[:0], number)}


def _nobodys(part: Part, pad_id: int) -> TextBatch:
    """A text of one token, which must not be padding: of no token some towers make NaN, also in the gradient."""
    told = part.batch.texts
    token = torch.full((1,), int(pad_id == 0)).to(told.tokens_T)
    none = told.pair_unit_P[:0]
    bounds, kind, identity = (torch.arange(2).to(told.cu_seqlens_U1), torch.zeros(1).to(told.kind_U), none.new_zeros(1))
    return TextBatch(token, bounds, [1], kind, identity, identity, none, none)


def report_units(dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
    assert dual.report is not None
    reports, study_R, many = reports_of(dual.report, part.batch, part.studies)
    states, found = dual.read_reports(reports, fields & set(REPORT_LEVELS))
    study_T, kept = study_R[reports.report_T], slice(None if many else 0)  # a lone [CLS] is nobody's
    owners = {"sentences": study_R[reports.sentence_report_S], "words": study_R[reports.word_report_W]}
    rows = {level: Rows(values[kept], owners.get(level, study_R)[kept]) for level, values in found.items()}
    rows["states"] = Rows(_narrow(states)[kept], study_T[kept])
    rows["places"] = Rows(reports.place_T[kept], study_T[kept])
    first_R = torch.searchsorted(reports.sentence_report_S, torch.arange(len(study_R), device=study_R.device))
    rows["word_sentences"] = Rows(reports.word_sentence_W - first_R[reports.word_report_W], owners["words"])
    if "identity" in fields:
        rows["identity"] = Rows(identities(part.batch, study_R[kept]), study_R[kept])
    if "draws" in fields:
        rows["draws"] = Rows(torch.rand(len(study_R), 2, device=study_R.device)[kept], study_R[kept])
    return rows


def report_masked(dual: DualEncoder, part: Part, fields: frozenset[str]) -> dict[str, Rows]:
    assert dual.report is not None
    reports, study_R, many = reports_of(dual.report, part.batch, part.studies)
    ids, targets = mask_tokens(reports, dual.report.special)
    states, _ = dual.read_reports(reports, (), ids)
    study_T, kept = study_R[reports.report_T], slice(None if many else 0)
    values = {"states": _narrow(states), "places": reports.place_T, "targets": targets}
    return {name: Rows(value[kept], study_T[kept]) for name, value in values.items()}


def _narrow(states: Tensor) -> Tensor:
    """Under autocast in its dtype: half the memory where they are kept and gathered."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states


KNOWN: dict[str, Pass] = {
    "image:global": image_global, "text:units": text_units,
    "report:units": report_units, "report:masked": report_masked,
    "report:masked_text": report_masked, "report:masked_image": report_masked,
}  # fmt: skip
FIELDS: dict[str, tuple[str, ...]] = {
    "image:global": ("pooled", "trunk", "tokens", "kept", *LEVELS),
    "text:units": ("units",),
    "report:units": (*REPORT_LEVELS, "word_sentences", "states", "places", "identity", "draws"),
    **dict.fromkeys(("report:masked", "report:masked_text", "report:masked_image"), ("states", "places", "targets")),
}


class Encoders:
    """The passes that a list of objectives needs, each called once a part. instead: other ways to make known ones.

    Raises:
        ValueError: an objective reads a pass or field that nobody offers, or two objectives offer different passes
            under one name.
    """

    def __init__(self, objectives: Iterable[Any], instead: Mapping[str, Pass] | None = None) -> None:
        self.passes = {**KNOWN, **(instead or {})}
        fields = {name: set(offered) for name, offered in FIELDS.items()}
        reads: set[str] = set()
        for objective in objectives:
            for name, (call, offered) in objective.passes().items():
                if self.passes.get(name, call) != call:
                    raise ValueError(f"two different passes are offered as '{name}'")
                self.passes[name], fields[name] = call, set(offered)
            reads |= set(objective.reads)
        for read in sorted(reads - SHARED):
            name, _, field = read.partition(".")
            if field not in fields.get(name, ()):
                known = ", ".join(f"{n}.{f}" for n, every in fields.items() for f in sorted(every))
                raise ValueError(f"an objective reads '{read}', which nobody offers; there are {known}")
        self.wanted = _by_pass(reads)

    def __call__(self, dual: DualEncoder, part: Part, reads: Iterable[str] | None = None) -> dict[str, Rows]:
        """Every field that is read, by its whole name; of these `reads` alone, where some objectives rest."""
        found: dict[str, Rows] = {}
        for name, fields in (self.wanted if reads is None else _by_pass(reads)).items():
            given = self.passes[name](dual, part, fields)
            # In one order on every rank and in every run: a set of strings has another in each process.
            found |= {f"{name}.{field}": given[field] for field in sorted(fields) if field in given}
        return found


def _by_pass(reads: Iterable[str]) -> dict[str, frozenset[str]]:
    wanted: dict[str, frozenset[str]] = {}
    for read in sorted(set(reads) - SHARED):
        name, _, field = read.partition(".")
        wanted[name] = wanted.get(name, frozenset()) | {field}
    return wanted


SHARED = frozenset(
    {"labels", "captions", "logit_scale", "logit_bias", *LAYERS}
)  # what an objective may read that no pass makes
