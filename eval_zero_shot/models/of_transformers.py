"""CLIP and SigLIP of Hugging Face transformers (extra `hf`), from a folder or by name; safetensors alone are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_shards.geometry import PlanarGeometry, View
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models.adapter import Adapter, building, loaded, remembered

if TYPE_CHECKING:
    from encoders.loading import Loaded

PACKAGES = ("transformers", "tokenizers")
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}


class TransformersDual(Adapter):
    """CLIPModel or SiglipModel. Texts are padded to the context: SigLIP sees its padding, CLIP masks it."""

    def __init__(self, model: Any, pad_id: int) -> None:
        super().__init__(0.0)
        self.model: Any = model
        self.logit_scale = model.logit_scale
        self.logit_bias = getattr(model, "logit_bias", None)
        self.pad_id, self.masked = pad_id, model.config.model_type == "clip"

    def images(self, images: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=images))

    def texts(self, ids_UL: Tensor, inside_UL: Tensor) -> Tensor:
        # Without padding inside a text, `inside` is True everywhere: the tokenizer has padded to the context already.
        mask = inside_UL.long() if self.masked else None
        return _pooled(self.model.get_text_features(input_ids=ids_UL, attention_mask=mask))


def _pooled(out: Any) -> Tensor:
    """transformers 4 returns the tensor, 5 an output that holds it."""
    return out if isinstance(out, torch.Tensor) else out.pooler_output


def load(kind: str, rest: str, device: str) -> Loaded:
    """A transformers folder (config.json, model.safetensors, preprocessor_config.json, tokenizer) or a hub name.

    Raises EvalError: another architecture, no safetensors, no hub, no transformers, or other preprocessing than ours.
    """
    folder = Path(rest).expanduser()
    name = str(folder) if folder.exists() else rest
    fix = "pip install 'voxclip[hf]'; give a folder with config.json, model.safetensors, preprocessor_config.json and "
    fix += "the tokenizer's files (save_pretrained of model and processor), or a hub name where a hub is reachable"
    what = f"the transformers model {folder.name if folder.exists() else rest}"
    with building(what, fix):
        import transformers

        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        if config.model_type not in MODELS:
            raise EvalError(
                f"{what} is a '{config.model_type}'",
                why="its towers are called in another way",
                fix=f"one of {', '.join(MODELS)}, or wrap it as a process (docs/models.md)",
            )
        build = getattr(transformers, MODELS[config.model_type])
        model, told = build.from_pretrained(
            name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        missing = sorted(set(told["missing_keys"]) | {str(k) for k in told.get("mismatched_keys", ())})
        if missing:
            raise EvalError(
                f"{what} lacks weights: {', '.join(missing[:4])}", why="they would stay random", fix="download it again"
            )
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    geometry = planar_geometry(processor.to_dict())
    context = int(config.text_config.max_position_embeddings)
    ids, about = _tokenize(tokenizer, context, config.model_type), config.to_dict()
    about = {
        "package": "transformers",
        "text_context": context,
        "config": {k: v for k, v in about.items() if not k.startswith("_")},
    }
    pad = tokenizer.pad_token_id or 0
    return loaded(TransformersDual(model, pad), geometry, View("centre"), ids, about, device, PACKAGES)


def _tokenize(tokenizer: Any, context: int, model_type: str) -> Any:
    if model_type == "siglip":
        return remembered(
            lambda text: tokenizer(text, padding="max_length", truncation=True, max_length=context)["input_ids"]
        )
    return remembered(lambda text: tokenizer(text, truncation=True, max_length=context)["input_ids"])


def planar_geometry(cfg: dict[str, Any]) -> PlanarGeometry:
    """An image processor's steps as our geometry. Resizing is PIL's, as in the model's training; transformers' own
    default from version 5 resizes tensors instead, which differs by a grey value or two, and its centre crop lies one
    pixel off where the margin is odd.

    Raises EvalError for steps that have no such geometry.
    """
    size, crop = cfg.get("size") or {}, cfg.get("crop_size") or {}
    how = {2: "bilinear", 3: "bicubic"}.get(int(cfg.get("resample", 3)))
    target = (crop.get("height", 0), crop.get("width", 0)) if cfg.get("do_center_crop") else (0, 0)
    if cfg.get("do_center_crop") and size.get("shortest_edge") == target[0] == target[1]:
        mode = "shortest"
    elif not cfg.get("do_center_crop") and size.get("height"):
        mode, target = "squash", (size["height"], size["width"])
    else:
        mode = ""
    plain = cfg.get("do_resize", True) and cfg.get("do_normalize", True) and cfg.get("do_rescale", True)
    if not mode or how is None or not plain or abs(float(cfg.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        raise EvalError(
            "the image processor's steps cannot be repeated here",
            why="the model would see other pixels than in training",
            fix="resize to shortest_edge and crop to the same size, or resize to height and width; or wrap the model",
        )
    return PlanarGeometry(
        size=(int(target[0]), int(target[1])),
        mean=tuple(cfg["image_mean"]),
        std=tuple(cfg["image_std"]),
        interpolation=how,
        resize_mode=mode,
    )
