"""A model in another Python: a worker process answers over a pipe (peer/serve.py), so that a peer's pinned packages
never meet ours."""

from __future__ import annotations

import contextlib
import json
import subprocess
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.errors import DataError
from data_shards.geometry import View, geometry_from_dict
from eval_zero_shot.errors import EvalError
from eval_zero_shot.models.adapter import Adapter, loaded

if TYPE_CHECKING:
    from encoders.loading import Loaded

PEER = Path(__file__).parent / "peer"
WRAPPERS = {"colipri": PEER / "colipri_wrapper.py"}
INSTALL = {"colipri": "python -m venv colipri-env && colipri-env/bin/pip install colipri"}


class Worker:
    """The process and its pipe."""

    def __init__(self, python: str, wrapper: Path, argument: str, device: str) -> None:
        words = [python, str(PEER / "serve.py"), "--", str(wrapper), argument, device]
        try:
            self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise EvalError(
                f"the Python of the worker does not start ({error.strerror})",
                why="the model runs in it",
                fix="check @PYTHON",
            ) from None
        self._end = weakref.finalize(self, _end, self.process)  # when nobody holds the model any more, or at exit
        self._answer()

    def ask(self, request: dict[str, Any], floats: bytes = b"") -> dict[str, Any]:
        """One request and its answer. Raises EvalError with what the worker says, or that it is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n" + floats)
            self.process.stdin.flush()
        except OSError:
            raise self._gone() from None
        return self._answer()

    def features(self, request: dict[str, Any], rows: int, floats: bytes = b"") -> NDArray[np.float32]:
        """Float32 [rows, D]."""
        assert self.process.stdout is not None
        shape = self.ask(request, floats).get("shape", [])
        raw = self.process.stdout.read(4 * int(np.prod(shape)))
        if len(shape) != 2 or shape[0] != rows or len(raw) != 4 * shape[0] * shape[1]:
            raise EvalError(
                f"the worker answered {request['do']} of {rows} with shape {shape}",
                why="features and studies would be mixed up",
                fix=f"return one row of features each: [{rows}, D]",
            )
        return np.frombuffer(raw, "<f4").reshape(shape)

    def close(self) -> None:
        """End the worker; calling it again does nothing."""
        self._end()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._gone()
        answer = json.loads(line)
        if "error" in answer:
            raise EvalError(
                f"the worker says: {answer['error']}",
                why="it cannot encode",
                fix="run the wrapper by itself in @PYTHON",
            )
        return answer

    def _gone(self) -> EvalError:
        return EvalError(
            f"the worker process ended (exit status {self.process.wait()})",
            why="its model cannot be asked",
            fix="its own messages are above; is numpy installed in @PYTHON, and memory left?",
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """A closed stdin ends a worker that waits; one that computes is stopped after five seconds."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a worker that died has broken the pipe
                pipe.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class ProcessDual(Adapter):
    """Images and texts go to the worker as they are: texts travel as their UTF-8 bytes for tokens."""

    def __init__(self, worker: Worker, logit_scale: float) -> None:
        super().__init__(logit_scale)
        self.worker = worker

    def images(self, images: Tensor) -> Tensor:
        x = np.ascontiguousarray(images.float().cpu().numpy(), "<f4")
        found = self.worker.features({"do": "encode_images", "shape": list(x.shape)}, len(x), x.tobytes())
        return torch.from_numpy(found.copy()).to(images.device)

    def texts(self, ids_UL: Tensor, inside_UL: Tensor) -> Tensor:
        rows = zip(ids_UL.cpu(), inside_UL.cpu(), strict=True)
        texts = [bytes(ids[inside].tolist()).decode() for ids, inside in rows]
        found = self.worker.features({"do": "encode_texts", "texts": texts}, len(texts))
        return torch.from_numpy(found.copy()).to(ids_UL.device)


def load(kind: str, rest: str, device: str) -> Loaded:
    """`process:WRAPPER.py[,ARGUMENT]@PYTHON`, or a peer whose wrapper is here: `colipri:FOLDER[,1mm]@PYTHON`.

    Raises EvalError: no wrapper, no such Python, or whatever the wrapper says.
    """
    rest, _, python = rest.rpartition("@") if "@" in rest else (rest, "", "")
    wrapper, argument = WRAPPERS.get(kind), rest
    if wrapper is None:
        first, _, argument = rest.partition(",")
        wrapper = Path(first).expanduser()
    if not python or not wrapper.is_file():
        what = "names no Python" if not python else f"has no wrapper at {wrapper.name}"
        install = f" ({INSTALL[kind]})" if kind in INSTALL else ""
        raise EvalError(
            f"{kind}:{Path(rest).name} {what}",
            why="the model runs in an environment of its own",
            fix=f"{kind}:...@/path/to/bin/python of an environment that has its packages{install}",
        )
    worker = Worker(str(Path(python).expanduser()), wrapper, argument, device)
    try:
        answered = worker.ask({"do": "describe"})
        told, code = answered["ok"], answered["code_sha256"]
        geometry, view = geometry_from_dict(told["geometry"]), View.from_dict(told["view"])
        weights = str(told["weights_sha256"])
        scale = float(told.get("logit_scale", 0.0))
    except (KeyError, TypeError, ValueError, DataError) as error:
        worker.close()
        if isinstance(error, EvalError):
            raise
        raise EvalError(
            f"the wrapper's describe() cannot be used: {error}",
            why="nothing says how studies have to be prepared and which weights answer",
            fix='return {"weights_sha256": ..., "geometry": {"kind": ...}, "view": {...}} (docs/models.md)',
        ) from None
    about = {
        "package": "process",
        "text_context": told.get("text_context"),
        "told": told,
        "wrapper": code,
    }
    tokenizer = (lambda text: list(text.encode())) if told.get("texts", True) else None
    return loaded(ProcessDual(worker, scale), geometry, view, tokenizer, about, device, weights_sha256=weights)
