"""Weights that a model starts from: a release, those of an open_clip model, or those of a 2D network."""

from __future__ import annotations

from encoders.dual import DualEncoder
from pretrain import launch
from pretrain.errors import ConfigError
from pretrain.schema import ModelSection


def start_from(dual: DualEncoder, folder: str) -> None:
    """Fill the model with a release of the same architecture. Raises ConfigError for any other."""
    import encoders

    try:
        released = encoders.load(folder)
        if "text_cfg" not in dual.model_cfg:  # an image tower alone
            dual.clip.visual.trunk.load_state_dict(released.model.state_dict(), strict=True)
            return
        dual.clip.load_state_dict(released.model.clip.state_dict(), strict=True)
        if dual.report is not None and "report" in released.heads:  # what it was not trained for starts afresh
            dual.report.load_state_dict(released.heads["report"].state_dict(), strict=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"model.init: the release cannot start this model: {error}",
            why="part of the weights would stay random",
            fix="copy model.* from the recipe of that release",
        ) from error


def start_from_published(dual: DualEncoder, model: ModelSection) -> None:
    """Fill both towers (`model.pretrained`), or the image tower (`model.image.pretrained`), with weights of the
    open_clip model that `model.image.name` is, and say in a line what became of them.

    Raises:
        ConfigError: they cannot be had, or do not fit.
    """
    from encoders.errors import ReleaseError
    from encoders.open_clip_start import Towers, start_from_open_clip

    wanted: tuple[tuple[str, str | bool | None, Towers], ...] = (
        ("model.pretrained", model.pretrained, "both"),
        ("model.image.pretrained", model.image.pretrained, "image"),
    )
    for key, source, towers in wanted:
        if not isinstance(source, str):
            continue
        try:
            told = start_from_open_clip(dual.clip, model.image.name, source, towers)
        except ReleaseError as error:
            raise ConfigError(f"{key}: {error.what}", why=error.why, fix=error.fix) from error
        if launch.rank() == 0:
            print(f"start    {source}: {told}")


def inflate_image(dual: DualEncoder, source: str) -> None:
    """Fill the image tower with 2D weights (encoders.inflate), and say in a line what became of them.

    Raises:
        ConfigError: they do not fit.
    """
    from encoders.errors import ReleaseError
    from encoders.inflate import inflate

    try:
        told = inflate(dual.clip.visual.trunk, source)
    except ReleaseError as error:
        raise ConfigError(f"model.image.inflate: {error.what}", why=error.why, fix=error.fix) from error
    if launch.rank() == 0:
        print(f"inflate  {source}: {told}")


def start_image_from(dual: DualEncoder, path: str) -> None:
    """Fill the image tower with a file of weights that were made for it, and of towers of images say in a line what
    became of them. Raises ConfigError where they do not fit."""
    from encoders.image_weights import load_image_weights

    trunk = dual.clip.visual.trunk
    try:
        if hasattr(trunk, "load_pretrained_file"):
            trunk.load_pretrained_file(path)
            return
        told, resampled = load_image_weights(trunk, path)
    except ValueError as error:
        raise ConfigError(f"model.image.pretrained_file: {error}") from error
    if launch.rank() == 0:
        sizes = f"; resampled to this size: {len(resampled)} tables of positions" if resampled else ""
        print(f"start    {path}: {told}{sizes}")
