"""The fields of published benchmarks, read as closed questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from eval_zero_shot.outcome import Outcome

from .items import answer


def test_published_fields(planar: Path, images: Path, tmp_path: Path) -> None:
    """Rows in the shape each benchmark publishes."""
    names = [f"jane_doe_{i}.png" for i in range(4)]

    def counted(mapping: str, file: str, text: str) -> Outcome:
        (tmp_path / file).write_text(text)
        return answer(planar, tmp_path / file, tmp_path / mapping, "--images", images, "--mapping", mapping)

    with (tmp_path / "raw.csv").open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(
            ["Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "Answer_label"]
        )
        table.writerow([names[0], "What, exactly?", " A:CT ", " B: MRI", "C: PET", "D: X-ray", "MRI", "B"])
        table.writerow([names[1], "Modality?", "A:CT", "B:MRI", "C:PET", "D:X-ray", "C", ""])
        table.writerow([names[2], "Modality?", "A:CT", "B:MRI", "C:CT", "D:X-ray", "B: MRI", ""])
    outcome = counted("pmc_vqa", "pmc.csv", (tmp_path / "raw.csv").read_text())
    assert outcome.main.n == 2 and outcome.provenance["rejected_items"] == {"two options are the same": 1}
    kept = [json.loads(line) for line in (tmp_path / "pmc_vqa" / "items.jsonl").read_text().splitlines()]
    assert [(row["options"][row["answer"]], row["n_options"]) for row in kept] == [("MRI", 4), ("PET", 4)]

    def slake(image: int, kind: str, answer: str, closed: str = "CLOSED", lang: str = "en") -> dict[str, Any]:
        question = {"question": "Which is larger?", "content_type": kind, "answer": answer, "answer_type": closed}
        return {"img_name": names[image], "qid": image, "q_lang": lang, **question}

    rows_ = [slake(0, "Size", "Liver"), slake(1, "Size", "Lung"), slake(2, "Size", "yes"), slake(3, "Shape", "Round")]
    rows_ += [slake(0, "Size", "Heart", "OPEN"), slake(0, "Size", "是", lang="zh")]
    outcome = counted("slake", "slake.json", json.dumps(rows_))
    assert outcome.main.n == 3
    assert outcome.provenance["rejected_items"] == {"not English": 1, "one option only": 1, "open question": 1}
    assert outcome.prompts["option_counts"] == {"2": 3}

    def rad(image: int, answer: str, kind: str) -> dict[str, Any]:
        return {"image_name": names[image], "question": "Is it?", "answer": answer, "answer_type": kind, "qid": 1}

    given = [rad(0, "Yes", "CLOSED "), rad(1, "no", "CLOSED"), rad(2, "left", "CLOSED"), rad(3, "Yes", "OPEN")]
    outcome = counted("vqa_rad", "rad.json", json.dumps(given))
    assert outcome.main.n == 2 and sum(outcome.provenance["rejected_items"].values()) == 2

    question = "How is the spleen? A: Normal (no splenomegaly) B: Mild C: Severe, vitamin C: low"
    tumour = {"image_id": names[0], "question": "How is the spleen?", "mc_question": question, "correct_option": "A"}
    free = {"image_id": names[1], "question": "How large?", "answer": "3.2", "mc_question": None}
    outcome = counted("deeptumor", "tumour.json", json.dumps({"version": 2, "questions": [tumour, free]}))
    assert outcome.main.n == 1 and outcome.prompts["option_counts"] == {"3": 1}

    stain = {"question": "Stain?", "options": ["H&E", "none of the above"], "answer": "H&E", "answer_idx": 0, "id": "1"}
    told = {"stain": ["stained with H&E", "another stain"]}
    lines = [{"image_id": "jane_doe_0", "questions": {"stain": stain, "modality": None}, "captions": told}]
    lines += [{"image_id": "jane_doe_1", "questions": {"stain": stain, "domain": {"question": "?"}}}]
    for text in ("\n".join(json.dumps(line) for line in lines), json.dumps(lines[0])):
        outcome = counted("ubench", "ubench.jsonl", text)
        assert outcome.main.n == text.count("image_id")
        assert outcome.prompts["caption_rules"]["given"] == 1
        assert outcome.metric("accuracy", "stain").n == outcome.main.n
