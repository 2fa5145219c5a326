"""Merlin (Stanford, arXiv 2406.06512): its CT and text tower, from its checkpoint, without a hub.

The image tower is built from the package merlin-vlm (extra `merlin`). Its `Merlin()` would download ResNet-152, the
text tower and the checkpoint, the last into the installed package; here all come from files.

Legend: B studies, D, H, W depth, height and width; U texts, L tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from encoders.convert_merlin import GEOMETRY, VIEW
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models.adapter import Adapter, building, loaded, remembered

if TYPE_CHECKING:
    from encoders.loading import Loaded

PACKAGES = ("merlin-vlm", "torchvision", "transformers")
TEXT_TOWER = "yikuan8/Clinical-Longformer"
TEXT_LENGTH, PHENOTYPES = 1024, 1692


class MerlinDual(Adapter):
    """The towers under the names of Merlin's checkpoint, so that its state dict loads as it is."""

    def __init__(self, image_tower: nn.Module, text_tower: nn.Module, pad_id: int) -> None:
        super().__init__(1.0)
        self.image_tower, self.pad_id = image_tower, pad_id
        self.text_encoder: Any = text_tower
        self.linear_layer = nn.Linear(text_tower.config.hidden_size, 512)  # type: ignore[union-attr,arg-type]

    def images(self, images: Tensor) -> Tensor:
        # Ours is [-1, 1] and B, 1, D, H, W; Merlin's is [0, 1] and B, 1, W, H, D. Both grow toward the patient's
        # right, front and head, so no axis is turned round.
        contrastive, _phenotypes = self.image_tower((images + 1).mul(0.5).permute(0, 1, 4, 3, 2))
        return contrastive

    def texts(self, ids_UL: Tensor, inside_UL: Tensor) -> Tensor:
        states = self.text_encoder(input_ids=ids_UL, attention_mask=inside_UL.long()).last_hidden_state
        return self.linear_layer(states[:, 0])


# Where our modules' parameters stand in the checkpoint.
NAMES = {
    "image_tower.": "encode_image.i3_resnet.",
    "text_encoder.": "encode_text.text_encoder.",
    "linear_layer.": "encode_text.linear_layer.",
    "logit_scale": "logit_scale",
}


def load(kind: str, rest: str, device: str) -> Loaded:
    """`FILE` (Merlin's checkpoint, read without executing it) and a folder with Clinical-Longformer's config.json and
    tokenizer; its weights are in the checkpoint.

    Raises EvalError: a file or package that is missing, weights that are not Merlin's.
    """
    file, _, folder = rest.partition(",")
    path = Path(file).expanduser()
    if not path.is_file():
        raise EvalError(
            f"no Merlin checkpoint at {path.name}",
            why="its scores are those of its weights",
            fix="hf download stanfordmimi/Merlin (terms of use of its authors), then merlin:FILE,LONGFORMER_FOLDER",
        )
    text = str(Path(folder).expanduser()) if folder else TEXT_TOWER
    fix = f"pip install 'voxclip[merlin]'; merlin:FILE,FOLDER with FOLDER of {TEXT_TOWER} (config.json and tokenizer), "
    fix += "or leave FOLDER out where a hub is reachable"
    with building("Merlin", fix):
        model, tokenizer = build(text)
        fill(model, torch.load(path, map_location="cpu", weights_only=True))
    ids = remembered(lambda text: tokenizer(sanitised(text), truncation=True, max_length=TEXT_LENGTH)["input_ids"])
    about = {"package": "merlin", "text_context": TEXT_LENGTH, "text": model.text_encoder.config.model_type}
    return loaded(model, GEOMETRY, VIEW, ids, about, device, PACKAGES)


def build(text: str) -> tuple[MerlinDual, Any]:
    """The architecture, with weights still to come, and the tokenizer. `text`: folder or name of Longformer."""
    import torchvision
    from merlin.models.i3res import I3ResNet
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    image = I3ResNet(torchvision.models.resnet152(weights=None), class_nb=PHENOTYPES, conv_class=True)
    config = AutoConfig.from_pretrained(text, trust_remote_code=False)
    tower = AutoModel.from_config(config)
    tokenizer: Any = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
    return MerlinDual(image, tower, int(tokenizer.pad_token_id or 0)), tokenizer


def fill(model: MerlinDual, stored: dict[str, Tensor]) -> None:
    """Every parameter from the checkpoint. Raises EvalError for one that is missing or has another shape.

    Left aside: position ids, which transformers stores in one version and not in another, and the text tower's pooler,
    which Merlin does not use.
    """
    stored = stored.get("state_dict", stored)  # type: ignore[assignment]
    stored = {name.removeprefix("module.").removeprefix("model."): value for name, value in stored.items()}
    state = {}
    for name, own in model.state_dict().items():
        prefix = next(p for p in NAMES if name.startswith(p))
        theirs = NAMES[prefix] + name.removeprefix(prefix)
        if theirs in stored and stored[theirs].shape == own.shape:
            state[name] = stored[theirs]
        elif not theirs.endswith("position_ids") and ".pooler." not in theirs:
            found = f"has shape {tuple(stored[theirs].shape)}" if theirs in stored else "is missing"
            raise EvalError(
                f"the checkpoint is not Merlin's: {theirs} {found}",
                why="that part would stay random",
                fix="i3_resnet_clinical_longformer_best_clip_*.pt and the folder of Clinical-Longformer",
            )
    model.load_state_dict(state, strict=False)


def sanitised(text: str) -> str:
    """As Merlin's training wrote texts: lower case, words and punctuation apart (nltk's wordpunct_tokenize)."""
    from nltk.tokenize import wordpunct_tokenize

    return " ".join(wordpunct_tokenize(text.lower()))
