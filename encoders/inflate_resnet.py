"""2D ResNets (torchvision's, and those of timm that have its stem) inflated to `i3d_resnetN`.

Legend: O, I output and input channels, h, w sides of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from encoders.errors import ReleaseError
from encoders.inflate import Inflation, for_channels
from encoders.resnet3d import ResNet3D

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def centred(kernel_OIhw: Tensor, depth: int) -> Tensor:
    """[O, I, depth, h, w]: the 2D kernel in the middle slice, zeros elsewhere, so that the tower begins by reading
    every slice by itself (Merlin; not I3D's mean over slices, arXiv 1705.07750 §2.4.1)."""
    inflated = kernel_OIhw.new_zeros(*kernel_OIhw.shape[:2], depth, *kernel_OIhw.shape[2:])
    inflated[:, :, depth // 2] = kernel_OIhw
    return inflated


def inflate_resnet(tower: ResNet3D, stored: Mapping[str, Tensor]) -> Inflation:
    """Fill the tower from 2D weights. Left aside are the classifier, and where the tower has GroupNorm the running
    statistics. A classifier of its own stays as it is.

    Raises:
        ReleaseError: weights that are missing, too many or of another shape: not those of this ResNet.
    """
    stems = [key for key, value in stored.items() if key.endswith("conv1.weight") and tuple(value.shape[2:]) == (7, 7)]
    if len(stems) != 1:
        raise _unfit(tower, f"{len(stems)} kernels of 7×7 called conv1.weight instead of one")
    prefix = stems[0].removesuffix("conv1.weight")  # module., backbone., visual.trunk. ...
    own, found, used, fresh = tower.state_dict(), {}, set(), []
    for name, value in own.items():
        if name.startswith("fc."):
            fresh.append(name)
            continue
        if name.endswith("num_batches_tracked") and prefix + name not in stored:  # files of old torch versions
            continue
        flat = stored.get(prefix + name)
        if flat is None:
            raise _unfit(tower, f"{name} is missing")
        if value.ndim == 5:
            if name == "conv1.weight":
                flat = for_channels(flat, tower.tag.channels)
            flat = centred(flat, value.shape[2]) if flat.ndim == 4 else flat
        if flat.shape != value.shape:
            raise _unfit(tower, f"{name} has shape {tuple(stored[prefix + name].shape)}")
        found[name] = flat
        used.add(prefix + name)
    rest = sorted(set(stored) - used)
    strange = [
        key for key in rest
        if key.startswith(f"{prefix}layer") and not (tower.tag.norm == "group" and key.endswith(STATISTICS))
    ]  # fmt: skip
    if strange:
        raise _unfit(tower, f"{strange[0]} has no place in it")
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
    return Inflation(len(found), tuple(rest), tuple(fresh))


def _unfit(tower: ResNet3D, what: str) -> ReleaseError:
    return ReleaseError(
        f"these 2D weights do not fit {tower.tag.name}: {what}",
        "a tower that is half random would pass for a pretrained one",
        f"weights of a {tower.tag.size} with torchvision's stem (one 7×7 convolution of width 64), and w-64",
    )
