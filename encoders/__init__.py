"""Encoders: image and text towers, and the folders they are released in.

Importing this package makes the volumetric encoders known to timm, which is all that
`open_clip.create_model_and_transforms('local-dir:DIR')` needs to load a 3D release.
"""

from __future__ import annotations

from typing import Any

from encoders.registration import register

register()


def load(folder: str, **kwargs: Any) -> Any:
    """Model, preprocessing and tokenizer of a release folder in one call; see `encoders.loading.load`."""
    from encoders.loading import load as _load

    return _load(folder, **kwargs)
