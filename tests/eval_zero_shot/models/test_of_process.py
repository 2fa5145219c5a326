"""A model in another process: the pipe, its errors, and COLIPRI in an environment of its own where there is one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval_zero_shot import EvalError
from eval_zero_shot.embed import main as embed
from eval_zero_shot.embedding import embed_texts
from eval_zero_shot.release import load_dual

WRAPPER = '''
"""Mean colours against words; what it prints must not disturb the pipe."""
import hashlib, os
import numpy as np

class Model:
    def __init__(self, argument, device):
        print("loading", argument, "on", device)
        self.shift = float(argument or 0)

    def describe(self):
        return {
            "weights_sha256": hashlib.sha256(str(self.shift).encode()).hexdigest(),
            "geometry": {"kind": "image", "size": [8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]},
            "view": {"kind": "centre"},
            "text_context": 9,
            "logit_scale": 1.5,
        }

    def encode_images(self, images):
        os.write(1, b"noise from a C library")
        mean = images.mean((1, 2, 3))
        return np.stack([mean, 0.5 - mean], 1) + self.shift

    def encode_texts(self, texts):
        if "explode" in texts:
            raise RuntimeError("no such word")
        if "die" in texts:
            os._exit(3)
        if "miscount" in texts:
            return np.ones((7, 2))
        return [[float("bright" in t), float("dark" in t or "ü" in t)] for t in texts]

def load(argument, device):
    if argument == "9":
        raise FileNotFoundError("weights.bin")
    return Model(argument, device)
'''


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    path = tmp_path / "wrapper.py"
    path.write_text(WRAPPER)
    return path


def test_a_worker_is_scored(image_shards: Path, score: Callable[..., dict[str, Any]], wrapper: Path) -> None:
    found = score(f"process:{wrapper}@{sys.executable}", image_shards)
    assert found["outcomes"][0]["metrics"][0]["value"] == 1.0
    loaded = load_dual(f"process:{wrapper}@{sys.executable}", "cpu")
    vectors = embed_texts(loaded.model, loaded.tokenizer, ["ein dunkler Fleck ü", "bright", "bright and dark"])
    assert np.allclose(vectors["ein dunkler Fleck ü"], [0, 1]) and np.allclose(vectors["bright"], [1, 0])
    assert float(loaded.model.logit_scale) == 1.5
    process = loaded.model.worker.process
    del loaded
    gc.collect()
    assert process.poll() == 0, "no worker outlives its model"


def test_weights_and_wrapper_are_the_identity(wrapper: Path) -> None:
    specs = [f"process:{wrapper}@{sys.executable}", f"process:{wrapper},1@{sys.executable}"]
    found = [load_dual(spec, "cpu").sha256 for spec in (specs[0], specs[0], specs[1])]
    wrapper.write_text(WRAPPER + "\n# another wrapper\n")
    found.append(load_dual(specs[0], "cpu").sha256)
    assert found[0] == found[1] and len(set(found)) == 3


def test_code_beside_the_wrapper_is_the_identity_too(wrapper: Path) -> None:
    """Imported at the start or not: what is imported when an image comes would be too late to be asked about."""
    wrapper.write_text("import beside\n" + WRAPPER)
    beside, later = wrapper.with_name("beside.py"), wrapper.parent / "more" / "later.py"
    installed = wrapper.parent / "env" / "lib.py"
    found = []
    for number, written in enumerate((beside, later, installed, later)):
        for file in (beside, later, installed):
            file.parent.mkdir(exist_ok=True)
            file.touch()
        (installed.parent / "pyvenv.cfg").touch()
        written.write_text(f"x = {number}\n")
        found.append(load_dual(f"process:{wrapper}@{sys.executable}", "cpu").sha256)
    assert found[0] != found[1] == found[2] != found[3]


def test_what_goes_wrong_in_the_worker_is_told(wrapper: Path, tmp_path: Path) -> None:
    loaded = load_dual(f"process:{wrapper}@{sys.executable}", "cpu")
    for text, match in (
        ("explode", "RuntimeError: no such word"),
        ("miscount", r"with shape \[7, 2\]"),
        ("die", r"ended \(exit status 3\)"),
    ):
        with pytest.raises(EvalError, match=match):
            embed_texts(loaded.model, loaded.tokenizer, [text])
    with pytest.raises(EvalError, match=r"FileNotFoundError: weights.bin"):
        load_dual(f"process:{wrapper},9@{sys.executable}", "cpu")
    with pytest.raises(EvalError, match="does not start"):
        load_dual(f"process:{wrapper}@{tmp_path / 'no-python'}", "cpu")
    wrapper.write_text(WRAPPER.replace('"weights_sha256"', '"weights"'))
    with pytest.raises(EvalError, match=r"describe\(\) cannot be used"):
        load_dual(f"process:{wrapper}@{sys.executable}", "cpu")


# Weights of the true widths and depth, for a small input, made by colipri itself.
MAKE = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig
    folder = Path(sys.argv[1])
    (folder / "cxr-bert").mkdir(parents=True)
    BertConfig(num_hidden_layers=2).to_json_file(folder / "cxr-bert" / "config.json")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lung", "nodules", "present", "no"]
    (folder / "cxr-bert" / "vocab.txt").write_text("\\n".join(words))
    (folder / "overrides.json").write_text(json.dumps({"input_size": 32}))
    from colipri_wrapper import build
    torch.manual_seed(0)
    model, size = build(folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    x = torch.rand(2, 1, 32, 32, 32) * 2 - 1
    with torch.no_grad():
        found = model.encode_image(x, pool=True, project=True, normalize=True)
    save_file({"x": x, "found": found}, folder / "expected" )
"""


@pytest.mark.full
def test_colipri_in_its_own_environment(toy_folder: Path, tmp_path: Path) -> None:
    """COLIPRI_PYTHON names the Python of an environment with `pip install colipri`."""
    python = os.environ.get("COLIPRI_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("COLIPRI_PYTHON names no Python of an environment with colipri")
    from safetensors.torch import load_file

    from eval_zero_shot.models.of_process import PEER

    folder = tmp_path / "colipri"
    subprocess.run([python, "-c", textwrap.dedent(MAKE), str(folder), str(PEER)], check=True)
    expected = load_file(folder / "expected")
    loaded = load_dual(f"colipri:{folder}@{python}", "cpu")
    assert loaded.view.size == (32, 32, 32) and loaded.geometry.spacing_mm == (2.0, 2.0, 2.0)  # type: ignore[union-attr]
    with torch.no_grad():
        ours = loaded.model.encode_image(expected["x"].permute(0, 1, 4, 3, 2)).study_BD
    assert torch.allclose(ours, expected["found"], atol=1e-5)
    vectors = embed_texts(loaded.model, loaded.tokenizer, ["no lung nodules present", "lung nodules present"])
    assert all(v.shape == (768,) and np.isfinite(v).all() for v in vectors.values())
    out = tmp_path / "features.parquet"
    assert embed(["--model", f"colipri:{folder}@{python}", "--input", str(toy_folder), "--out", str(out)]) == 0
    fine = load_dual(f"colipri:{folder},1mm@{python}", "cpu")
    assert fine.view.size == (64, 64, 64) and fine.geometry.spacing_mm == (1.0, 1.0, 1.0)  # type: ignore[union-attr]
    with torch.no_grad():
        assert fine.model.encode_image(torch.rand(1, 1, 64, 64, 64)).study_BD.shape == (1, 768)
    (folder / "cxr-bert" / "vocab.txt").unlink()
    with pytest.raises(EvalError, match=r"vocab.txt is not in the folder"):
        load_dual(f"colipri:{folder}@{python}", "cpu")
