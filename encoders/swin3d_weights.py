"""Weights published for SwinUNETR's encoder (`model_swinvit.pt`, arXiv 2111.14791) into a `swin3d`.

Source: the release 0.8.1 of Project-MONAI/MONAI-extra-test-data; layout as `SwinUNETR.load_from` of MONAI reads it.
"""

from __future__ import annotations

from pathlib import Path

from encoders.errors import ReleaseError
from encoders.swin3d import Swin3D
from encoders.tensor_file import read_tensors

# Heads of the self-supervision that the file was trained with; they are no part of the encoder.
_MODULES = ("norm", "convTrans3d", "rotation_head", "contrastive_head")
HEADS = tuple(f"{module}.{part}" for module in _MODULES for part in ("weight", "bias"))
RENAMED = {".mlp.fc1.": ".mlp.linear1.", ".mlp.fc2.": ".mlp.linear2."}
STEM = "patch_embed.proj.weight"
FIX = "name MONAI's model_swinvit.pt, or a file that torch.save wrote of a state dict"
WHY = "part of the tower would stay random, or hold other weights than the file's"


def load_swinvit(tower: Swin3D, path: str | Path) -> tuple[str, ...]:
    """Put the encoder weights of a published file into a tower. Every key of the file is used or is one of `HEADS`, and
    every tensor of the tower is set.

    A file for one channel starts a tower of several: each channel gets an equal share of the stem, so that equal
    channels give what one gave.

    Args:
        path: a file of torch, read as tensors alone (`weights_only`): a dict of tensors, or one under `state_dict`;
            keys with or without `module.`, MLPs as `fc1`, `fc2` or `linear1`, `linear2`.

    Returns:
        The keys that were left out, as the file names them.

    Raises:
        ReleaseError: no such file, not a file of tensors, or keys or shapes of another encoder.
    """
    stored, left = {}, []
    for key, value in read_tensors(path, FIX).items():
        name = key.removeprefix("module.")
        if name in HEADS:
            left.append(key)
            continue
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        stored[name] = value
    wanted = tower.swin.state_dict()
    stem, channels = stored.get(STEM), tower.tag.channels
    if stem is not None and stem.ndim == 5 and stem.shape[1] == 1 and channels > 1:
        stored[STEM] = stem.expand(-1, channels, -1, -1, -1) / channels
    missing, strange = sorted(set(wanted) - set(stored)), sorted(set(stored) - set(wanted))
    other = [k for k, v in wanted.items() if k in stored and stored[k].shape != v.shape]
    found = {"are not in it": missing, "are not in the tower": strange, "have another shape": other}
    said = [f"{len(names)} {what}, first {names[0]}" for what, names in found.items() if names]
    if said:
        raise ReleaseError(
            f"'{Path(path).name}' does not fit {tower.tag.name}: of its tensors {'; '.join(said)}",
            WHY,
            "MONAI's model_swinvit.pt is a swin3d_tiny without w- and l-",
        )
    tower.swin.load_state_dict(stored, strict=True)
    return tuple(left)
