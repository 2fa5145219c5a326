"""Merlin's checkpoint (arXiv 2406.06512) as a release with the same features (encoders.convert).

What differs is folded in exactly. Image: Merlin repeats its one channel three times, so the stem's kernels are summed;
it reads x before y, so every kernel changes these two axes; HU are scaled to [0, 1], which the tower does itself
(encoders.resnet3d). Text: open_clip's projection has no bias, so the bias moves into the last LayerNorm; lower case and
spaces around punctuation move into the tokenizer.

The five-year disease model is published as its image tower alone (merlin-vlm, models/load.py), and becomes a release of
timm's kind.

Legend: O, I output and input channels of a kernel, D, H, W its sides.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.preprocess import Geometry, View
from encoders.errors import ReleaseError
from encoders.heads import describe_head
from encoders.heads.linear import LinearHead
from encoders.release import write_release, write_timm_release
from encoders.tag_resnet3d import DEPTHS, ResNetTag

TEXT_LENGTH = 1024
# RAS, 1.5 x 1.5 x 3 mm, linear without antialiasing, -1000..1000 HU, middle of 224 x 224 x 160, padded by -1000 HU.
GEOMETRY = Geometry(spacing_mm=(3.0, 1.5, 1.5), antialias=False, pad_hu=-1000.0, windows=((-1000.0, 1000.0),))
VIEW = View("centre", (160, 224, 224))
HEADS = {"phenotypes": 1692, "five_year": 6}  # name in heads.json -> outputs of Merlin's classifier

IMAGE, TEXT, LINEAR = "encode_image.i3_resnet.", "encode_text.text_encoder.", "encode_text.linear_layer."
# What Merlin does not use: its features are the first state, not the pooler's; places are counted, not stored.
UNUSED = (f"{TEXT}pooler.", f"{TEXT}embeddings.position_ids")
# Of the five-year model: it returns the classifier's output alone.
UNUSED_FIVE_YEAR = ("contrastive_head.",)
_WHY = "part of the model would be random or lost"
_FIX = (
    "i3_resnet_clinical_longformer_best_clip_*.pt or resnet_clinical_longformer_five_year_disease_prediction.pt of "
    "stanfordmimi/Merlin"
)


def convert(file: str, text: str | None, out: str | Path, overwrite: bool = False) -> list[str]:
    """Write the release and return what there is to say about it.

    Args:
        file: Merlin's checkpoint, or that of its five-year disease model.
        text: folder (or hub name) with Clinical-Longformer's config.json and tokenizer; None for the five-year model.

    Raises:
        ReleaseError: no checkpoint of Merlin's names and shapes, a key that has no place, no text tower's files, text
            tower's files for a checkpoint without one, or `out` exists.
    """
    path = Path(file).expanduser()
    stored = _read(path)
    if alone := "conv1.weight" in stored:  # the image tower's own names
        name, (weights, head, unused) = "five_year", converted_five_year(stored)
    else:
        name, (weights, head, unused) = "phenotypes", converted(stored)
    if alone != (text is None):
        raise ReleaseError(
            "--text is given, and the checkpoint has no text tower" if alone else "--text is missing",
            "it would be ignored" if alone else "the checkpoint holds the weights of its text tower, not its tokenizer",
            "leave it out" if alone else "give a folder with config.json and tokenizer of yikuan8/Clinical-Longformer",
        )
    beside: dict[str, Any] = {
        "heads": {name: describe_head(head)},
        "head_weights": {f"{name}.{key}": value for key, value in head.state_dict().items()},
        "provenance": {
            "name": "Merlin",
            "converted_from": path.name,
            "converted_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "left_aside": unused,
            "reference": "arXiv 2406.06512",
        },
        "overwrite": overwrite,
    }
    if text is None:
        write_timm_release(out, weights, _tower(stored, "").name, GEOMETRY, VIEW, **beside)
        plain = f"timm.create_model('local-dir:{out}', pretrained=True)"
    else:
        with tempfile.TemporaryDirectory() as aside:
            write_text_tower(text, Path(aside))
            cfg = model_cfg(_tower(stored, IMAGE).name, len(weights["text.proj.weight"]), aside)
            write_release(out, weights, cfg, GEOMETRY, VIEW, **beside)
        plain = f"for plain open_clip first python -m encoders.release --relocate {out}"
    return [
        f"converted {len(stored) - len(unused)} of {len(stored)} tensors to {out}, head '{name}' in heads.safetensors",
        *(f"left aside, not used by Merlin: {key}" for key in unused),
        f"load it: encoders.load('{out}'); {plain}",
    ]


def converted(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LinearHead, list[str]]:
    """Weights of the dual encoder, the classifier, and the names of the tensors that are left aside.

    Raises:
        ReleaseError: a tensor is missing, or has no place.
    """
    weights: dict[str, Tensor] = {}
    unused = []
    heads = {f"{IMAGE}{name}.{part}" for name in ("contrastive_head", "classifier") for part in ("weight", "bias")}
    single = {*heads, f"{LINEAR}weight", f"{LINEAR}bias", "logit_scale"}
    missing = sorted(single - set(stored))
    if missing:
        raise ReleaseError(f"the checkpoint is not Merlin's: {missing[0]} is missing", _WHY, _FIX)
    for key, value in stored.items():
        if key.startswith(UNUSED):
            unused.append(key)
        elif key in single:
            continue
        elif key.startswith(IMAGE):
            name = key.removeprefix(IMAGE)
            weights[f"visual.trunk.{name}"] = _turned(name, value)
        elif key.startswith(TEXT):
            weights[f"text.transformer.{key.removeprefix(TEXT)}"] = value
        else:
            raise ReleaseError(f"the checkpoint is not Merlin's: {key} has no place", _WHY, _FIX)
    weights["visual.head.proj.weight"] = stored[f"{IMAGE}contrastive_head.weight"].flatten(1)
    weights["visual.head.proj.bias"] = stored[f"{IMAGE}contrastive_head.bias"]
    weights["text.proj.weight"] = stored[f"{LINEAR}weight"]
    last = _last_norm(weights)
    weights[last] = weights[last] + before_projection(stored[f"{LINEAR}weight"], stored[f"{LINEAR}bias"])
    weights["logit_scale"] = stored["logit_scale"]
    return weights, _classifier(stored, IMAGE, HEADS["phenotypes"]), unused


def converted_five_year(stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LinearHead, list[str]]:
    """Weights of the image tower alone, the classifier of six diseases (logits; merlin-vlm returns their sigmoid), and
    the names of the tensors that are left aside. A key that has no place is left for the tower to refuse.

    Raises:
        ReleaseError: the classifier is missing, or has another width.
    """
    head = _classifier(stored, "", HEADS["five_year"])
    unused = [key for key in stored if key.startswith(UNUSED_FIVE_YEAR)]
    rest = stored.keys() - {*unused, "classifier.weight", "classifier.bias"}
    return {key: _turned(key, stored[key]) for key in rest}, head, unused


def _classifier(stored: Mapping[str, Tensor], before: str, outputs: int) -> LinearHead:
    """The 1×1×1 convolution `classifier` below a prefix as a linear layer."""
    names = [f"{before}classifier.{part}" for part in ("weight", "bias")]
    if missing := [name for name in names if name not in stored]:
        raise ReleaseError(f"the checkpoint is not Merlin's: {missing[0]} is missing", _WHY, _FIX)
    kernel, bias = (stored[name] for name in names)
    if len(kernel) != outputs:
        raise ReleaseError(
            f"the checkpoint is not Merlin's: {names[0]} has {len(kernel)} outputs, not {outputs}",
            "nothing says what they are of",
            _FIX,
        )
    head = LinearHead(kernel.shape[1], outputs)
    head.load_state_dict({"layer.weight": kernel.flatten(1), "layer.bias": bias})
    return head


def _turned(name: str, value: Tensor) -> Tensor:
    """A kernel [O, I, D, W, H] of Merlin's as [O, I, D, H, W]; the stem's for one channel instead of three equal ones.
    Strides and padding are alike in plane, so the whole tower turns with its kernels. name: in the image tower."""
    if value.ndim != 5:
        return value
    return (value.sum(1, keepdim=True) if name == "conv1.weight" else value).transpose(3, 4).contiguous()


def _last_norm(weights: Mapping[str, Tensor]) -> str:
    layers = [int(k.split(".")[4]) for k in weights if k.startswith("text.transformer.encoder.layer.")]
    name = f"text.transformer.encoder.layer.{max(layers, default=0)}.output.LayerNorm.bias"
    if name not in weights:
        raise ReleaseError("the checkpoint's text tower is not a Longformer: it has no last LayerNorm", _WHY, _FIX)
    return name


def before_projection(weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """The smallest shift s [I] with W s = b, so that W (x + s) = W x + b: the bias of a projection that has none.

    Raises:
        ReleaseError: the rows of W are dependent and b is not reached.
    """
    weight, bias = weight_OI.double(), bias_O.double()
    shift = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0]
    if float((weight @ shift - bias).norm()) > 1e-6 * max(float(bias.norm()), 1e-30):
        raise ReleaseError(
            "the bias of the text projection cannot be moved before it: its rows are linearly dependent",
            "open_clip's projection has no bias, and every text would be shifted",
            "use the checkpoint through eval_zero_shot (--model merlin:FILE,FOLDER)",
        )
    return shift.to(bias_O.dtype)


def _tower(stored: Mapping[str, Tensor], before: str) -> ResNetTag:
    """Which ResNet lies below a prefix."""
    blocks: list[set[str]] = [set(), set(), set(), set()]
    for key in stored:
        stage, _, rest = key.removeprefix(f"{before}layer").partition(".")
        if key.startswith(f"{before}layer") and stage in "1234":
            blocks[int(stage) - 1].add(rest.partition(".")[0])
    depth = tuple(len(b) for b in blocks)
    for size, known in DEPTHS.items():
        if depth == known:
            return ResNetTag(size=size, grid=VIEW.size, channels=1)  # type: ignore[arg-type]
    raise ReleaseError(f"the checkpoint is not Merlin's: stages of {depth} blocks", _WHY, _FIX)


def model_cfg(image: str, dimension: int, text: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of Merlin's two towers."""
    return {
        "embed_dim": dimension,
        "custom_text": True,
        "init_logit_scale": 1.0,
        "vision_cfg": {
            "timm_model_name": image, "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
            "timm_proj_bias": True, "image_size": VIEW.size[-1],
        },
        "text_cfg": {
            "hf_model_name": text, "hf_tokenizer_name": text, "hf_model_pretrained": False, "hf_proj_type": "linear",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": TEXT_LENGTH,
        },
    }  # fmt: skip


def write_text_tower(text: str, folder: Path) -> None:
    """Config and tokenizer of the text tower, whose tokenizer writes a text as Merlin did before it reads it."""
    try:
        from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

        config = AutoConfig.from_pretrained(text, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
    except (ImportError, OSError, ValueError, AttributeError) as error:
        raise ReleaseError(
            f"config and tokenizer of the text tower cannot be had ({type(error).__name__})",
            "the checkpoint holds its weights alone",
            "pip install 'voxclip[hf]'; --text: a folder with config.json and tokenizer of yikuan8/Clinical-Longformer",
        ) from error
    backend.normalizer = sanitising(backend.normalizer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=TEXT_LENGTH, **tokenizer.special_tokens_map
    )
    config.save_pretrained(folder)
    whole.save_pretrained(folder)


def sanitising(first: Any = None) -> Any:
    """Merlin's `sanitize_report` as a normaliser: lower case, and one space between words and punctuation, as nltk's
    `wordpunct_tokenize` finds them with Python's `re`. Only Greek words that end in a capital sigma differ."""
    from tokenizers import Regex, normalizers

    word, mark = r"[\p{L}\p{N}_]", r"[^\p{L}\p{N}_\s]"
    steps = [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(rf"(?<={word})(?={mark})|(?<={mark})(?={word})"), " "),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    return normalizers.Sequence([*steps, *([] if first is None else [first])])


def _read(path: Path) -> dict[str, Tensor]:
    """State dict of the checkpoint by Merlin's names."""
    if not path.is_file():
        raise ReleaseError(f"no Merlin checkpoint at '{path.name}'", "there is nothing to convert", f"download {_FIX}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        stored = stored.get("state_dict", stored)
        return {key.removeprefix("module.").removeprefix("model."): value for key, value in stored.items()}
    except Exception as error:  # whatever pickle and torch raise
        raise ReleaseError(
            f"'{path.name}' is no checkpoint that can be read ({type(error).__name__})",
            "it is read without executing it, and holds something else than tensors, or is damaged",
            f"download {_FIX}",
        ) from error
