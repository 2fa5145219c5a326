"""Models other than release folders, named by one line: `KIND:REST`. docs/models.md has an example of each.

Every kind is one module of this package with `load(rest, device) -> encoders.loading.Loaded`, so that no protocol
knows where a model comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """module: which file of this package loads it. form: what follows the colon. about: one line for the list."""

    module: str
    form: str
    about: str


KINDS = {
    "open_clip": Kind(
        "of_open_clip",
        "ARCH/TAG | ARCH/FILE | local-dir:DIR | hf-hub:NAME",
        "any open_clip model: a pretrained tag, a weights file (.safetensors, weights-only .pt), a folder, a hub name",
    ),
    "report": Kind("of_report", "RELEASE", "a release of ours whose texts its report transformer reads (VELVET-Med)"),
    "hf": Kind("of_transformers", "FOLDER | NAME", "a transformers CLIP or SigLIP (config, safetensors, tokenizer)"),
    "timm": Kind("of_timm", "NAME | FOLDER", "a pretrained timm model: image features alone, for probes"),
    "merlin": Kind("of_merlin", "FILE[,TEXT_FOLDER]", "Stanford's Merlin (CT), its checkpoint and Clinical-Longformer"),
    "colipri": Kind("of_process", "FOLDER[,1mm]@PYTHON", "Microsoft's COLIPRI (CT) in an environment of its own"),
    "process": Kind("of_process", "WRAPPER.py[,ARGUMENT]@PYTHON", "your own model, in whatever Python it needs"),
    "random": Kind("of_random", "ARCH", "a control: an open_clip or timm architecture with weights nobody trained"),
    "pixels": Kind("of_random", "image | ct | volume", "a control: the study itself, averaged to a small grid"),
}


def split_spec(spec: str) -> tuple[str, str] | None:
    """("open_clip", "ViT-B-32/openai") of "open_clip:ViT-B-32/openai"; None for what is no KIND:REST, a folder."""
    kind, colon, rest = spec.partition(":")
    return (kind, rest) if colon and kind in KINDS and not Path(spec).exists() else None


def short_name(kind: str, rest: str) -> str:
    """How tables call it: no folder of this machine in it, stable, and different for different weights of one model."""
    rest = rest.partition("@")[0]
    if kind == "report":
        path = Path(rest)
        return f"{kind}:{path.parent.name if path.name == 'release' else path.name}"
    if rest.startswith(("local-dir:", "hf-hub:")):
        rest = rest.partition(":")[2]
    if kind == "open_clip" and "/" in rest and not Path(rest).is_dir():
        model, _, weights = rest.partition("/")
        return f"{kind}:{model}/{Path(weights).stem if Path(weights).suffix else weights}"
    parts = [Path(part).name if Path(part).exists() else part for part in rest.split(",")]
    return f"{kind}:{','.join(parts)}"
