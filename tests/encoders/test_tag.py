"""The tag after the dot: every geometry has one name, and a wrong name says what is wrong."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from encoders.tag import ATTENTIONS, POOLS, POSITIONS, SIZES, STEMS, Tag, parse_tag


@pytest.mark.parametrize(("size", "stem", "pool"), itertools.product(SIZES, STEMS, POOLS))
def test_round_trip(size: str, stem: str, pool: str) -> None:
    for positions, attention, layers in itertools.product(POSITIONS, ATTENTIONS, (None, 0, 2, 99)):
        if layers == 0 and (pool, positions, attention) != (pool if pool != "cls" else "", "learned", "full"):
            continue  # refused below
        for volumes in (3,) if attention == "volume3" else (1, 3):
            tag = Tag(size, (4, 8, 8), (32, 64, 80), 3, stem, positions, pool, attention, layers, volumes)
            assert parse_tag(tag.name) == tag
            assert parse_tag(tag.name).name == tag.name


def test_equal_geometries_have_equal_names() -> None:
    written = "voxvit_small.l-3_c-2_i-16x32x32_s-patch_e-learned_o-cls_a-full_p-4x8x8"
    assert parse_tag(written).name == "voxvit_small.p-4x8x8_i-16x32x32_c-2_l-3"
    assert parse_tag("voxvit_tiny").name == "voxvit_tiny.p-8x16x16_i-96x192x192_c-1"
    assert parse_tag("voxvit_tiny") == Tag()


def test_token_grid() -> None:
    assert parse_tag("voxvit_base.p-8x16x32_i-96x192x192").tokens == (12, 12, 6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("voxvit_huge", "no voxvit"),
        ("resnet18", "no voxvit"),
        ("tiny.p-8x16x16", "no voxvit"),
        ("voxvit_tiny.q-3", "'q-3' is unknown"),
        ("voxvit_tiny.p", "'p' is unknown"),
        ("voxvit_tiny.p-8x16x16_", "'' is unknown"),
        ("voxvit_tiny.c-1_c-2", "given twice"),
        ("voxvit_tiny.p-8x16", "three positive integers"),
        ("voxvit_tiny.p-8x16x0", "three positive integers"),
        ("voxvit_tiny.i-8x16x-16", "three positive integers"),
        ("voxvit_tiny.c-0", "integer from 1 to 99"),
        ("voxvit_tiny.c-100", "integer from 1 to 99"),
        ("voxvit_tiny.l-two", "integer from 0 to 99"),
        ("voxvit_tiny.l-0", "no attention"),
        ("voxvit_tiny.o-mean_l-0_e-rope", "no attention"),
        ("voxvit_tiny.s-swin", "one of patch, conv"),
        ("voxvit_tiny.e-sine", "one of learned, rope"),
        ("voxvit_tiny.o-sum", "one of cls, mean, attn"),
        ("voxvit_tiny.a-window", "one of full, slice3"),
        ("voxvit_tiny.c-4_v-3", "v-3 does not divide c-4"),
        ("voxvit_tiny.c-3_v-0", "integer from 1 to 99"),
        ("voxvit_tiny.c-3_a-volume3", "name their number, v-2 or more"),
        ("voxvit_tiny.c-3_v-3_l-0_o-mean_a-volume3", "no attention"),
        ("voxvit_tiny.p-8x16x16_i-96x192x100", "not a multiple"),
        ("voxvit_tiny.p-6x16x16_i-96x192x192_s-conv", "powers of two"),
    ],
)
def test_wrong_names_say_why(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_tag(name)


def test_checking_a_name_needs_no_torch() -> None:
    code = "import encoders.tag, sys; encoders.tag.parse_tag('voxvit_tiny'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
