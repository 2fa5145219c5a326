"""Merlin's checkpoint, of its own names and shapes, as a release that gives Merlin's features."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor

import encoders
from encoders.convert import main
from encoders.convert_merlin import GEOMETRY, VIEW, before_projection, converted, converted_five_year, sanitising
from encoders.errors import ReleaseError
from encoders.release import relocate
from encoders.tokenize import pack

TEXTS = ["No pleural effusion.", "3.5cm cyst (liver segment VII); T2-hyperintense.\n\nUnchanged! " * 60, "Fracture"]
HEAD = "encode_image.i3_resnet.classifier"


def longformer(folder: Path) -> Path:
    """Config of Longformer's kind and true width, two layers deep, and a byte-level tokenizer of RoBERTa's kind."""
    transformers = pytest.importorskip("transformers", reason="extra merlin is not installed")
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=400, special_tokens=special, show_progress=False)
    trained._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {f"{name}_token": special[i] for name, i in {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}.items()}
    transformers.PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **names).save_pretrained(folder)
    transformers.LongformerConfig(
        hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=256, vocab_size=400,
        attention_window=[16, 16], max_position_embeddings=1026, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@dataclass
class Merlin:
    """Their model, random, beside its checkpoint and the folder of its text tower."""

    model: Any
    checkpoint: Path
    text: Path

    def features(self, x_BCDHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, phenotypes and TEXTS, not normalised, of ours: [-1, 1] and D, H, W."""
        with torch.no_grad():
            image, phenotypes = self.model.encode_image((x_BCDHW + 1).mul(0.5).permute(0, 1, 4, 3, 2))
            return image, phenotypes, self.model.encode_text(TEXTS)


def build(folder: Path, depth: tuple[int, ...]) -> Merlin:
    """With `longformer` in the place of what its constructors download."""
    build_py = pytest.importorskip("merlin.models.build", reason="merlin-vlm is not installed (extra merlin)")
    from torchvision.models.resnet import Bottleneck, ResNet
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    text = longformer(folder / "longformer")
    config, tokenizer = AutoConfig.from_pretrained(text), AutoTokenizer.from_pretrained(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_py.torchvision.models, "resnet152", lambda pretrained: ResNet(Bottleneck, list(depth)))
        patch.setattr(build_py.AutoModel, "from_pretrained", lambda name: AutoModel.from_config(config))
        patch.setattr(build_py.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
        torch.manual_seed(0)
        model = build_py.MerlinArchitecture()
    disturb(model, depth)
    torch.save(model.state_dict(), folder / "merlin.pt")
    return Merlin(model.eval(), folder / "merlin.pt", text)


def disturb(model: torch.nn.Module, depth: tuple[int, ...]) -> None:
    """Nothing is zero or one, statistics included."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.add_(torch.rand(value.shape, generator=generator))
            elif value.is_floating_point() and name != "logit_scale":
                value.add_(0.02 * torch.randn(value.shape, generator=generator))
                if name.endswith("bn3.weight"):  # the sum of many blocks stays a number that fp32 has digits for
                    value.mul_(6 / sum(depth))


@pytest.fixture(scope="module")
def merlin(tmp_path_factory: pytest.TempPathFactory) -> Merlin:
    return build(tmp_path_factory.mktemp("merlin"), (2, 2, 2, 2))


def check_release(merlin: Merlin, out: Path) -> None:
    x = torch.rand(2, 1, 32, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    image, phenotypes, text = merlin.features(x)
    assert (image.shape, phenotypes.shape, text.shape) == ((2, 512), (2, 1692), (3, 512))
    assert all(0.1 < float(std) < 100 for std in (image.std(), phenotypes.std(), text.std()))
    assert main([f"merlin:{merlin.checkpoint}", "--text", str(merlin.text), "--out", str(out)]) == 0

    loaded = encoders.load(out)
    assert (loaded.geometry, loaded.view) == (GEOMETRY, VIEW)
    assert loaded.preprocess(torch.zeros(20, 30, 30).numpy(), spacing_mm=(3.0, 1.5, 1.5)).shape == (1, 160, 224, 224)
    close = {"atol": 1e-4, "rtol": 1e-5}
    with torch.no_grad():
        found = loaded.model.encode_image(x, tokens=True, trunk=True)
        assert found.grid == (2, 2, 2)
        assert torch.allclose(found.study_BD, image, **close)
        assert torch.allclose(loaded.heads["phenotypes"](found.trunk_SC), phenotypes, **close)
        assert torch.allclose(loaded.model.encode_units(*pack(TEXTS, loaded.tokenizer)), text, **close)
        assert float(loaded.model.logit_scale) == 1.0

    relocate(out)  # as plain open_clip needs it
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    with torch.no_grad():
        assert torch.allclose(model.eval().encode_image(x), image, **close)
        assert torch.allclose(model.encode_text(tokenizer(TEXTS)), text, **close)
        unit = torch.nn.functional.normalize
        assert torch.allclose(model.encode_image(x, normalize=True), unit(image, dim=-1), atol=1e-5)


def test_release_gives_merlins_features(merlin: Merlin, tmp_path: Path) -> None:
    check_release(merlin, tmp_path / "merlin")


@pytest.mark.full
def test_release_of_the_true_size(tmp_path: Path) -> None:
    whole = build(tmp_path, (3, 8, 36, 3))
    state = torch.load(whole.checkpoint, weights_only=True)
    assert state["encode_image.i3_resnet.layer3.35.conv2.weight"].shape == (256, 256, 3, 3, 3)
    check_release(whole, tmp_path / "merlin")
    name = json.loads((tmp_path / "merlin/open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
    assert name["timm_model_name"] == "i3d_resnet152.i-160x224x224_c-1"


def test_every_tensor_is_accounted_for(merlin: Merlin, tmp_path: Path) -> None:
    state = torch.load(merlin.checkpoint, weights_only=True)
    weights, head, unused = converted(state)
    # Heads and projections: 2 for the image, 2 for phenotypes, 2 for the text of which one is folded in.
    assert len(weights) + len(head.state_dict()) + len(unused) + 1 == len(state)
    assert unused == [f"encode_text.text_encoder.pooler.dense.{part}" for part in ("weight", "bias")]
    stored = {**state, "encode_text.text_encoder.embeddings.position_ids": torch.arange(9)[None]}  # of older versions
    torch.save({"state_dict": {f"module.{k}": v for k, v in stored.items()}}, tmp_path / "old.pt")
    out = tmp_path / "out"
    assert main([f"merlin:{tmp_path / 'old.pt'}", "--text", str(merlin.text), "--out", str(out)]) == 0
    assert "embeddings.position_ids" in json.dumps(encoders.load(out).config["provenance"]["left_aside"])


def five_year(folder: Path, depth: tuple[int, ...] = (2, 2, 2, 2)) -> tuple[Any, Path]:
    """Merlin's five-year disease model, random, and its checkpoint: `i3_resnet` alone, as models/load.py reads it."""
    i3res = pytest.importorskip("merlin.models.i3res", reason="merlin-vlm is not installed (extra merlin)")
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(3)
    flat = ResNet(Bottleneck, list(depth))
    model = i3res.I3ResNet(flat, class_nb=6, conv_class=True, FiveYearPred=True)
    disturb(model, depth)
    torch.save(model.state_dict(), folder / "five.pt")
    return model.eval(), folder / "five.pt"


def test_five_year_model(tmp_path: Path) -> None:
    model, checkpoint = five_year(tmp_path)
    out = tmp_path / "five"
    assert main([f"merlin:{checkpoint}", "--out", str(out)]) == 0
    x = torch.rand(2, 1, 32, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    theirs = (x + 1).mul(0.5).permute(0, 1, 4, 3, 2)
    with torch.no_grad():
        chances = model(theirs)
        model.FiveYearPred, model.ImageEmbedding = False, False
        _, logits = model(theirs)
        model.ImageEmbedding = True
        (embedding,) = model(theirs)
    assert logits.shape == (2, 6) and embedding.shape == (2, 2048) and 0.1 < float(logits.std()) < 100

    loaded = encoders.load(out)
    assert (loaded.kind, loaded.tokenizer, loaded.geometry, loaded.view) == ("timm", None, GEOMETRY, VIEW)
    assert loaded.heads["five_year"].options == {"features": 2048, "outputs": 6}
    plain = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    for tower in (loaded.model, plain):
        with torch.no_grad():
            found = tower(x)
            assert torch.allclose(found, embedding, atol=1e-4, rtol=1e-5)
            assert torch.allclose(loaded.heads["five_year"](found), logits, atol=1e-4, rtol=1e-5)
            assert torch.allclose(loaded.heads["five_year"](found).sigmoid(), chances, atol=1e-4)
    weights, head, unused = converted_five_year(state := torch.load(checkpoint, weights_only=True))
    assert sorted(unused) == ["contrastive_head.bias", "contrastive_head.weight"]
    assert len(weights) + len(head.state_dict()) + len(unused) == len(state)
    assert loaded.config["provenance"]["left_aside"] == unused


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({}, ["--text", "longformer"], "--text is given, and the checkpoint has no text tower"),
        ({"classifier.bias": None}, [], "classifier.bias is missing"),
        ({"classifier.weight": torch.zeros(5, 2048, 1, 1, 1)}, [], "classifier.weight has 5 outputs, not 6"),
        ({"layer4.1.bn1.weight": None}, [], "layer4.1.bn1.weight"),
        ({"teacher.weight": torch.zeros(3)}, [], "teacher.weight"),
    ],
)
def test_other_five_year_checkpoints_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = five_year(tmp_path)
    state = {**torch.load(checkpoint, weights_only=True), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "other.pt")
    assert main([f"merlin:{tmp_path / 'other.pt'}", *words, "--out", str(tmp_path / "out")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encode_text.linear_layer.bias": None}, "encode_text.linear_layer.bias is missing"),
        ({f"{HEAD}.weight": None}, f"{HEAD}.weight is missing"),
        ({f"{HEAD}.weight": torch.zeros(6, 2048, 1, 1, 1)}, f"{HEAD}.weight has 6 outputs, not 1692"),
        ({"encode_image.i3_resnet.bn1.weight": None}, "visual.trunk.bn1.weight"),
        ({"encode_image.i3_resnet.layer4.1.conv1.weight": torch.zeros(3)}, "visual.trunk.layer4.1.conv1.weight"),
        ({"encode_image.i3_resnet.layer4.2.conv1.weight": torch.zeros(3)}, r"stages of \(2, 2, 2, 3\) blocks"),
        ({"encode_image.teacher": torch.zeros(3)}, "encode_image.teacher has no place"),
        ({"encode_text.text_encoder.encoder.layer.1.output.LayerNorm.bias": None}, "not a Longformer"),
    ],
)
def test_other_checkpoints_are_refused(
    merlin: Merlin, tmp_path: Path, change: dict[str, Tensor | None], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {**torch.load(merlin.checkpoint, weights_only=True), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "other.pt")
    out = tmp_path / "out"
    assert main([f"merlin:{tmp_path / 'other.pt'}", "--text", str(merlin.text), "--out", str(out)]) == 1
    assert re.search(says, capsys.readouterr().err)
    assert not out.exists()


def test_a_text_tower_needs_its_tokenizer(merlin: Merlin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"merlin:{merlin.checkpoint}", "--out", str(tmp_path / "out")]) == 1
    assert "--text is missing" in capsys.readouterr().err


def test_command_line_says_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merlin:nowhere.pt", "--text", "x", "--out", str(tmp_path / "out")]) == 1
    assert "no Merlin checkpoint at 'nowhere.pt'" in capsys.readouterr().err
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    assert main([f"merlin:{tmp_path / 'bad.pt'}", "--text", "x", "--out", str(tmp_path / "out")]) == 1
    assert "'bad.pt' is no checkpoint that can be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ct_clip:x.pt", "--text", "x", "--out", "y"])
    assert "with a kind of merlin" in capsys.readouterr().err


def test_texts_are_written_as_merlin_did() -> None:
    """Against the words that Python's `re` finds, which nltk used when Merlin was trained, over the characters of
    Latin, Greek and Cyrillic (of younger letters Pythons differ)."""
    normaliser = sanitising()
    for code in (c for c in (*range(0x20, 0x500), *range(0x2000, 0x2100)) if chr(c) != "Σ"):
        text = f"A{chr(code)}b.{chr(code)}, No 3.5cm"
        assert normaliser.normalize_str(text) == " ".join(re.findall(r"\w+|[^\w\s]+", text.lower())), hex(code)
    nltk = pytest.importorskip("nltk.tokenize", reason="extra merlin is not installed")
    for text in TEXTS:
        assert normaliser.normalize_str(text) == " ".join(nltk.wordpunct_tokenize(text.lower()))


def test_bias_moves_before_the_projection() -> None:
    weight, bias, x = torch.randn(4, 9), torch.randn(4), torch.randn(3, 9)
    shifted = torch.nn.functional.linear(x + before_projection(weight, bias), weight)
    assert torch.allclose(shifted, torch.nn.functional.linear(x, weight, bias), atol=1e-5)
    weight[1] = weight[0]
    with pytest.raises(ReleaseError, match="linearly dependent"):
        before_projection(weight, bias)
    assert float(before_projection(weight, torch.zeros(4)).abs().max()) == 0.0
