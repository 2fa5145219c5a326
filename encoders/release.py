"""From a checkpoint to a folder that plain open_clip (or timm) loads: `python -m encoders.release --run RUN --out DIR`.

Read of a checkpoint: `encoders.safetensors`, `heads.safetensors`, `model.json`. Never the trainer's state, which is
    pickled.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.card import model_card
from encoders.errors import ReleaseError
from encoders.folder import CARD, CONFIG, HEADS, HEADS_SPEC, WEIGHTS, inspect, read_json, written_aside
from encoders.release_config import check_input, our_keys, preprocess_cfg, released_cfg, timm_input

if TYPE_CHECKING:
    from torch import Tensor

    from data_shards.preprocess import AnyGeometry, View

METADATA = {"format": "pt"}  # what timm and transformers expect in the header
# What a checkpoint's model.json says beyond the model itself, and the release repeats.
PROVENANCE = ("name", "step", "score", "recipe_sha256", "manifest", "licence")


def write_release(
    out: str | Path,
    weights: Mapping[str, Tensor],
    model_cfg: dict[str, Any],
    geometry: AnyGeometry,
    view: View,
    *,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    head_weights: Mapping[str, Tensor] | None = None,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Release a dual encoder as an open_clip folder.

    Args:
        weights: state dict of the `open_clip.CustomTextCLIP`; the released weights file is exactly this.
        model_cfg: the dict the model was built from (open_clip's `model_cfg`, `custom_text: true`).
        geometry, view: what `preprocess` of the release does.
        heads, head_weights: `encoders.heads.describe_head` of each released head, and their weights as
            `NAME.parameter`.
        provenance: plain JSON about the training, repeated in the config and the model card.

    Raises:
        ReleaseError: weights and `model_cfg` do not fit, an image tower of another size than the geometry, or `out`
            exists.
    """
    cfg = released_cfg(model_cfg, geometry, view)
    _check_fits(cfg, weights)
    with written_aside(out, "clip", overwrite) as folder:
        hugging_face = cfg["text_cfg"].get("hf_model_name")
        if hugging_face:
            _write_text_tower_files(hugging_face, folder, _wordpunct(cfg["text_cfg"]))
            cfg["text_cfg"]["hf_model_name"] = Path(hugging_face).name if Path(hugging_face).exists() else hugging_face
            cfg["text_cfg"]["hf_tokenizer_name"] = cfg["text_cfg"][
                "hf_model_name"
            ]  # open_clip asks only whether it is set
        _save(weights, folder / WEIGHTS["clip"])
        body = {"model_cfg": cfg, "preprocess_cfg": preprocess_cfg(geometry), **our_keys(geometry, view, provenance)}
        _write_json(folder / CONFIG["clip"], body)
        _write_heads(folder, heads or {}, head_weights or {})
        _write_card(folder, Path(out).name, "clip", body, bool(hugging_face))
    return Path(out)


def write_timm_release(
    out: str | Path,
    weights: Mapping[str, Tensor],
    architecture: str,
    geometry: AnyGeometry,
    view: View,
    *,
    model_args: dict[str, Any] | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    head_weights: Mapping[str, Tensor] | None = None,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Release an image tower alone as a folder that `timm.create_model('local-dir:DIR', pretrained=True)` loads.

    Args:
        weights: state dict of the timm model without classifier (`num_classes=0`).
        architecture: its timm name; ours with the tag.
        model_args: other arguments it was created with.
        heads, head_weights: as for `write_release`.

    Raises:
        ReleaseError: weights and architecture do not fit, or `out` exists.
    """
    import timm

    import encoders.voxvit  # noqa: F401  registers our names in timm

    check_input(architecture, geometry, view)
    args = {"num_classes": 0, **(model_args or {})}
    try:
        model: Any = timm.create_model(architecture, pretrained=False, **args)
        model.load_state_dict(dict(weights))
    except (RuntimeError, TypeError, ValueError) as error:
        raise _unfit(error) from error
    known = ("input_size", "pool_size", "first_conv", "classifier", "fixed_input_size")
    pretrained_cfg = {key: model.pretrained_cfg[key] for key in known if model.pretrained_cfg.get(key) is not None}
    pretrained_cfg |= {"architecture": architecture, "num_classes": args["num_classes"], **timm_input(geometry)}
    with written_aside(out, "timm", overwrite) as folder:
        _save(weights, folder / WEIGHTS["timm"])
        body = {
            "architecture": architecture,
            "num_classes": args["num_classes"],
            "num_features": model.num_features,
            "pretrained_cfg": pretrained_cfg,
            **({"model_args": model_args} if model_args else {}),
            **our_keys(geometry, view, provenance),
        }
        _write_json(folder / CONFIG["timm"], body)
        _write_heads(folder, heads or {}, head_weights or {})
        _write_card(folder, Path(out).name, "timm", body, False)
    return Path(out)


def release_run(run: str | Path, out: str | Path, checkpoint: str = "best", overwrite: bool = False) -> Path:
    """Release a checkpoint (`best`, `last` or `step-N`) of a run folder: a dual encoder for open_clip, an image tower
    that was trained alone for timm.

    Raises:
        ReleaseError: no such checkpoint, or it is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from data_shards.preprocess import View, geometry_from_dict
    from encoders.image_only import trunk_weights

    folder = _checkpoint_folder(Path(run).expanduser(), checkpoint)
    weights_file, heads_file = folder / "encoders.safetensors", folder / HEADS
    if not weights_file.is_file():
        raise ReleaseError(
            f"checkpoint {folder.name} has no encoders.safetensors",
            "there is nothing to release",
            "choose another --checkpoint",
        )
    model = read_json(folder / "model.json")
    try:
        weights = load_file(weights_file)
        head_weights = load_file(heads_file) if heads_file.is_file() else {}
        cfg = model["model_cfg"]
        geometry, view = geometry_from_dict(_plain(model["geometry"])), View.from_dict(_plain(model["view"]))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ReleaseError(
            f"checkpoint {folder.name} is damaged ({type(error).__name__})",
            "part of the model would be missing",
            "choose another --checkpoint",
        ) from error
    beside: dict[str, Any] = {
        "heads": model.get("heads"),
        "head_weights": head_weights,
        "provenance": {key: model[key] for key in PROVENANCE if model.get(key) is not None},
        "overwrite": overwrite,
    }
    if "text_cfg" in cfg:
        return write_release(out, weights, cfg, geometry, view, **beside)
    vision = cfg["vision_cfg"]
    name, args = vision["timm_model_name"], vision.get("timm_model_args")
    return write_timm_release(out, trunk_weights(weights), name, geometry, view, model_args=args, **beside)


def relocate(folder: str | Path) -> Path:
    """Write the absolute path of a release into its config, which plain open_clip needs for a Hugging Face text tower.

    Raises:
        ReleaseError: not a whole release, or its text tower needs no path.
    """
    import shutil

    root = Path(folder).expanduser().resolve()
    listing = inspect(root)
    config = read_json(root / CONFIG["clip"]) if listing.kind == "clip" else {}
    text = config.get("model_cfg", {}).get("text_cfg", {})
    if not text.get("hf_model_name"):
        raise ReleaseError(
            f"'{root.name}' has no Hugging Face text tower",
            "there is no path to write",
            "move the folder freely; it loads anywhere",
        )
    text["hf_model_name"] = text["hf_tokenizer_name"] = str(root)
    with written_aside(root, listing.kind, overwrite=True) as aside:
        for name in set(listing.files) - {CONFIG["clip"]}:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, aside / name)
        _write_json(aside / CONFIG["clip"], config)
    return root


def _checkpoint_folder(run: Path, checkpoint: str) -> Path:
    if not run.is_dir():
        raise ReleaseError(f"no run folder at '{run}'", "there is nothing to release", "check --run: it does not exist")
    root = run / "checkpoints"
    known = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []
    number = checkpoint.removeprefix("step-")
    name = f"step-{int(number):08d}" if number.isdecimal() else checkpoint  # step-200 and step-00000200 are one
    if name not in known:
        raise ReleaseError(
            f"'{run.name}' has no checkpoint '{checkpoint}'",
            "there is nothing to release",
            f"it has {', '.join(known)}" if known else "give --run a folder made by pretrain.fit",
        )
    return root / name


def _check_fits(cfg: dict[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Names and shapes of the weights against those of the model, which is built without memory."""
    import torch

    from encoders.dual import build_dual

    trial = copy.deepcopy(cfg)
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    expected = build_dual(trial).clip.state_dict()
            except (NotImplementedError, RuntimeError):  # some timm models compute while they are built
                expected = build_dual(trial).clip.state_dict()
    except (TypeError, RuntimeError, ValueError, AssertionError, OSError) as error:
        raise _unfit(error) from error
    wrong = sorted(set(expected) ^ set(weights))
    wrong += [k for k in expected if k in weights and expected[k].shape != weights[k].shape]
    if wrong:
        raise _unfit(f"{len(wrong)} of {len(expected)} tensors differ in name or shape, first {wrong[0]}")


def _unfit(reason: object) -> ReleaseError:
    return ReleaseError(
        f"weights and model do not fit: {reason}",
        "the release could not be loaded",
        "pass the config the model was built from",
    )


def _wordpunct(text_cfg: dict[str, Any]) -> bool:
    """What training asked of the tokenizer; from here on it lies in the tokenizer itself."""
    return bool(text_cfg.pop("tokenizer_kwargs", {}).get("wordpunct", False))


def _write_text_tower_files(name: str, folder: Path, wordpunct: bool) -> None:
    """A Hugging Face tower's config and tokenizer, so that nothing has to be fetched to load the release."""
    try:
        from transformers import AutoConfig

        from encoders.tokenize import hf_tokenizer

        AutoConfig.from_pretrained(name).save_pretrained(folder)
        hf_tokenizer(name, wordpunct).save_pretrained(folder)
    except (ImportError, OSError, ValueError) as error:
        raise ReleaseError(
            f"config and tokenizer of the text tower cannot be had ({type(error).__name__})",
            "the release could not be loaded without a network",
            "install the extra `hf` and make the tower available as it was in training",
        ) from error


def _write_heads(folder: Path, spec: Mapping[str, Mapping[str, Any]], weights: Mapping[str, Tensor]) -> None:
    if not spec and not weights:
        return
    from encoders.heads import build_heads

    build_heads(spec, weights)  # refuses what could not be loaded again
    _save(weights, folder / HEADS)
    _write_json(folder / HEADS_SPEC, dict(spec))


def _write_card(folder: Path, name: str, kind: str, body: dict[str, Any], hugging_face: bool) -> None:
    stated = body.get("volume_cfg") or body["planar_cfg"]
    text = model_card(name, kind, stated["geometry"], stated["view"], body["provenance"], hugging_face)
    (folder / CARD).write_text(text, encoding="utf-8")


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors = {}
    for key, value in weights.items():
        value = value.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory (tied weights); each gets its own.
        tensors[key] = value.clone() if value.untyped_storage().data_ptr() in seen else value
        seen.add(value.untyped_storage().data_ptr())
    try:
        save_file(tensors, path, METADATA)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _plain(value: Any) -> dict[str, Any]:
    """A record of model.json, whether it was stored as an object or as its canonical JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m encoders.release",
        description="Turn a checkpoint of a run into a folder that plain open_clip loads.",
    )
    add = parser.add_argument
    add("--run", metavar="RUN", help="run folder (pretrain.fit)")
    add("--out", metavar="DIR", help="folder to write")
    add("--checkpoint", default="best", metavar="NAME", help="best, last or step-N (default: best)")
    add("--overwrite", action="store_true", help="replace an earlier release in DIR")
    add(
        "--relocate",
        metavar="DIR",
        help="alone: write DIR's absolute path into a release with a Hugging Face text tower",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 1 with the reason on stderr."""
    parser = _parser()
    args = parser.parse_args(argv)
    if bool(args.relocate) == bool(args.run and args.out) or bool(args.run) != bool(args.out):
        parser.error("give --run RUN --out DIR, or --relocate DIR")
    try:
        if args.relocate:
            print(f"relocated {relocate(args.relocate).name}")
            return 0
        out = release_run(args.run, args.out, args.checkpoint, args.overwrite)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"released {args.checkpoint} to {out}\nload it: encoders.load('{out}') or 'local-dir:{out}' in open_clip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
