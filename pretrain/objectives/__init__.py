"""Objectives by name. A new method is one file here and a name in a YAML, or an import path `package.module:Class`."""

from __future__ import annotations

import importlib

from pretrain.objectives.base import Objective

NAMES = {
    "contrastive": "pretrain.objectives.contrastive:Contrastive",
    "sigmoid": "pretrain.objectives.sigmoid:Sigmoid",
    "sentence": "pretrain.objectives.sentence:Sentence",
    "attended": "pretrain.objectives.attended:Attended",
    "simclr": "pretrain.objectives.simclr:SimCLR",
    "rotation": "pretrain.objectives.rotation:Rotation",
    "inpainting": "pretrain.objectives.inpainting:Inpainting",
    "vicreg": "pretrain.objectives.vicreg:VICReg",
    "barlow_twins": "pretrain.objectives.barlow_twins:BarlowTwins",
    "byol": "pretrain.objectives.byol:BYOL",
    "graph_matching": "pretrain.objectives.graph_matching:GraphMatching",
    "labels": "pretrain.objectives.labels:Labels",
    "report_contrastive": "pretrain.objectives.report_contrastive:ReportContrastive",
    "matching": "pretrain.objectives.matching:Matching",
    "masked_language": "pretrain.objectives.masked_language:MaskedLanguage",
    "hierarchical": "pretrain.objectives.hierarchical:Hierarchical",
    "masked_image": "pretrain.objectives.masked_image:MaskedImage",
    "distillation": "pretrain.objectives.distillation:Distillation",
}


def find_objective(name: str) -> type[Objective]:
    """The class behind a name or import path.

    Raises:
        ValueError: it does not exist or is no Objective.
    """
    module, _, attribute = NAMES.get(name, name).partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"objective '{name}' cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise ValueError(f"objective '{name}' is no subclass of pretrain.objectives.base.Objective")
    return cls
