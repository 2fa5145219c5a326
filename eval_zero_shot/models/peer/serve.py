"""The other end of `process:WRAPPER.py,ARGUMENT@PYTHON`: run by the other Python, which needs numpy alone.

    PYTHON serve.py WRAPPER.py ARGUMENT DEVICE

A wrapper defines `load(argument, device)`, which returns an object with `describe()`, `encode_images(images)` and
`encode_texts(texts)`; docs/models.md says what they return. Over stdin and stdout go JSON lines, and behind a line that
says so raw little-endian float32. Nothing is pickled.

    {"do": "describe"}                                        -> {"ok": {...}}
    {"do": "encode_images", "shape": [B, C, ...]} + B*C*... floats -> {"shape": [B, D]} + B*D floats
    {"do": "encode_texts", "texts": ["...", ...]}             -> {"shape": [U, D]} + U*D floats
    any failure                                               -> {"error": "TypeName: message"}
"""

import argparse
import importlib.util
import json
import os
import sys

import numpy as np


def main(wrapper: str, argument: str, device: str) -> None:
    """Load the wrapper and answer until stdin closes."""
    # What libraries print goes to stderr; the pipe carries answers alone.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked = sys.stdin.buffer

    def answer(line: dict, floats: bytes = b"") -> None:
        answers.write(json.dumps(line).encode() + b"\n" + floats)
        answers.flush()

    try:
        spec = importlib.util.spec_from_file_location("voxclip_wrapper", wrapper)
        assert spec and spec.loader, "the wrapper is no Python file"
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.load(argument, device)
    except Exception as error:  # whatever it is, the other side has to hear of it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"ok": "loaded"})
    for line in iter(asked.readline, b""):
        request = json.loads(line)
        floats = b""
        if request["do"] == "encode_images":
            floats = asked.read(4 * int(np.prod(request["shape"])))
        try:
            if request["do"] == "describe":
                answer({"ok": model.describe()})
                continue
            if request["do"] == "encode_images":
                found = model.encode_images(np.frombuffer(floats, "<f4").reshape(request["shape"]).copy())
            else:
                found = model.encode_texts(request["texts"])
            found = np.ascontiguousarray(found, "<f4")
            answer({"shape": list(found.shape)}, found.tobytes())
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    # The wrapper's imports must not find files of this folder.
    sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]
    parser = argparse.ArgumentParser(description="Answer for a model over stdin and stdout; docs/models.md.")
    for word in ("wrapper", "argument", "device"):
        parser.add_argument(word)
    main(**vars(parser.parse_args()))
