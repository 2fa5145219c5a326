"""COLIPRI (Microsoft, arXiv 2510.15042) for serve.py, in an environment with `pip install colipri`.

ARGUMENT is FOLDER or FOLDER,1mm. FOLDER holds `model.safetensors` (hub: microsoft/colipri) and, under `cxr-bert/`, the
`config.json` and `vocab.txt` of microsoft/BiomedVLP-CXR-BERT-specialized. The package would fetch the text tower from
the hub and run code from there; here it is transformers' own BertModel, filled from model.safetensors.
`overrides.json` in FOLDER, where there is one, changes colipri's own configuration (say {"input_size": 128}).

Plain: colipri's default processor, 2 mm, 192 x 192 x 192 voxels. 1mm: 1 mm, 384 x 384 x 384, windows of 192, as its
authors evaluate.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from colipri.checkpoint import load_model_config
from colipri.model.image import ImageEncoder
from colipri.model.multimodal import Model
from colipri.model.text import TextEncoder
from hydra.utils import instantiate
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer


def build(folder: Path) -> tuple[Model, int]:
    """The architecture with random weights, and colipri's input size."""
    changes = folder / "overrides.json"
    changes = json.loads(changes.read_text()) if changes.is_file() else {}
    config = load_model_config(overrides=[f"{key}={value}" for key, value in changes.items()] or None)
    bert = BertModel(BertConfig.from_json_file(folder / "cxr-bert" / "config.json"), add_pooling_layer=False)
    image = instantiate(config.image_encoder)
    assert isinstance(image, ImageEncoder)
    text = TextEncoder(bert, instantiate(config.text_encoder.pooler))
    return Model(image, text).eval(), int(config.image_encoder.backbone.input_shape[0])


class Colipri:
    def __init__(self, argument: str, device: str) -> None:
        place, _, fine = argument.partition(",")
        if fine not in ("", "1mm"):
            raise ValueError(f"'{fine}' is unknown: FOLDER or FOLDER,1mm")
        folder = Path(place).expanduser()
        weights = folder / "model.safetensors"
        for needed in (weights, folder / "cxr-bert" / "config.json", folder / "cxr-bert" / "vocab.txt"):
            if not needed.is_file():
                raise FileNotFoundError(f"{needed.relative_to(folder)} is not in the folder")
        self.model, self.size = build(folder)
        self.model.load_state_dict(load_file(weights), strict=True)
        self.model.to(device)
        self.tokenizer = BertTokenizer(str(folder / "cxr-bert" / "vocab.txt"), model_max_length=512)
        self.fine = bool(fine)
        named = [weights, *sorted((folder / "cxr-bert").glob("*")), folder / "overrides.json"]
        digests = [hashlib.sha256(f.read_bytes()).hexdigest() for f in named if f.is_file()]
        self.sha256 = hashlib.sha256("".join(digests).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        side, spacing = (2 * self.size, 1.0) if self.fine else (self.size, 2.0)
        return {
            "weights_sha256": self.sha256,
            "geometry": {
                "kind": "volume", "spacing_mm": [spacing] * 3, "antialias": False, "pad_hu": -1000.0,
                "windows": [[-1000.0, 1000.0]],
            },
            "view": {"kind": "centre", "size": [side] * 3},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "text_context": 512,
            "logit_scale": -float(self.model.softmax_temperature.log()),
        }  # fmt: skip

    @torch.no_grad()
    def encode_images(self, images: np.ndarray) -> np.ndarray:
        # Ours is B, 1, D, H, W toward head, front and right; colipri's axes are right, front, head.
        x = torch.from_numpy(images).permute(0, 1, 4, 3, 2).contiguous()
        window = self.size if self.fine else None
        return self.model.encode_image(x, pool=True, project=True, normalize=True, window_size=window).cpu().numpy()

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> np.ndarray:
        # Padded to the longest text: padding is masked in the tower and in the pooling.
        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        return self.model.encode_text(ids["input_ids"], ids["attention_mask"]).cpu().numpy()


def load(argument: str, device: str) -> Colipri:
    return Colipri(argument, device)
