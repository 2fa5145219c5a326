"""The list of kinds, controls, and refusals that say what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval_zero_shot import EvalError
from eval_zero_shot.embed import main as embed
from eval_zero_shot.models import KINDS, short_name, split_spec
from eval_zero_shot.models.__main__ import main as models
from eval_zero_shot.release import load_dual, load_release


def test_what_is_not_there_is_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "open_clip_config.json").write_text("{}")
    for spec, match in (
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32/nonsense", "neither a pretrained tag"),
        ("open_clip:ViT-Q-9/openai", "no architecture"),
        (f"open_clip:local-dir:{tmp_path / 'empty'}", "no open_clip_config.json"),
        (f"open_clip:local-dir:{tmp_path / 'half'}", "no weights"),
        (f"hf:{tmp_path / 'empty'}", "cannot be loaded"),
        ("random:nothing_of_this_name", "cannot be loaded"),
        ("pixels:sound", "images or volumes"),
        ("merlin:/nowhere.pt", "no Merlin checkpoint"),
        ("colipri:/nowhere", "names no Python"),
        ("process:/nowhere.py@/bin/python", "no wrapper"),
        ("clip:ViT-B-32", "names no model"),
        ("ViT-B-32", "write open_clip:ViT-B-32/TAG"),
        ("resnet50", "write timm:resnet50"),
    ):
        with pytest.raises(EvalError, match=match) as error:
            load_release(spec, "cpu")
        assert "fix: " in str(error.value), spec
    assert models(["--check", "open_clip:ViT-B-32"]) == 1
    assert "laion2b_s34b_b79k" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "extra"), [("transformers", "hf"), ("merlin", "merlin")])
def test_a_package_that_is_not_installed_is_named(
    package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what an import finds where it is not installed
    for name in [n for n in sys.modules if n.startswith("merlin.")]:  # another test may have imported them
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "file.pt").touch()
    spec = f"hf:{tmp_path}" if extra == "hf" else f"merlin:{tmp_path / 'file.pt'}"
    with pytest.raises(EvalError, match=f"{package}.*\n.*\n.*pip install 'voxclip.{extra}.'"):
        load_release(spec, "cpu")


def test_image_towers_alone_have_no_zero_shot() -> None:
    with pytest.raises(EvalError, match="image tower alone"):
        load_dual("random:test_vit", "cpu")


def test_timm_and_controls_give_features(image_shards: Path, toy_folder: Path, tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_vit"), tmp_path / "tower", safe_serialization=True)
    seen = {}
    for spec, data in (
        (f"timm:{tmp_path / 'tower'}", image_shards),
        ("random:test_vit", image_shards),
        ("pixels:image", image_shards),
        ("pixels:ct", toy_folder),
    ):
        out = tmp_path / f"{len(seen)}.parquet"
        assert embed(["--model", spec, "--input", str(data), "--out", str(out)]) == 0
        seen[spec] = np.stack(pq.read_table(out)["features"].to_pylist())
    assert seen["pixels:image"].shape == (12, 256)
    assert load_release("random:test_vit", "cpu").sha256 == load_release("random:test_vit", "cpu").sha256
    assert load_release("pixels:volume", "cpu").geometry.windows_in == "percentile"
    assert seen["pixels:ct"].shape == (25, 512)


def test_names_and_the_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert models([]) == 0
    told = capsys.readouterr().out
    assert all(f"{kind}:" in told for kind in KINDS)
    assert models(["--check", "random:test_vit", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "image tower alone" in told and "image, 3 x 160 x 160" in told
    assert split_spec("release/dir") is None and split_spec("s3://bucket") is None
    assert split_spec("open_clip:ViT-B-32/openai") == ("open_clip", "ViT-B-32/openai")
    assert short_name("open_clip", "ViT-B-32/openai") == "open_clip:ViT-B-32/openai"
    assert short_name("colipri", f"{tmp_path},1mm@/x/python") == f"colipri:{tmp_path.name},1mm"
    assert short_name("hf", "openai/clip-vit-base-patch32") == "hf:openai/clip-vit-base-patch32"
