"""Shipped lists of names, judged before anything heavy is imported, against what is installed."""

from __future__ import annotations

from pretrain import known_models
from pretrain.checks import objective_names, task_names


def test_known_models_are_those_that_exist() -> None:
    existing = known_models.installed()
    if known_models.is_current():
        assert known_models.names() == existing
    else:  # another timm within our floors: the list may lag, but not be something else
        assert len(known_models.names() & existing) > 0.9 * len(known_models.names())
    assert not any(name.startswith("voxvit") for name in known_models.names())


def test_pretrained_tags_and_open_clip_names_are_known() -> None:
    assert known_models.is_known("vit_base_patch16_224.augreg_in21k")
    assert known_models.is_known("ViT-B-32")
    assert known_models.suggest("vit_tiny_patch16_22").startswith("did you mean vit_tiny_patch16_224")


def test_built_in_objectives_are_known_before_import() -> None:
    from pretrain.objectives import NAMES

    assert set(NAMES) <= set(objective_names())


def test_the_phantom_task_is_packaged() -> None:
    assert "phantom" in task_names()
