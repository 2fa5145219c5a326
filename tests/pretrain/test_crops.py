"""Crops with known places."""

from __future__ import annotations

import copy

import timm
import torch
from torch import Tensor

from data_shards.batch import Batch, TextBatch
from pretrain.crops import Boxes, by_view, cut, draw_boxes, images_of, jittered, pairs_of_views, try_small
from pretrain.passes import Part, Rows
from pretrain.schema_objectives import CropOptions


def boxes(*rows: tuple[float, float, float, float, bool]) -> Boxes:
    return Boxes(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def test_a_crop_is_that_part_of_the_image_and_says_where_it_lies() -> None:
    """Of an image whose pixels are their own coordinates."""
    y, x = torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(48) + 0.5) / 48, indexing="ij")
    image = torch.stack([y, x])[None]
    told = boxes((0.25, 0.125, 0.5, 0.5, False), (0.0, 0.5, 0.5, 0.25, True), (0.0, 0.0, 1.0, 1.0, False))
    crops = cut(image.expand(3, -1, -1, -1), told, (16, 24))
    places = told.places((16, 24)).unflatten(1, (16, 24)).permute(0, 3, 1, 2)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at the border of the image pixels repeat
    torch.testing.assert_close(crops[inside], places[inside], atol=1e-4, rtol=0)
    assert crops[1, 1, 0, 0] > crops[1, 1, 0, -1]  # mirrored
    torch.testing.assert_close(cut(image, boxes((0.0, 0.0, 1.0, 1.0, False)), (64, 48)), image, atol=1e-5, rtol=0)


def test_boxes_are_as_large_as_was_said_and_inside() -> None:
    torch.manual_seed(0)
    found = draw_boxes(2000, (0.1, 0.5), 0.25, torch.device("cpu"))
    area = found.height * found.width
    assert 0.07 < area.min() < 0.12 and 0.48 < area.max() < 0.501 and 0.27 < area.mean() < 0.32
    assert (found.top >= 0).all() and (found.top + found.height <= 1.0001).all()
    assert (found.left >= 0).all() and (found.left + found.width <= 1.0001).all()
    aspect = found.width / found.height
    assert aspect.min() > 0.74 and aspect.max() < 1.34 and 0.2 < found.mirrored.float().mean() < 0.3


def test_jitter_and_blur() -> None:
    images = torch.randn(40, 3, 32, 32) * 0.5 + 2
    torch.testing.assert_close(jittered(images, 0.0, 0.0), images)
    changed = jittered(images, 0.4, 0.0)
    gain = changed.std((1, 2, 3)) / images.std((1, 2, 3))
    assert gain.min() < 0.8 and gain.max() > 1.2 and (changed.mean((1, 2, 3)) - 2).abs().max() < 0.3
    blurred = jittered(images, 0.0, 1.0)
    torch.testing.assert_close(blurred.mean((2, 3)), images.mean((2, 3)), atol=0.05, rtol=0)
    assert (blurred.std((2, 3)).mean() < images.std((2, 3)).mean()) and blurred.shape == images.shape


def part_of(images: Tensor) -> Part:
    rows, keys = torch.arange(len(images)), [str(i) for i in range(len(images))]
    texts = TextBatch.of([[] for _ in keys], lambda text: [1])
    return Part(Batch(0, rows, keys, rows, images, torch.zeros(len(keys), 0), (), texts), slice(1, 4), slice(0, 0))


def test_small_crops_are_of_another_size_and_one_seed_gives_one_set() -> None:
    part = part_of(torch.randn(5, 3, 32, 24))
    told = CropOptions(small=3, small_size=16)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(list(images_of(part, told)))
    (large, owner, _), (small, others, where) = made[0]
    assert large.shape == (6, 3, 32, 24) and small.shape == (9, 3, 16, 16)
    assert owner.tolist() == [1, 2, 3] * 2 and others.tolist() == [1, 2, 3] * 3
    assert (where.height * where.width).max() <= 0.41
    assert torch.equal(made[0][0][0], made[1][0][0]) and not torch.equal(made[0][0][0], made[2][0][0])


def test_views_are_sorted_by_study_whatever_parts_they_came_from() -> None:
    values = torch.arange(12.0)
    rows = Rows(values, torch.tensor([0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]))  # two parts of two studies, three views
    assert by_view(rows).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert pairs_of_views(2) == [(0, 1)] and pairs_of_views(4) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3)]


def test_a_trial_of_small_crops_changes_nothing() -> None:
    trunk = timm.create_model("resnet10t", num_classes=0).train()
    trunk.bn1.eval()
    before, draws = copy.deepcopy(trunk.state_dict()), torch.get_rng_state()
    try_small(trunk, CropOptions(small=1, small_size=24), "vicreg")
    after = trunk.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(draws, torch.get_rng_state()) and trunk.training and not trunk.bn1.training
