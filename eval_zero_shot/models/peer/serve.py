"""The other end of `process:WRAPPER.py,ARGUMENT@PYTHON`: run by the other Python, which needs numpy alone.

    PYTHON serve.py WRAPPER.py ARGUMENT DEVICE

A wrapper defines `load(argument, device)`, which returns an object with `describe()`, `encode_images(images)` and
`encode_texts(texts)`; docs/models.md says what they return. Over stdin and stdout go JSON lines, and behind a line that
says so raw little-endian float32. Nothing is pickled.

    {"do": "describe"}                                        -> {"ok": {...}, "code_sha256": "..."}
    {"do": "encode_images", "shape": [B, C, ...]} + B*C*... floats -> {"shape": [B, D]} + B*D floats
    {"do": "encode_texts", "texts": ["...", ...]}             -> {"shape": [U, D]} + U*D floats
    any failure                                               -> {"error": "TypeName: message"}

code_sha256 is of the wrapper and of every module that it imported from its own folder.
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
    """Of names and bytes of the wrapper and of what it imported from below its folder, installed packages aside."""
    wrapper = os.path.realpath(wrapper)
    folder, environment = (path + os.sep for path in (os.path.dirname(wrapper), os.path.realpath(sys.prefix)))
    files = {wrapper}
    for module in list(sys.modules.values()):
        file = os.path.realpath(getattr(module, "__file__", None) or os.sep)
        if file.startswith(folder) and not file.startswith(environment) and "site-packages" not in file:
            files.add(file)
    digest = hashlib.sha256()
    for file in sorted(files):
        with open(file, "rb") as opened:
            digest.update(f"{file[len(folder) :]}\0{hashlib.sha256(opened.read()).hexdigest()}\0".encode())
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
