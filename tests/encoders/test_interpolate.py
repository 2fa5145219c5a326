"""Interpolated weights: the mean in float64, parents at the ends, a release that ours and open_clip load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file

import encoders
from data_shards.preprocess import Geometry, View
from encoders.dual import DualEncoder, build_dual
from encoders.errors import ReleaseError
from encoders.folder import inspect, read_json
from encoders.interpolate import Pair, mix
from encoders.release import write_release

WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def parents(
    tmp_path: Path, make_dual: Callable[..., DualEncoder], model_cfg: Any, geometry: Geometry, view: View
) -> tuple[Path, Path]:
    """A base and one "tuned" from it."""
    dual = make_dual()
    made = []
    for name in ("base", "tuned"):
        provenance = {"name": f"the {name}", "licence": f"licence of {name}"}
        state = dual.clip.state_dict()
        made.append(write_release(tmp_path / name, state, dual.model_cfg, geometry, view, provenance=provenance))
        with torch.no_grad():
            for parameter in dual.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return made[0], made[1]


def test_the_mean_is_that_of_float64() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        base, tuned = (torch.randn(50, 7).to(dtype) for _ in range(2))
        for alpha in (0.1, 0.3, 0.5, 0.9):
            exact = (1 - alpha) * base.double() + alpha * tuned.double()
            assert torch.equal(mix(base, tuned, alpha), exact.to(dtype))
        assert torch.equal(mix(base, tuned, 0.0), base) and torch.equal(mix(base, tuned, 1.0), tuned)
    counts = torch.tensor([3]), torch.tensor([8])
    assert all(torch.equal(mix(*counts, alpha), counts[1]) for alpha in (0.0, 0.5, 1.0))


def test_the_merged_release_loads_and_names_its_parents(parents: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = (load_file(folder / WEIGHTS) for folder in parents)
    pair = Pair(*parents)
    out = pair.write(tmp_path / "merged", 0.3)
    stored = load_file(out / WEIGHTS)
    assert stored.keys() == base.keys() and "logit_scale" in stored
    for name, value in stored.items():
        if value.is_floating_point():
            exact = 0.7 * base[name].double() + 0.3 * tuned[name].double()
            assert torch.equal(value, exact.to(value.dtype)), name
    loaded = encoders.load(str(out))
    assert all(torch.equal(value, stored[name]) for name, value in loaded.model.clip.state_dict().items())
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert all(torch.equal(value, stored[name]) for name, value in theirs.state_dict().items())

    provenance = read_json(out / "open_clip_config.json")["provenance"]
    assert provenance["merged"]["alpha"] == 0.3
    assert provenance["merged"]["base_sha256"] == inspect(parents[0]).sha256 == pair.base_sha256
    assert provenance["merged"]["tuned_sha256"] == encoders.load(str(parents[1])).sha256
    assert provenance["licence"] == "licence of base; licence of tuned"
    assert "the base + 0.3 (the tuned − the base)" in (out / "README.md").read_text()


def test_parents_stand_at_the_ends(parents: tuple[Path, Path], tmp_path: Path) -> None:
    pair = Pair(*parents)
    for alpha, parent in zip((0.0, 1.0), parents):
        out = pair.write(tmp_path / f"at{alpha}", alpha)
        assert (out / WEIGHTS).read_bytes() == (parent / WEIGHTS).read_bytes()
    model = encoders.load(str(parents[1])).model
    pair.set(model.clip, 0.0)
    base = load_file(parents[0] / WEIGHTS)
    assert all(torch.equal(value, base[name]) for name, value in model.clip.state_dict().items())
    with pytest.raises(ReleaseError, match="not from 0 to 1"):
        next(pair.tensors(1.1))


def test_integer_buffers_are_the_tuned_ones(tmp_path: Path, make_dual: Callable[..., DualEncoder], planar: Any) -> None:
    """A tower with batch norm counts its batches; its running statistics are interpolated."""
    dual = make_dual(
        {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
    )
    folders = []
    for name, count in (("base", 3), ("tuned", 8)):
        state = {k: v.clone() for k, v in dual.clip.state_dict().items()}
        for key in state:
            if key.endswith("num_batches_tracked") or key.endswith("running_mean"):
                state[key] += count
        folders.append(write_release(tmp_path / name, state, dual.model_cfg, planar, View("resize")))
    pair = Pair(*folders)
    merged = dict(pair.tensors(0.5))
    counters = [name for name in merged if name.endswith("num_batches_tracked")]
    assert counters and pair.from_tuned() == sorted(counters)
    assert all(int(merged[name]) == 8 for name in counters)
    assert all(torch.all(v == 5.5) for k, v in merged.items() if k.endswith("running_mean"))


def test_other_models_are_refused_with_what_differs(
    parents: tuple[Path, Path], tmp_path: Path, make_dual: Callable[..., DualEncoder], geometry: Geometry, view: View
) -> None:
    windows = dataclasses.replace(geometry, windows=((-1000.0, 200.0), (-160.0, 200.0)))
    wide = make_dual(width=64)
    same = make_dual()
    others = {
        "volume_cfg.geometry": write_release(tmp_path / "w", same.clip.state_dict(), same.model_cfg, windows, view),
        "model_cfg.text_cfg.width": write_release(
            tmp_path / "t", wide.clip.state_dict(), wide.model_cfg, geometry, view
        ),
    }
    for key, folder in others.items():
        with pytest.raises(ReleaseError, match=f"differ in .*{key}"):
            Pair(parents[0], folder)


def test_a_release_is_not_written_over(parents: tuple[Path, Path], tmp_path: Path) -> None:
    pair = Pair(*parents)
    pair.write(tmp_path / "merged", 0.5)
    before = json.loads((tmp_path / "merged" / "release.json").read_text())
    with pytest.raises(ReleaseError, match="exists"):
        pair.write(tmp_path / "merged", 0.6)
    assert json.loads((tmp_path / "merged" / "release.json").read_text()) == before
    pair.write(tmp_path / "merged", 0.6, overwrite=True)
    assert read_json(tmp_path / "merged" / "open_clip_config.json")["provenance"]["merged"]["alpha"] == 0.6


def test_a_hugging_face_tower_keeps_its_files(tmp_path: Path, model_cfg: Any, planar: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    bert = tmp_path / "tiny-bert"
    bert.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "left", "effusion", "."]
    (bert / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast.from_pretrained(bert).save_pretrained(bert)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **size)).save_pretrained(bert)
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_pooler_type": "cls_pooler"}
    config = {**model_cfg("resnet10t"), "text_cfg": {**text, "context_length": 16}}
    dual = build_dual(config)
    folders = [write_release(tmp_path / "base", dual.clip.state_dict(), config, planar, View("resize"))]
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter += 0.1
    folders.append(write_release(tmp_path / "tuned", dual.clip.state_dict(), config, planar, View("resize")))
    loaded = encoders.load(str(Pair(*folders).write(tmp_path / "merged", 0.5)))
    assert loaded.tokenizer is not None and len(loaded.tokenizer("no left effusion .")) == 6
    merged, base = loaded.model.clip.state_dict(), load_file(folders[0] / WEIGHTS)
    name = "text.transformer.embeddings.word_embeddings.weight"
    torch.testing.assert_close(merged[name], base[name] + 0.05)
