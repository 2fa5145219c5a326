"""The model that a command line names: a release folder, or any kind that eval_zero_shot.models lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_zero_shot.errors import EvalError
from eval_zero_shot.models import short_name, split_spec

if TYPE_CHECKING:
    from encoders.loading import Loaded


def load_release(spec: str, device: str = "auto") -> Loaded:
    """A release folder or a `KIND:REST` of eval_zero_shot.models, on `device` ("auto": the GPU where there is one).

    Raises:
        EvalError: a GPU is asked for where there is none, or a model that cannot be loaded.
        ReleaseError: the folder is no release.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EvalError(f"--device {device}: torch sees no GPU", why="nothing can run there", fix="use auto or cpu")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if not Path(spec).expanduser().exists():
        from eval_zero_shot.models.load import load_model, with_kind

        if ":" in spec:
            return load_model(spec, chosen)
        if known := with_kind(spec):
            raise EvalError(f"no release folder at '{spec}'", why="there is nothing to load", fix=f"write {known}")
    import encoders

    return encoders.load(spec, device=chosen)


def model_name(spec: str) -> str:
    """How tables call a model: the folder's name, the run's where it is a run's release, or the name itself."""
    if (parts := split_spec(spec)) is not None:
        return short_name(*parts)
    path = Path(spec).expanduser()
    if not path.is_dir():
        return spec
    path = path.resolve()
    return path.parent.name if path.name == "release" else path.name


def load_dual(spec: str, device: str = "auto") -> Loaded:
    """The same, refused where it has no text tower.

    Raises:
        EvalError: the model is an image tower alone.
        ReleaseError: the folder is no release.
    """
    loaded = load_release(spec, device)
    if loaded.tokenizer is None:
        raise EvalError(
            "this model is an image tower alone",
            why="zero-shot scores compare images with texts, and it has no text tower",
            fix="give a dual encoder, or probe these features with labels",
        )
    return loaded


def image_encoder(loaded: Loaded) -> Any:
    """The model under the interface of a dual encoder, which a timm release does not have by itself."""
    if loaded.kind == "clip":
        return loaded.model
    from types import SimpleNamespace

    import torch

    class ImageTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = loaded.model

        def encode_image(self, images: torch.Tensor, trunk: bool = False) -> SimpleNamespace:
            found = self.tower(images)  # without a classifier, and nothing is projected
            return SimpleNamespace(study_BD=found, trunk_SC=found if trunk else None)

    return ImageTower()
