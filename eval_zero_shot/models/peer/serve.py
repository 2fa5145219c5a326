"""The other end of `process:WRAPPER.py,ARGUMENT@PYTHON`: run by the other Python, which needs numpy alone.

    PYTHON serve.py WRAPPER.py ARGUMENT DEVICE

A wrapper defines `load(argument, device)`, which returns an object with `describe()`, `encode_images(images)` and
`encode_texts(texts)`; docs/models.md says what they return. Over stdin and stdout go JSON lines, and behind a line that
says so raw little-endian float32. Nothing is pickled.

    {"do": "describe"}                                        -> {"ok": {...}, "code_sha256": "..."}
    {"do": "encode_images", "shape": [B, C, ...]} + B*C*... floats -> {"shape": [B, D]} + B*D floats
    {"do": "encode_texts", "texts": ["...", ...]}             -> {"shape": [U, D]} + U*D floats
    any failure                                               -> {"error": "TypeName: message"}

code_sha256 is of the wrapper and of every Python file below its folder.
"""

import argparse
import hashlib
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
                answer({"ok": model.describe(), "code_sha256": code_sha256(wrapper)})
                continue
            if request["do"] == "encode_images":
                found = model.encode_images(np.frombuffer(floats, "<f4").reshape(request["shape"]).copy())
            else:
                found = model.encode_texts(request["texts"])
            found = np.ascontiguousarray(found, "<f4")
            answer({"shape": list(found.shape)}, found.tobytes())
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


def code_sha256(wrapper: str) -> str:
    """Of names and bytes of the wrapper and of every Python file below its folder, whether it is imported already or
    only when an image comes; environments and hidden folders aside."""
    folder, files = os.path.dirname(os.path.realpath(wrapper)), []
    for root, folders, names in os.walk(folder):
        kept = (name for name in folders if not name.startswith(".") and name not in ("site-packages", "__pycache__"))
        folders[:] = [name for name in kept if not os.path.exists(os.path.join(root, name, "pyvenv.cfg"))]
        files += [os.path.join(root, name) for name in names if name.endswith(".py")]
    digest = hashlib.sha256()
    for file in sorted({*files, os.path.realpath(wrapper)}):
        with open(file, "rb") as opened:
            digest.update(f"{os.path.relpath(file, folder)}\0{hashlib.sha256(opened.read()).hexdigest()}\0".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer for a model over stdin and stdout; docs/models.md.")
    for word in ("wrapper", "argument", "device"):
        parser.add_argument(word)
    words = parser.parse_args()
    # The wrapper finds what lies beside it, as if it had been started itself, and nothing of this folder.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(os.path.abspath(words.wrapper)), *(p for p in sys.path if p != here)]
    main(**vars(words))
