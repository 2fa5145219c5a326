"""`import encoders` is all that open_clip and timm need, in any order, and costs nothing until they are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

NAME = "voxvit_tiny.p-4x8x8_i-8x16x16_l-1"
FOUND = f"assert timm.create_model('{NAME}').tag.grid == (8, 16, 16); assert len(timm.list_models('voxvit_*')) == 4"


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "imports",
    ["import encoders, timm", "import timm, encoders", "import open_clip, encoders, timm"],
)
def test_either_order(imports: str) -> None:
    """Each in a process of its own: what is imported stays imported."""
    run(f"{imports}; {FOUND}")


def test_importing_is_light() -> None:
    run("import encoders, sys; assert not {'torch', 'timm', 'open_clip'} & set(sys.modules)")


def test_timm_keeps_its_own_loader() -> None:
    run(
        "import encoders, timm.models, importlib.resources, sys;"
        "assert type(timm.models.__loader__).__module__ != 'encoders.registration';"
        "assert importlib.resources.files('timm.models').joinpath('resnet.py').is_file();"
        "assert not any(getattr(f, 'name', '') == 'timm.models' for f in sys.meta_path)"
    )
