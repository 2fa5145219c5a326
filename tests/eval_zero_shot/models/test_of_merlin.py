"""Merlin from a checkpoint of its own shapes and names, and its preprocessing against Merlin's own transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.preprocess import View, apply_view
from data_shards.shard_set import ShardSet
from eval_zero_shot import EvalError
from eval_zero_shot.classification import score_classification
from eval_zero_shot.embedding import embed_texts
from eval_zero_shot.inputs import Inputs
from eval_zero_shot.models.of_merlin import GEOMETRY, VIEW, sanitised
from eval_zero_shot.release import load_dual, model_name

from ..conftest import TASK

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "no", "pleural", "effusion", ".", "fractured", "spleen"]


def longformer(folder: Path) -> Path:
    """A text tower of Longformer's kind and true width, two layers deep, and a tokenizer, without weights."""
    transformers = pytest.importorskip("transformers", reason="extra merlin is not installed")
    folder.mkdir()
    transformers.LongformerConfig(
        hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=256, vocab_size=len(WORDS),
        attention_window=[8, 8], max_position_embeddings=1026, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    ).save_pretrained(folder)  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    special = {f"{name}_token": WORDS[i] for name, i in {"cls": 0, "pad": 1, "sep": 2, "unk": 3, "mask": 4}.items()}
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), **special).save_pretrained(folder)
    return folder


def theirs(folder: Path) -> torch.nn.Module:
    """Merlin's own architecture class, random, with `folder` in the place of what it takes from the hub."""
    build_py = pytest.importorskip("merlin.models.build", reason="merlin-vlm is not installed (extra merlin)")
    from torchvision.models import resnet152
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:  # the three downloads of its constructors
        patch.setattr(build_py.torchvision.models, "resnet152", lambda pretrained: resnet152(weights=None))
        patch.setattr(build_py.AutoModel, "from_pretrained", lambda name: AutoModel.from_config(config))
        patch.setattr(build_py.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
        torch.manual_seed(0)
        return build_py.MerlinArchitecture().eval()


@pytest.mark.full
def test_checkpoint_of_merlins_shapes_gives_merlins_numbers(toy_shards: ShardSet, tmp_path: Path) -> None:
    folder = longformer(tmp_path / "longformer")
    merlin = theirs(folder)
    state = merlin.state_dict()
    assert state["encode_image.i3_resnet.contrastive_head.weight"].shape == (512, 2048, 1, 1, 1)
    assert state["encode_image.i3_resnet.layer3.35.conv2.weight"].shape == (256, 256, 3, 3, 3)
    torch.save(state, tmp_path / "merlin.pt")
    loaded = load_dual(f"merlin:{tmp_path / 'merlin.pt'},{folder}", "cpu")
    assert model_name(f"merlin:{tmp_path / 'merlin.pt'},{folder}") == "merlin:merlin.pt,longformer"
    texts = ["No pleural effusion.", "Fractured spleen. No pleural effusion. " * 30]
    images_BCDHW = torch.rand(2, 1, 32, 64, 48) * 2 - 1
    with torch.no_grad():
        image, _, text = merlin((images_BCDHW + 1).mul(0.5).permute(0, 1, 4, 3, 2), texts)
        ours = torch.nn.functional.normalize(loaded.model.encode_image(images_BCDHW).study_BD, dim=-1)
    assert torch.allclose(ours, image, atol=1e-5)
    vectors = np.stack(list(embed_texts(loaded.model, loaded.tokenizer, texts).values()))
    assert np.allclose(vectors, text.numpy(), atol=1e-5)
    assert float(loaded.model.logit_scale) == 1.0

    # A whole evaluation, through a view that a test can afford; the released one is 160 x 224 x 224.
    assert (loaded.geometry, loaded.view) == (GEOMETRY, VIEW)
    small = View("centre", (16, 32, 32))
    rows = toy_shards.rows("test")[:4]
    inputs = Inputs.of(loaded.model, loaded.tokenizer, toy_shards, GEOMETRY, small)
    found = score_classification(inputs, rows, TASK, resamples=0)
    assert found.studies == 4 and found.main.value is not None

    del state["encode_text.linear_layer.weight"]
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(EvalError, match=r"encode_text.linear_layer.weight is missing"):
        load_dual(f"merlin:{tmp_path / 'other.pt'},{folder}", "cpu")


def test_texts_are_written_as_in_training() -> None:
    pytest.importorskip("nltk", reason="extra merlin is not installed")
    assert sanitised("No 3.5cm mass; T2-hyperintense.") == "no 3 . 5cm mass ; t2 - hyperintense ."


@pytest.mark.full
@pytest.mark.parametrize("spacing", [(3.0, 1.5, 1.5), (2.5, 0.8, 0.7), (5.0, 2.0, 2.1)])
def test_preprocessing_against_merlins_own_transforms(spacing: tuple[float, float, float], tmp_path: Path) -> None:
    """Axes, directions, window, scale and padding are Merlin's; the place is, to one voxel. MONAI's grid begins in the
    first stored voxel, ours shares its centre with the volume. On a ramp the difference of two grids is their distance.
    """
    import nibabel

    transforms = pytest.importorskip("merlin.data.monai_transforms", reason="merlin-vlm is not installed")
    shape = (41, 60, 51)
    affine = np.diag([*spacing[::-1], 1.0])
    for axis, n in enumerate(shape):
        ramp = np.linspace(-500, 500, n).reshape([-1 if a == axis else 1 for a in range(3)])
        volume_DHW = np.broadcast_to(ramp, shape).round().astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume_DHW.transpose(2, 1, 0), affine), tmp_path / "scan.nii.gz")
        theirs_1WHD = transforms.ImageTransforms({"image": str(tmp_path / "scan.nii.gz")})["image"]
        theirs_DHW = np.asarray(theirs_1WHD)[0].transpose(2, 1, 0)
        ours_DHW = (apply_view(volume_DHW, {"spacing_mm": spacing}, GEOMETRY, VIEW)[0] + 1) / 2
        assert ours_DHW.shape == theirs_DHW.shape == (160, 224, 224)
        inside = (theirs_DHW > 0.3) & (theirs_DHW < 0.7) & (ours_DHW > 0)
        step = 1000 / (n - 1) * GEOMETRY.spacing_mm[axis] / spacing[axis] / 2000  # type: ignore[index]
        voxels = (ours_DHW - theirs_DHW)[inside] / step
        assert voxels.size > 1000
        assert np.abs(voxels).max() < 1.05
        assert np.ptp(voxels) < 0.1, "one distance everywhere: equal scale and direction"
