"""Questions about made-up pictures, and a plain loop that answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch

import encoders
import eval_zero_shot
from eval_zero_shot.outcome import Outcome, read_results
from eval_zero_shot.vqa.__main__ import main

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
ORGANS = ("liver", "spleen", "lung", "heart")


def rows() -> list[dict[str, Any]]:
    """Twelve images, two questions each: four options, and yes or no."""
    found: list[dict[str, Any]] = []
    for i in range(12):
        image, patient = f"jane_doe_{i}.png", f"Jane Doe {i // 2}"
        organ = {"question": "Which organ is shown?", "options": list(ORGANS), "answer": ORGANS[i % 4]}
        effusion = {
            "question": "Is there a pleural effusion?",
            "options": ["Yes", "No"],
            "answer": int(i % 3 > 0),
        }
        found.append({"image": image, "patient": patient, "category": "organ", **organ})
        found.append({"image": image, "patient": patient, "category": "effusion", **effusion})
    return found


def write(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def answer(release: Path, items: Path, out: Path, *more: object) -> Outcome:
    words = ["--model", release, "--items", items, "--out", out, "--device", "cpu", "--no-cache", *more]
    assert main([str(w) for w in words]) == 0
    schema = Path(eval_zero_shot.__file__).with_name("results.schema.json")
    jsonschema.validate(json.loads((out / "results.json").read_text()), json.loads(schema.read_text()))
    (outcome,) = read_results(out)
    return outcome


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x.double(), dim=-1).numpy()


def said(loaded: Any, sentence: str) -> np.ndarray:
    ids = loaded.tokenizer(sentence)
    return unit(loaded.model.encode_units(torch.tensor(ids), [len(ids)]))[0]


def plain_accuracy(release: Path, images: Path, sentences: Any, image_is: float = 1, blank_is: float = 0) -> float:
    """One item after another, with nothing but the release. Scores: image_is * image's + blank_is * black image's."""
    loaded = encoders.load(str(release))
    right = []
    with torch.no_grad():
        for row in rows():
            image, blank = (
                unit(loaded.model.encode_image(loaded.preprocess(scan)[None]).study_BD)[0]
                for scan in (images / row["image"], np.zeros((16, 16, 3), np.uint8))
            )
            scores = [float((image_is * image + blank_is * blank) @ said(loaded, s)) for s in sentences(row)]
            correct = row["options"].index(row["answer"]) if isinstance(row["answer"], str) else row["answer"]
            right.append(int(np.argmax(scores)) == correct)
    return float(np.mean(right))


def default_sentences(row: dict[str, Any]) -> list[str]:
    if len(row["options"]) == 2:
        return ["There is a pleural effusion.", "There is no pleural effusion."]
    return [f"Which organ is shown? {organ}." for organ in row["options"]]
