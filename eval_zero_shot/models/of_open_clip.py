"""open_clip models of every kind, with their own preprocessing, tokenizer and padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_shards.geometry import PlanarGeometry, View
from encoders.dual import DualEncoder
from encoders.features import ImageFeatures, TextFeatures
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models.adapter import building, image_features, loaded, padded, remembered, text_features

if TYPE_CHECKING:
    from encoders.loading import Loaded
    from eval_zero_shot.embedding import PackedTexts

PACKAGES = ("open_clip_torch", "timm", "transformers")
SCHEMAS = ("local-dir:", "hf-hub:")


class OpenClip(DualEncoder):
    """Both towers as open_clip itself calls them. Texts come padded to the context, as open_clip's tokenizers give
    them: towers that are not causal and do not mask see the padding, so it is part of their numbers."""

    def encode_image(
        self,
        images: torch.Tensor,
        tokens: bool = False,
        trunk: bool = False,
        levels: Sequence[int] = (),
        kept: bool = False,
    ) -> ImageFeatures:
        if tokens or trunk or levels or kept:
            return super().encode_image(images, tokens, trunk, levels, kept)
        return image_features(self.clip.encode_image(images))

    def encode_text(self, text: PackedTexts) -> TextFeatures:
        return text_features(self.clip.encode_text(padded(text, self.pad_id)[0]), text)


def load(kind: str, rest: str, device: str) -> Loaded:
    """ARCH/TAG, ARCH/FILE, local-dir:DIR or hf-hub:NAME. Never with random weights.

    Raises EvalError: no such model, tag or file, weights that do not fit, or preprocessing this package cannot repeat.
    """
    import open_clip

    if rest.startswith(SCHEMAS):
        name, weights = rest, None
        if rest.startswith("local-dir:"):
            _check_folder(Path(rest.partition(":")[2]).expanduser())
    else:
        name, _, tag = rest.partition("/")
        weights = _weights(name, tag)
    fix = "check the name; a hub has to be reachable for tags and hub names, or give files that lie here: "
    fix += "open_clip:ARCH/FILE or open_clip:local-dir:DIR. HF_HUB_OFFLINE=1 spares the minute of retries"
    with building(f"open_clip's {rest}", fix):
        model: Any = open_clip.create_model(
            name, pretrained=weights, require_pretrained=True, weights_only=True, precision="fp32"
        )
        tokenizer = open_clip.get_tokenizer(name)
        cfg = open_clip.get_model_config(name)
    return of_model(model, cfg, tokenizer, device)


def of_model(model: Any, cfg: dict[str, Any], tokenizer: Any, device: str) -> Loaded:
    """An open_clip model that is there already, under the interface of the protocols."""
    geometry = planar_geometry(model.visual.preprocess_cfg)
    about = {"package": "open_clip", "model_cfg": cfg, "class": type(model).__name__}
    about["text_context"] = tokenizer.context_length
    ids = remembered(lambda text: tokenizer([text])[0].tolist())
    return loaded(OpenClip(model, cfg), geometry, View("centre"), ids, about, device, PACKAGES)


def planar_geometry(cfg: dict[str, Any]) -> PlanarGeometry:
    """open_clip's evaluation transform as our geometry: the same tensor for every image of 8 bits a channel. Deeper
    greys are scaled by percentiles of the image, where open_clip would clip them to white.

    Raises EvalError for a transform that has no such geometry.
    """
    size = cfg.get("size", 224)
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    interpolation = "bilinear" if cfg.get("interpolation") == "bilinear" else "bicubic"  # "random": in training alone
    if len(height_width) != 2 or (cfg.get("resize_mode") == "longest" and cfg.get("fill_color", 0) != 0):
        raise EvalError(
            f"open_clip's preprocessing {cfg} cannot be repeated here",
            why="the model would see other pixels than in training",
            fix="volumes: wrap the model as a process (docs/models.md); images: fill_color 0",
        )
    mean, std = (tuple(v) if isinstance(v, list | tuple) else (v,) * 3 for v in (cfg["mean"], cfg["std"]))
    return PlanarGeometry(
        size=height_width,
        mean=mean if len(mean) == 3 else mean * 3,
        std=std if len(std) == 3 else std * 3,
        interpolation=interpolation,
        resize_mode=cfg.get("resize_mode") or "shortest",
    )


def _weights(name: str, tag: str) -> str:
    """A tag or a file. Raises EvalError for an unknown architecture or tag, and for none: its weights are random."""
    import open_clip

    if name not in open_clip.list_models():
        near = [m for m in open_clip.list_models() if m.lower().startswith(name.lower()[:5])][:12]
        raise EvalError(
            f"open_clip has no architecture '{name}'",
            why="there is nothing to build",
            fix=f"one of: {', '.join(near or open_clip.list_models()[:12])} ... (open_clip.list_models())",
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and (tag in tags or Path(tag).expanduser().is_file()):
        return tag if tag in tags else str(Path(tag).expanduser())
    raise EvalError(
        f"'{tag}' is neither a pretrained tag of {name} nor a file" if tag else f"open_clip:{name} names no weights",
        why="the model would be random, and its scores chance",
        fix=f"open_clip:{name}/TAG, TAG one of {', '.join(tags) or '(none is known)'}; open_clip:{name}/FILE; "
        f"random:{name} for a control of random weights",
    )


def _check_folder(folder: Path) -> None:
    """open_clip builds a random model with a warning where weights are missing."""
    what, ends = "no folder", (".safetensors", ".bin", ".pth")
    if folder.is_dir():
        names = [file.name for file in folder.iterdir()]
        if "open_clip_config.json" in names and any(n.endswith(ends) for n in names):
            return
        what = "no weights" if "open_clip_config.json" in names else "no open_clip_config.json"
    raise EvalError(
        f"open_clip:local-dir:{folder.name}: {what}",
        why="the model cannot be built from what is there",
        fix=f"a folder with open_clip_config.json and weights ({', '.join(ends)}), as open_clip.push_to_hf_hub writes",
    )
