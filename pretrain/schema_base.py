"""What every section of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Path = tuple[str | int, ...]

Triple = tuple[float, float, float]
Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
Size = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=2, max_length=3)]
Unit = Literal["report", "section", "sentence", "caption"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
