"""What was there before blocks were cut out (SwinUNETR's self-supervision, arXiv 2111.14791, eq. 1).

    L = (1/B) Σ_studies (1/2) Σ_{v = 1, 2} (1/|M_v|) Σ_{x in M_v} | f(tokens of view v)(x) - image_v(x) |

f is a decoder of transposed convolutions (pretrain.decoder), M_v the voxels and channels of the blocks cut out of view
v, or, with `over: all`, of the whole view, as in SwinUNETR and VELVET-Med. `image_v` is turned like the view.

Legend: b studies of a part, n = 2b views, N tokens, C token width, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.decoder import Decoder, token_stride
from pretrain.errors import ConfigError
from pretrain.objectives.base import Objective, Surroundings
from pretrain.passes import Part, Pass, Rows
from pretrain.schema_objectives import InpaintingOptions
from pretrain.views import offered, trunk_of


class Inpainting(Objective):
    """L1 between the cut-out blocks and what a decoder makes of the tower's tokens, of both views."""

    reads = ("image:views.tokens", "image:views.clean", "image:views.dropped")
    coupling = "sample"
    Options = InpaintingOptions

    def passes(self) -> Mapping[str, tuple[Pass, tuple[str, ...]]]:
        return offered(self.options)

    def attach(self, around: Surroundings) -> None:
        trunk = trunk_of(around.dual, "inpainting")
        channels = int(trunk.pretrained_cfg["input_size"][0])
        self.decoder = Decoder(trunk.num_features, channels, token_stride(trunk))

    def each(self, rows: Mapping[str, Rows], part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, clean = rows["image:views.tokens"], rows["image:views.clean"].values
        if tokens.grid is None or self.decoder.size_of(tokens.grid) != tuple(clean.shape[2:]):
            raise ConfigError(
                f"objective inpainting: tokens on a grid of {tokens.grid} do not cover {tuple(clean.shape[2:])} voxels",
                why="a token would have to say what is outside its place",
                fix="train at the tower's native size and without token dropout, or leave inpainting out",
            )
        made = self.decoder(tokens.values, tokens.grid).float()
        over = rows["image:views.dropped"].values
        if self.options.over == "all":
            over = torch.ones_like(over)
        places = tuple(range(1, clean.ndim))
        error_n = ((made - clean).abs() * over).sum(places) / (over.sum(places) * clean.shape[1])
        return error_n.sum() / 2, {}
