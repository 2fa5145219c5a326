"""Attention of TriBERT over packed reports: the sentence mask, and the layers that look at an image.

Legend: T tokens of all reports, H heads, D head width, B reports of one length bucket, L its padded length, I images,
N tokens of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from encoders.attention import Packing, dense, repack, unpack

BEHIND = torch.iinfo(torch.int64).max  # the place of padding: seen by nobody, and sees what a word does


def sentence_masks(place_T: Tensor, packing: Packing) -> list[Tensor]:
    """For each bucket of `packing` who sees whom, bool [B, 1, L, L].

    [SEN_i] (place -i) sees [CLS] (place 0) and its own sentence, which is itself (-i) and its pieces (+i); [CLS] and
    pieces see everything.
    """
    masks = []
    for bucket in packing.buckets:
        count, longest = bucket.inside.shape
        place = torch.full((count * longest,), BEHIND, device=place_T.device)
        place[bucket.slots] = place_T[bucket.tokens]
        query, key = place.view(count, longest, 1), place.view(count, 1, longest)
        seen = (query >= 0) | (key == 0) | (key.abs() == -query)
        masks.append((seen & (key != BEHIND))[:, None])
    return masks


def attend_sentences(qkv_T3HD: Tensor, packing: Packing, masks: list[Tensor]) -> Tensor:
    """Self-attention inside each report under its `sentence_masks`: [T, 3, H, D] to [T, H, D].

    Length buckets with a mask on every device: the kernels for ragged sequences take no mask of this kind.
    """
    done = []
    for (block, bucket), mask in zip(unpack(qkv_T3HD, packing), masks, strict=True):
        q, k, v = block.unbind(2)
        done.append((dense(q, k, v, mask), bucket))
    return repack(done, packing)


def attend_images(q_THD: Tensor, kv_IN2HD: Tensor, image_of: Tensor, packing: Packing) -> Tensor:
    """Every token of report r looks at all tokens of image `image_of[r]`: [T, H, D] to [T, H, D]."""
    done = []
    for block, bucket in unpack(q_THD, packing):
        k, v = kv_IN2HD.index_select(0, image_of[bucket.units]).unbind(2)
        done.append((dense(block, k, v), bucket))
    return repack(done, packing)
