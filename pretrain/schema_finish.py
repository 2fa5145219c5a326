"""The finish section of a recipe: weight interpolation between the start and the end of a run, and what it is measured
on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pretrain.schema_base import Fraction, Section


class HeldOut(Section):
    """Studies of another domain, which a run is measured on before and after."""

    data: str = Field(min_length=1, description="shard set (folder or URL), or published tars (folder or .tar)")
    task: str | None = Field(None, description="task name in eval_zero_shot/tasks or a YAML path; null: retrieval")
    name: str | None = Field(None, min_length=1, description="what tables call it; null: the task's name")
    split: str = Field("test", min_length=1, description="split that is measured")
    select: str | None = Field(
        None,
        min_length=1,
        description="split of it that helps to choose alpha; null: it is measured and chooses nothing",
    )


class FinishSection(Section):
    """WiSE-FT (arXiv 2109.01903) at the end of a run, with base, adapted and merged measured side by side."""

    interpolate_with: Literal["base", "start"] = Field(
        description="base: trained weights that the run starts from; start: whatever it starts from, random ones too"
    )
    alphas: tuple[Fraction, ...] = Field(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        min_length=1,
        description="shares of the adapted weights that are tried; 0 and 1 always",
    )
    held_out: tuple[HeldOut, ...] = Field((), description="other domains, beside evaluate.task on data.source")
    max_studies: int | None = Field(None, ge=2, description="studies scored of each split; null for all")
    resamples: int = Field(1000, ge=0, description="draws of patients behind the intervals; 0: none")
