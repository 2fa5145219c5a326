"""Weight interpolation of two releases, theta(a) = (1 - a) base + a tuned (WiSE-FT, arXiv 2109.01903).

Every floating-point tensor is interpolated, the temperature (`logit_scale`) too; integer buffers are taken from the
tuned release. Sums are made in float64 and kept in the tuned release's precision; a = 0 and a = 1 give its parents
exactly. Tensors are read one at a time from the weights files, so one model is held in memory, whatever the sweep.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.errors import ReleaseError
from encoders.folder import CARD, CONFIG, HEADS, HEADS_SPEC, WEIGHTS, Listing, inspect, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

NOT_COMPARED = (CARD, HEADS, HEADS_SPEC, WEIGHTS["clip"], CONFIG["clip"])


def mix(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) base + alpha tuned of one tensor, in `tuned`'s type; a tensor that is no floating point: `tuned`."""
    if not tuned.is_floating_point() or alpha == 1:
        return tuned
    if alpha == 0:
        return base.to(tuned.dtype)
    return ((1 - alpha) * base.double() + alpha * tuned.double()).to(tuned.dtype)


class Pair:
    """Two releases of one architecture, preprocessing and tokenizer.

    Raises ReleaseError naming the keys in which they differ, or where either is no release of a dual encoder.
    """

    def __init__(self, base: str | os.PathLike[str], tuned: str | os.PathLike[str]) -> None:
        self.base, self.tuned = Path(base).expanduser(), Path(tuned).expanduser()
        listings = [inspect(folder) for folder in (self.base, self.tuned)]
        if any(listing.kind != "clip" for listing in listings):
            raise ReleaseError(
                "one of the releases is an image tower alone",
                "zero-shot scores need both towers",
                "give two releases of dual encoders",
            )
        self.base_sha256, self.tuned_sha256 = (listing.sha256 for listing in listings)
        configs = [read_json(folder / CONFIG["clip"]) for folder in (self.base, self.tuned)]
        self.config = configs[1]
        self.provenances: list[dict[str, Any]] = [config.get("provenance") or {} for config in configs]
        differ = sorted(_differing(_identity(configs[0], listings[0]), _identity(configs[1], listings[1])))
        differ += [] if differ else sorted(self._unfit())
        if differ:
            more = f" and {len(differ) - 8} more" if len(differ) > 8 else ""
            raise ReleaseError(
                f"the releases differ in {', '.join(differ[:8])}{more}",
                "weights of two architectures, or of models that read scans or texts differently, have no mean",
                "give a release and one that was fine-tuned from it",
            )

    def tensors(self, alpha: float) -> Iterator[tuple[str, Tensor]]:
        """Name and interpolated value of every tensor, one at a time."""
        from safetensors import safe_open

        if not 0 <= alpha <= 1:
            raise ReleaseError(f"alpha {alpha} is not from 0 to 1", "that is no interpolation", "choose one in between")
        with (
            safe_open(self.base / WEIGHTS["clip"], "pt") as base,
            safe_open(self.tuned / WEIGHTS["clip"], "pt") as tuned,
        ):
            for name in tuned.keys():  # noqa: SIM118  a handle, no dict
                yield name, mix(base.get_tensor(name), tuned.get_tensor(name), alpha)

    def from_tuned(self) -> list[str]:
        """Names of tensors that are no floating point and differ: the tuned release's are taken."""
        from safetensors import safe_open

        found = []
        with (
            safe_open(self.base / WEIGHTS["clip"], "pt") as base,
            safe_open(self.tuned / WEIGHTS["clip"], "pt") as tuned,
        ):
            for name in tuned.keys():  # noqa: SIM118
                if not (value := tuned.get_tensor(name)).is_floating_point() and (value != base.get_tensor(name)).any():
                    found.append(name)
        return found

    def set(self, clip: nn.Module, alpha: float) -> None:
        """Fill a model of this architecture (`DualEncoder.clip`) in place."""
        import torch

        state = clip.state_dict()
        with torch.no_grad():
            for name, value in self.tensors(alpha):
                state[name].copy_(value)

    def write(self, out: str | Path, alpha: float, overwrite: bool = False) -> Path:
        """The interpolated model as a release of its own, whose provenance names both parents. Released heads are left
        out: they were trained on one parent's features.

        Raises:
            ReleaseError: `out` exists, or cannot be written.
        """
        from data_shards.preprocess import View, geometry_from_dict
        from encoders.release import write_release

        stated = self.config.get("volume_cfg") or self.config["planar_cfg"]
        cfg = {**self.config["model_cfg"], "text_cfg": dict(self.config["model_cfg"]["text_cfg"])}
        if cfg["text_cfg"].get("hf_model_name"):  # its config and tokenizer lie in the tuned release
            cfg["text_cfg"]["hf_model_name"] = str(self.tuned.resolve())
        merged = {
            "method": "WiSE-FT: (1 - alpha) base + alpha tuned over floating-point tensors",
            "alpha": alpha,
            "base_sha256": self.base_sha256,
            "tuned_sha256": self.tuned_sha256,
            "taken_from_tuned": self.from_tuned(),
        }
        licences = list(dict.fromkeys(str(p["licence"]) for p in self.provenances if p.get("licence")))
        names = [p.get("name") or folder.name for p, folder in zip(self.provenances, (self.base, self.tuned))]
        provenance: dict[str, Any] = {"name": f"{names[0]} + {alpha:g} ({names[1]} − {names[0]})", "merged": merged}
        if licences and all(p.get("licence") for p in self.provenances):
            provenance["licence"] = "; ".join(licences)
        return write_release(
            out, dict(self.tensors(alpha)), cfg, geometry_from_dict(stated["geometry"]), View.from_dict(stated["view"]),
            provenance=provenance, overwrite=overwrite,
        )  # fmt: skip

    def _unfit(self) -> Iterator[str]:
        """Tensors that are in one file only, or of another shape or type."""
        from safetensors import safe_open

        shapes = []
        for folder in (self.base, self.tuned):
            with safe_open(folder / WEIGHTS["clip"], "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                shapes.append({name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()})
        for name in {*shapes[0], *shapes[1]}:
            if shapes[0].get(name, (None,))[0] != shapes[1].get(name, (None,))[0]:
                yield f"weights.{name}"


def _identity(config: dict[str, Any], listing: Listing) -> dict[str, Any]:
    """What has to be equal: architecture, geometry and view, and every file of the tokenizer and text tower."""
    text = dict(config["model_cfg"]["text_cfg"])
    if text.get("hf_model_name"):  # a path or a name, of files that are compared themselves
        text["hf_model_name"] = text["hf_tokenizer_name"] = True
    files = {name: entry["sha256"] for name, entry in listing.files.items() if name not in NOT_COMPARED}
    return {
        "model_cfg": {**config["model_cfg"], "text_cfg": text},
        "volume_cfg": config.get("volume_cfg"),
        "planar_cfg": config.get("planar_cfg"),
        "files": files,
    }


def _differing(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            if key not in ours or key not in theirs:
                yield f"{path}{key}"
            else:
                yield from _differing(ours[key], theirs[key], f"{path}{key}.")
    elif ours != theirs:
        yield path.rstrip(".")
