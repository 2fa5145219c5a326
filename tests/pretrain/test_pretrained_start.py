"""`model.pretrained` and `model.image.pretrained`: open_clip's weights, by tag or file, for both towers or one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn

import encoders
from encoders.dual import build_dual
from encoders.errors import ReleaseError
from encoders.open_clip_start import start_from_open_clip
from pretrain import build
from pretrain.config import load_recipe, smoke
from pretrain.errors import ConfigError

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def published() -> CLIP:
    """A small model of open_clip's own class, whose text tower lies beside, not in, `text`."""
    torch.manual_seed(1)
    return CLIP(16, VISION, TEXT, quick_gelu=True).eval()


def dual(text: dict[str, Any] | None = None, **vision: Any) -> Any:
    torch.manual_seed(0)
    cfg = {"embed_dim": 16, "custom_text": True, "quick_gelu": True, "vision_cfg": {**VISION, **vision}}
    return build_dual({**cfg, "text_cfg": {**TEXT, **(text or {})}}).eval()


def saved(model: nn.Module, path: Path, **changes: Tensor | None) -> str:
    """The state dict as a file, some tensors changed or (None) left out."""
    state = {name: value.clone() for name, value in model.state_dict().items()} | changes
    state = {name: value for name, value in state.items() if value is not None}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    return str(path)


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_both_towers_give_what_the_published_model_gives(published: CLIP, tmp_path: Path, suffix: str) -> None:
    model = dual()
    told = start_from_open_clip(model.clip, "ViT-B-16-quickgelu", saved(published, tmp_path / f"w{suffix}"), "both")
    assert told.filled == len(model.clip.state_dict()) and not told.aside and not told.resized
    ids = open_clip.tokenize(["a lung", "no effusion at all"], 16)
    with torch.no_grad():
        assert torch.equal(model.clip.encode_image(images()), published.encode_image(images()))
        assert torch.equal(model.clip.encode_text(ids), published.encode_text(ids))
    assert torch.equal(model.clip.logit_scale, published.logit_scale)


def test_the_image_tower_alone_leaves_the_text_tower_as_it_was(published: CLIP, tmp_path: Path) -> None:
    model = dual({"width": 48})
    before = copy.deepcopy(model.clip.text.state_dict())
    told = start_from_open_clip(model.clip, "ViT-B-16-quickgelu", saved(published, tmp_path / "w.pt"), "image")
    assert all(torch.equal(value, before[name]) for name, value in model.clip.text.state_dict().items())
    assert {name.partition(".")[0] for name in told.aside} == {"logit_scale", "text"}
    assert "left aside: 18 of logit_scale, text" in str(told)
    with torch.no_grad():
        assert torch.equal(model.clip.encode_image(images()), published.encode_image(images()))


def test_positions_of_other_sizes_are_interpolated_and_said(published: CLIP, tmp_path: Path) -> None:
    model = dual({"context_length": 24}, image_size=48)
    told = start_from_open_clip(model.clip, "ViT-B-16-quickgelu", saved(published, tmp_path / "w.pt"), "both")
    assert told.resized == ("text.positional_embedding", "visual.positional_embedding")
    assert "visual.positional_embedding interpolated" in str(told)
    got = model.clip.visual.positional_embedding
    assert got.shape == (10, 64) and torch.equal(got[0], published.visual.positional_embedding[0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"visual.ln_pre.bias": None}, "1 missing: visual.ln_pre.bias"),
        ({"visual.extra": torch.zeros(1)}, "1 unexpected: visual.extra"),
        ({"visual.proj": torch.zeros(64, 8)}, r"1 of another shape: visual.proj \(64, 8\) for \(64, 16\)"),
        ({"visual.positional_embedding": torch.zeros(5, 32)}, r"positional_embedding \(5, 32\) for \(5, 64\)"),
    ],
)
def test_every_key_that_does_not_fit_is_listed(
    published: CLIP, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    model = dual()
    before = copy.deepcopy(model.clip.state_dict())
    with pytest.raises(ReleaseError, match=says):
        start_from_open_clip(model.clip, "ViT-B-16-quickgelu", saved(published, tmp_path / "w.pt", **changes), "both")
    assert all(torch.equal(value, before[name]) for name, value in model.clip.state_dict().items())


def test_no_tag_no_file_and_no_tensors(tmp_path: Path) -> None:
    model = dual().clip
    with pytest.raises(ReleaseError, match=r"neither a file nor weights .*\n.*\n.*metaclip_400m"):
        start_from_open_clip(model, "ViT-B-16-quickgelu", "metaclip_500m", "image")
    with pytest.raises(ReleaseError, match=r"trained with QuickGELU, ViT-B-16 has the other\n.*\n.*ViT-B-16-quickgelu"):
        start_from_open_clip(model, "ViT-B-16", "metaclip_400m", "image")
    torch.save({"a": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(ReleaseError, match=r"'code.pt' cannot be read as tensors"):
        start_from_open_clip(model, "ViT-B-16", str(tmp_path / "code.pt"), "image")


def test_a_tag_is_fetched_as_open_clip_does(published: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    file = saved(published, tmp_path / "w.safetensors")
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda cfg: (asked.append(cfg), file)[1])
    told = start_from_open_clip(dual().clip, "ViT-B-16-quickgelu", "metaclip_400m", "image")
    assert "metaclip" in asked[0]["hf_hub"] and told.filled

    def offline(cfg: dict[str, Any]) -> str:
        raise OSError("no network here")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", offline)
    with pytest.raises(ReleaseError, match="cannot be fetched: no network here"):
        start_from_open_clip(dual().clip, "ViT-B-16-quickgelu", "metaclip_400m", "image")


FLAT = ["model.image.name=ViT-S-32", "model.image.token_dropout=0", "model.image.image_size=32"]


def recipe_words(data: dict[str, Any], *words: str) -> list[str]:
    import json

    return [f"data={json.dumps(data)}", *FLAT, 'objectives=[{"name": "contrastive"}]', *words]


@pytest.mark.parametrize("whole", [True, False])
def test_a_recipe_starts_from_a_file(
    tiny: Any, radiograph_data: dict[str, Any], tmp_path: Path, whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    theirs = open_clip.create_model("ViT-S-32", force_image_size=32)
    file = saved(theirs, tmp_path / "w.safetensors")
    words = ["model.text={width: 384, heads: 6, layers: 12, context_length: 77}", "model.embed_dim=384"]
    key = "model.pretrained" if whole else "model.image.pretrained"
    if not whole:
        words = ["model.embed_dim=384"]
    recipe = load_recipe(tiny.recipe, recipe_words(radiograph_data, *words, f"{key}={file}"))
    model = build.build_model(recipe)
    assert torch.equal(model.clip.visual.conv1.weight, theirs.visual.conv1.weight)
    assert f"start    {file}:" in capsys.readouterr().out
    if whole:
        assert torch.equal(model.clip.text.ln_final.bias, theirs.ln_final.bias)
    resumed = build.build_model(recipe, with_init=False)
    assert not torch.equal(resumed.clip.visual.conv1.weight, theirs.visual.conv1.weight)
    small = smoke(recipe)
    assert (small.model.pretrained, small.model.image.pretrained) == (None, False)
    with pytest.raises(ConfigError, match=f"{key}: '.*' does not fit the model"):
        build.build_model(load_recipe(tiny.recipe, recipe_words(
            radiograph_data, *words, f"{key}={file}", "model.image.name=ViT-S-16")))  # fmt: skip


def test_a_clip_image_tower_beside_bert_becomes_a_release(
    make_fit: Any, radiograph_data: dict[str, Any], tmp_path: Path
) -> None:
    """UniMed-CLIP's pair: weights of open_clip, a BERT by folder, its first token, two layers without bias."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    (tmp_path / "bert").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "nodule", "heart", "large", "spleen", "0", "1", "."]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **size), add_pooling_layer=False)
    bert.save_pretrained(tmp_path / "bert")
    file = saved(open_clip.create_model("ViT-S-32", force_image_size=32), tmp_path / "w.safetensors")
    text = {"hf_name": str(tmp_path / "bert"), "hf_pooler": "cls_last_hidden_state_pooler", "context_length": 256}
    image = {"name": "ViT-S-32", "image_size": 32, "pretrained": file, "token_dropout": 0.0}
    train = {"steps": 1, "batch_size": 4, "precision": "fp32", "accelerator": "cpu"}
    runs = make_fit(
        tmp_path, data=radiograph_data, train=train, optim={"warmup_steps": 0, "lr": 1e-3},
        model={"image": image, "text": text, "embed_dim": 384}, objectives=[{"name": "contrastive"}],
        checkpoint={"every_steps": 1},
    )  # fmt: skip
    assert runs("run") == 0
    release = encoders.load(runs.folder("run") / "release")
    tower = release.model.clip.text
    assert [tuple(p.shape) for p in tower.proj.parameters()] == [(208, 32), (384, 208)]
    ids = torch.tensor([release.tokenizer("Film 1. heart large")])
    with torch.no_grad():
        first = tower.transformer(ids, torch.ones_like(ids)).last_hidden_state[:, 0]
        torch.testing.assert_close(tower(ids), tower.proj(first))
    moved = tower.transformer.state_dict()["embeddings.word_embeddings.weight"] - bert.embeddings.word_embeddings.weight
    assert 0 < moved.abs().max() < 0.01, "one step from the folder's weights"


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (["model.image.pretrained=true"], "model.image.pretrained", "several weights for 'ViT-S-32'"),
        (["model.image.pretrained=gone.pt"], "model.image.pretrained", "no file 'gone.pt'"),
        (["model.image.pretrained=x", "model.image.name=resnet18"], "model.image.pretrained", "no open_clip model"),
        (["model.pretrained=x", "model.image.name=resnet18"], "model.pretrained", "no open_clip model"),
        (["model.pretrained=x"], "model.text.width", "the text tower of 'ViT-S-32' has 384"),
        (["model.pretrained=x"], "model.embed_dim", "'ViT-S-32' has 384"),
        (["model.pretrained=x", "model.text.hf_name=bert"], "model.pretrained", "hf_name is another one"),
        (["model.pretrained=x", "model.image.name=ViT-B-16-SigLIP"], "model.pretrained", "pool_type"),
        (["model.pretrained=x", "model.image.pretrained=y"], "model.image.pretrained", "overwrite each other"),
        (["model.pretrained=x", "model.init=y"], "model.pretrained", "overwrite each other"),
    ],
)
def test_recipes_are_refused_before_torch(
    tiny: Any, radiograph_data: dict[str, Any], words: list[str], key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(tiny.recipe, recipe_words(radiograph_data, *words))
    told = str(caught.value).split(f"{key}  (")
    assert len(told) > 1, str(caught.value)
    assert any(says in part.split("\n\n")[0] for part in told[1:]), str(caught.value)
