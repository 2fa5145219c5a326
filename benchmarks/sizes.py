"""How large the encoders are and what fits on a GPU: `python -m benchmarks.sizes`.

From the real modules on the meta device, so nothing is computed: parameters are counted, operations by torch's
FlopCounterMode over a forward and backward pass, and activations by summing what autograd saves for the backward pass
(each storage once) under bf16 autocast. States are fp32 weights, gradients and two AdamW moments: 16 bytes a parameter,
divided by the number of GPUs under FSDP2. What kernels allocate besides is not counted, so leave a tenth of the memory
free (the batch sizes printed do); a GPU decides, none was at hand where this was written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from encoders.volumetric import NAMES

GIB = 2**30
MODELS = ("tiny", "small", "base", "large")
TAGS = {"voxvit": "p-8x16x16_i-96x192x192_c-3_s-conv_a-slice3", "swin3d": "i-96x96x96_c-1"}
TEXT = {"tiny": (192, 4, 4), "small": (384, 8, 6), "base": (512, 12, 8), "large": (768, 12, 12)}  # width, layers, heads
TOKENS = 600  # of a study: its report and a dozen sentences


def measure(size: str, tag: str, checkpointed: bool, family: str = "voxvit") -> dict[str, float]:
    """Parameters, training TFLOPs and saved bytes a study, and the TFLOPs of its image forward alone."""
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    from encoders.attention import Packing
    from encoders.dual import build_dual
    from encoders.text import encode_packed
    from encoders.volumetric import parse

    name = f"{family}_{size}.{tag}"
    width, layers, heads = TEXT[size]
    with torch.device("meta"):
        dual = build_dual(
            {
                "embed_dim": 512,
                "custom_text": True,
                "vision_cfg": {
                    "timm_model_name": name,
                    "timm_model_pretrained": False,
                    "timm_pool": "",
                    "timm_proj": "linear",
                    "image_size": 192,
                },
                "text_cfg": {
                    "context_length": 256, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers,
                },
            }
        ).train()  # fmt: skip
        image = torch.empty(1, parse(name).channels, *parse(name).grid)
        tokens = torch.zeros(TOKENS, dtype=torch.long)
    dual.clip.set_grad_checkpointing(checkpointed)
    saved: dict[int, int] = {}
    parameters = {p.untyped_storage()._cdata for p in dual.parameters()}
    kept: list[torch.Tensor] = []  # storages live on, or an address could be given out twice

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage.nbytes()
            kept.append(x)
        return x

    forward = FlopCounterMode(display=False)
    with forward, torch.no_grad():
        dual.clip.encode_image(image)
    counter = FlopCounterMode(display=False)
    packing = Packing((TOKENS // 3,) * 3, torch.device("meta"))
    with counter, saved_tensors_hooks(pack, lambda x: x):
        with torch.autocast("cuda", torch.bfloat16, enabled=False):
            features = dual.clip.encode_image(image)
            text = encode_packed(dual.clip.text, tokens, packing)
        (features.sum() + text.sum()).backward()
    image_parameters = sum(p.numel() for p in dual.clip.visual.parameters())
    return {
        "image": image_parameters,
        "text": sum(p.numel() for p in dual.clip.text.parameters()),
        "tflop": counter.get_total_flops() / 1e12,
        "forward": forward.get_total_flops() / 1e12,
        # Counted in fp32, kept in bf16: autocast has no meta kernels, and all but a few norms are half as large.
        "saved": sum(saved.values()) / 2,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizes", description="How large the encoders are and what fits on a GPU."
    )
    add = parser.add_argument
    add("--family", default="voxvit", choices=TAGS, help="of image towers")
    add("--models", nargs="*", choices=MODELS, metavar="SIZE", help=f"of {', '.join(MODELS)} (default: all there are)")
    add("--tag", help=f"geometry of the image tower (default: {', '.join(f'{k}: {v}' for k, v in TAGS.items())})")
    add("--memory", type=float, default=80.0, metavar="GIB", help="of one GPU (default: 80)")
    args = parser.parse_args(argv)
    family, tag = args.family, args.tag or TAGS[args.family]
    models = args.models or [size for size in MODELS if f"{family}_{size}" in NAMES]
    print(f"Image tower {family}_SIZE.{tag}, {TOKENS} text tokens a study; one GPU of {args.memory:g} GiB, and 8")
    print("with FSDP2. Studies are the most a GPU's memory holds, a tenth left free, without and with checkpointing.\n")
    head = "size | image M | text M | forward TFLOP, image | TFLOP a study | states GiB | GiB a study | ckpt"
    print(f"| {head} | studies, 1 GPU | a GPU of 8 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in models:
        plain, light = (measure(size, tag, checkpointed, family) for checkpointed in (False, True))
        states = 16 * (plain["image"] + plain["text"]) / GIB
        each, lighter = plain["saved"] / GIB, light["saved"] / GIB

        def fits(states: float, each: float = each, lighter: float = lighter) -> str:
            room = 0.9 * args.memory - states
            return f"{int(room / each)}, {int(room / lighter)}" if room > 0 else "0"

        row = [
            size, f"{plain['image'] / 1e6:.1f}", f"{plain['text'] / 1e6:.1f}", f"{plain['forward']:.3f}",
            f"{plain['tflop']:.2f}", f"{states:.1f}", f"{each:.2f}", f"{lighter:.2f}", fits(states), fits(states / 8),
        ]  # fmt: skip
        print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
