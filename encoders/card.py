"""README.md of a release: how to load it, what it expects, where it came from."""

from __future__ import annotations

import json
from typing import Any

_CLIP = """\
```python
import encoders

loaded = encoders.load("{name}")
image = loaded.preprocess({example})[None]
features = loaded.model.encode_image(image).study_BD
```

or with plain open_clip{register}:

```python
import {imports}

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")
```
"""
_TIMM = """\
```python
import encoders

loaded = encoders.load("{name}")
features = loaded.model(loaded.preprocess({example})[None])
```

or with plain timm{register}:

```python
import {imports}

model = timm.create_model("local-dir:{name}", pretrained=True)
```
"""
_VOLUME = "`open_clip`'s and `timm`'s own transforms are for photographs: they neither resample nor window a volume."
_PLANAR = (
    "`open_clip`'s own transform equals it for images of 8 bits. Deeper images are scaled by their percentiles first."
)
_SLICE = (
    "It takes slices out of a volume. `open_clip`'s and `timm`'s own transforms are for pictures of such slices, in "
    "the window of the geometry, front or head above."
)
_HF = (
    "The text tower is a Hugging Face model. Plain open_clip needs its absolute path: "
    "`python -m encoders.release --relocate DIR`."
)
_RESEARCH = "For research. Not a medical device."


def model_card(
    name: str, kind: str, geometry: dict[str, Any], view: dict[str, Any], provenance: dict[str, Any], hugging_face: bool
) -> str:
    """The text of README.md. `name` is the folder's name; the other arguments are what the config file holds."""
    volume, package = geometry["kind"] == "volume", "open_clip" if kind == "clip" else "timm"
    example = '"image.png"' if geometry["kind"] == "image" else '"ct.nii.gz"'
    if geometry.get("scans_per_study", 1) > 1:
        example = '["series1.nii.gz", "series2.nii.gz"]'
    load = (_CLIP if kind == "clip" else _TIMM).format(
        name=name,
        example=example,
        register=" (`import encoders` makes its image tower known)" if volume else "",
        imports=f"encoders, {package}" if volume else package,
    )
    told = _VOLUME if volume else _SLICE if geometry["kind"] == "slice" else _PLANAR
    lines = [f"# {provenance.get('name') or name}", "", load]
    lines += [*([_HF, ""] if hugging_face else []), "## Input", ""]
    lines += [f"`preprocess` does this, and evaluators compare it. {told}", "", "```json"]
    lines += [f'{{"geometry": {_json(geometry)},', f' "view": {_json(view)}}}', "```", "", "## Provenance", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in provenance.items() if key != "name"]
    licence = f"Training data: {provenance['licence']}." if provenance.get("licence") else _UNKNOWN
    lines += ["", licence, _RESEARCH, ""]
    return "\n".join(lines)


_UNKNOWN = (
    "The licence of the training data is not recorded here: ask whoever trained it before passing these weights on."
)


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
