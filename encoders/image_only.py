"""An image tower without a text tower: what stands where open_clip's model does in a DualEncoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Bare(nn.Module):
    """A timm model under the interface of open_clip's image towers: `trunk`, and a head that adds nothing."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)

    def set_grad_checkpointing(self, enable: bool = True, **_: Any) -> None:
        self.trunk.set_grad_checkpointing(enable)  # type: ignore[operator]


class ImageOnly(nn.Module):
    """`visual` alone, released for timm (encoders.release.write_timm_release). There is no temperature to learn:
    `logit_scale` is a constant, which is neither trained nor saved.

    Args:
        vision_cfg: `timm_model_name`, `timm_model_pretrained`, `image_size`, and `timm_model_args` of `tower_args`.
    """

    logit_scale: Tensor

    def __init__(self, vision_cfg: dict[str, Any]) -> None:
        import timm

        super().__init__()
        trunk = timm.create_model(
            vision_cfg["timm_model_name"], pretrained=vision_cfg.get("timm_model_pretrained", False), num_classes=0,
            **vision_cfg.get("timm_model_args", {}),
        )  # fmt: skip
        self.visual = Bare(trunk)
        self.register_buffer("logit_scale", torch.zeros(()), persistent=False)
        self.logit_bias = None

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)


def tower_args(name: str, image_size: int | tuple[int, int]) -> dict[str, Any]:
    """What a timm tower of images has to be told about a size that is not its own: towers with a table of positions are
    built for one size, others take any.

    Raises:
        RuntimeError: timm knows no such model.
    """
    import timm

    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None and not timm.is_model(name):
        raise RuntimeError(f"timm knows no model '{name}'")
    if cfg is None or not cfg.fixed_input_size or tuple(cfg.input_size[1:]) == size:
        return {}
    return {"img_size": size[0] if size[0] == size[1] else list(size)}


def trunk_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The timm model's own, of the state dict of an ImageOnly."""
    prefix = "visual.trunk."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
