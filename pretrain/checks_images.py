"""Checks of runs without a text tower (`model.text: null`). Stage 1: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pretrain import known_models
from pretrain.schema import EvaluateSection, ModelSection, ObjectiveSection, OptimSection
from pretrain.schema_data import DataSection, UnitSection
from pretrain.schema_objectives import OBJECTIVE_OPTIONS
from pretrain.yaml_lines import Problem

READS_TEXTS = ("units", "text", "condition")  # options that say what an objective reads of texts
NAMED = ("report_contrastive", "matching")


def reads_texts(name: str) -> bool | None:
    """Whether an objective that comes with this package needs texts; None for somebody else's."""
    options = OBJECTIVE_OPTIONS.get(name)
    if options is None:
        return None
    return name in NAMED or any(key in options.model_fields for key in READS_TEXTS)


def texts_of(units: UnitSection) -> list[str]:
    """Kinds of text that are switched on."""
    kinds = ("report", "sentences", "sections", "captions", "templates", "alternate")
    return [kind for kind in kinds if getattr(units, kind)]


def check_images_alone(
    data: DataSection,
    model: ModelSection,
    objectives: Sequence[ObjectiveSection],
    evaluate: EvaluateSection,
    optim: OptimSection,
) -> Iterator[Problem]:
    if model.text is not None:
        return
    if texts := texts_of(data.units):
        what = f"nobody would read them ({', '.join(texts)}): model.text is null"
        yield Problem(("data", "units"), what, "write units: {report: false}, or add a text tower")
    for i, objective in enumerate(objectives):
        if reads_texts(objective.name):
            what = f"{objective.name} compares with texts, and model.text is null"
            yield Problem(("objectives", i, "name"), what, "leave it out, or add a text tower: model.text: {}")
    if model.report is not None:
        yield Problem(("model", "report"), "reads texts, and model.text is null", "set it to null")
    if model.centred:
        what = "centres images and texts in one space, and model.text is null: there is no such space"
        yield Problem(("model", "centred"), what, "set it to false")
    if optim.lr_multipliers.text != 1:  # a dumped recipe writes the 1 out
        what = "would be ignored: model.text is null"
        yield Problem(("optim", "lr_multipliers", "text"), what, "leave it out")
    if evaluate.task is not None:
        what = "zero-shot scores compare images with texts, and model.text is null"
        fix = "set it to null, and probe the release: python -m eval_zero_shot.probe"
        yield Problem(("evaluate", "task"), what, fix)
    name = model.image.name
    if known_models.is_known(name) and name != name.lower():  # timm writes all names in lower case
        what = f"'{name}' is open_clip's own tower, and without a text tower a release is for timm"
        yield Problem(("model", "image", "name"), what, "use timm's of the same kind: vit_base_patch16_224, resnet50")
