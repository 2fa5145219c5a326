"""A small recipe, small shards, and ways to run `pretrain.fit` on them: here, or in a process that can be killed."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from data_shards import Scan, Study, Texts
from data_shards.shard_set import ShardWriter
from pretrain import fit

PLUGINS = Path(__file__).with_name("plugins")

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {
        "geometry": {"kind": "volume", "spacing_mm": [3.0, 3.0, 3.0], "windows": [[-1000, 1000]]},
        "train_view": {"kind": "random", "size": [16, 32, 32], "jitter": 3},
        "eval_view": {"kind": "centre", "size": [16, 32, 32]},
        "units": {"report": True, "sentences": True, "shuffle_sentences": True},
    },
    "model": {
        "image": {"name": "voxvit_tiny.p-8x16x16_i-16x32x32_c-1_s-conv_l-1", "token_dropout": 0.5},
        "text": {"width": 32, "layers": 1, "heads": 2, "context_length": 64},
        "embed_dim": 16,
    },
    "objectives": [{"name": "sentence"}, {"name": "contrastive", "weight": 0.5}],
    "optim": {"lr": 1e-3, "warmup_steps": 2},
    "train": {"steps": 8, "batch_size": 4, "precision": "fp32", "accelerator": "cpu"},
    "evaluate": {"task": None, "every_steps": 4, "max_studies": 4, "final": False},
    "checkpoint": {"every_steps": 4},
}

TASK = """\
name: made_up
classes:
  nodule:
    positive: ["There is a nodule."]
    negative: ["There is no nodule."]
  effusion:
    positive: ["There is an effusion."]
    negative: ["There is no effusion."]
"""

FINDINGS = ("There is a nodule", "The heart is large", "The spleen is large", "The lungs are clear", "No effusion")


def _study(i: int) -> Study:
    """The i-th made-up study: a bright ball or none, sentences shared with other studies, two studies a patient, and a
    report that the fifth and the sixth have in common."""
    rng = np.random.default_rng(i)
    array = rng.integers(-900, 300, (14, 28, 28)).astype(np.int16)
    if i % 2:
        array[5:9, 10:18, 10:18] = 900
    seed = 5 if i == 6 else i
    told = [f for j, f in enumerate(FINDINGS) if (seed >> j) & 1] or ["Nothing to report"]
    texts = Texts(findings=". ".join(told) + ".", impression=f"Case {seed}.")
    split = "train" if i < 16 else "val" if i < 20 else "test"
    labels = {"nodule": i % 2, "effusion": (i // 2) % 2}
    scan = Scan(array=array, spacing_mm=(3.0, 3.0, 3.0))
    return Study(f"study{i}", f"patient{i // 2}", split, (scan,), texts, labels, "made up", "CC0-1.0")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 made-up volumes: 16 train, 4 val, 4 test."""
    out = tmp_path_factory.mktemp("shards") / "set"
    with ShardWriter(out, max_samples=10) as writer:
        for i in range(24):
            writer.write(_study(i))
    return out


@pytest.fixture(scope="session")
def more_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 made-up volumes of another source: 8 train, 2 val, 2 test, with a label of their own and none of effusion."""
    out = tmp_path_factory.mktemp("more") / "set"
    with ShardWriter(out, max_samples=5) as writer:
        for i in range(12):
            split = "train" if i < 8 else "val" if i < 10 else "test"
            labels = {"nodule": i % 2, "cyst": 1}
            one = replace(_study(i), patient=f"q{i}", split=split, labels=labels)
            writer.write(replace(one, scans=(replace(one.scans[0], modality="MR", unit="arbitrary"),)))
    return out


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "made_up.yaml"
    path.write_text(TASK)
    return path


@dataclass(frozen=True)
class Fit:
    """Runs of one recipe below one folder. Overrides are keyword arguments with `__` for the dots."""

    root: Path
    recipe: Path

    def argv(self, name: str, **overrides: Any) -> list[str]:
        words = ["--config", str(self.recipe), "--output.root", str(self.root), "--output.run", name]
        for key, value in overrides.items():
            words += [f"--{key.replace('__', '.')}", json.dumps(value)]  # JSON is YAML
        return words

    def __call__(self, name: str, **overrides: Any) -> int:
        """Train in this process; returns the exit code."""
        return fit.main(self.argv(name, **overrides))

    def resume(self, name: str) -> int:
        return fit.main(["--resume", str(self.root / name)])

    def start(self, name: str, variables: dict[str, str] | None = None, **overrides: Any) -> subprocess.Popen[str]:
        """Train in a process of its own."""
        return self.process(self.argv(name, **overrides), variables)

    def process(self, argv: list[str], variables: dict[str, str] | None = None) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-m", "pretrain.fit", *argv],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | (variables or {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip

    def folder(self, name: str) -> Path:
        return self.root / name

    def checkpoint(self, name: str, which: str = "last") -> Path:
        return (self.root / name / "checkpoints" / which).resolve()

    def weights(self, name: str, which: str = "last") -> dict[str, Tensor]:
        return load_file(self.checkpoint(name, which) / "encoders.safetensors")

    def metrics(self, name: str) -> list[str]:
        return (self.root / name / "metrics.csv").read_text().splitlines()


@pytest.fixture(scope="session")
def make_fit(shards: Path) -> Callable[..., Fit]:
    def make(root: Path, **sections: Any) -> Fit:
        """A recipe file in `root`: RECIPE with whole top-level keys replaced or, for dicts, updated."""
        recipe = copy.deepcopy(RECIPE)
        recipe["data"]["source"] = {"kind": "shards", "path": str(shards)}
        for key, value in sections.items():
            recipe[key] = recipe[key] | value if isinstance(value, dict) else value
        path = root / "tiny.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return Fit(root, path)

    return make


@pytest.fixture
def tiny(make_fit: Callable[..., Fit], tmp_path: Path) -> Fit:
    return make_fit(tmp_path)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch, plugins: None) -> Callable[..., None]:
    """Says what plugins/trouble.py does in the runs that follow; without arguments, nothing."""
    return lambda **plan: monkeypatch.setenv("TROUBLE", json.dumps(plan))


@pytest.fixture
def troubled(make_fit: Callable[..., Fit], tmp_path: Path, plugins: None) -> Fit:
    """The recipe with plugins/trouble.py, which adds nothing to the loss, before its objectives."""
    return make_fit(tmp_path, objectives=[{"name": "trouble:Trouble"}, *RECIPE["objectives"]])


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the modules of plugins/ importable."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    yield
    for name in [n for n, m in sys.modules.items() if str(PLUGINS) in str(getattr(m, "__file__", ""))]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Float sums depend on the number of threads, and runs in this process are compared with runs in others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="session")
def equal() -> Callable[[dict[str, Tensor], dict[str, Tensor]], bool]:
    """Bit for bit the same weights."""
    return same


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 made-up grey images: 8 train, 4 val."""
    out = tmp_path_factory.mktemp("radiographs") / "set"
    rng = np.random.default_rng(0)
    with ShardWriter(out) as writer:
        for i in range(12):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (40, 48), np.uint8)).save(file, "PNG")
            scan = Scan(array=None, image=file.getvalue(), ext="png", modality="CR")
            texts = Texts(report=f"Film {i}. {FINDINGS[i % 5]}.")
            split = "train" if i < 8 else "val"
            writer.write(Study(f"film{i}", f"p{i}", split, (scan,), texts, {}, "made up", "CC0-1.0"))
    return out


@pytest.fixture
def radiograph_data(radiographs: Path) -> dict[str, Any]:
    """`data` of a recipe for them."""
    return {
        "source": {"kind": "shards", "path": str(radiographs)},
        "geometry": {"kind": "image", "size": [32, 32]},
        "train_view": {"kind": "random", "size": [32, 32]},
        "eval_view": {"kind": "centre", "size": [32, 32]},
    }
