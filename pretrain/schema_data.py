"""The data section of a recipe: sources, geometry, views, text units. Geometry and views mirror `data_shards.geometry`,
with one line of meaning a key."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pretrain.schema_base import Channels, Fraction, Section, Size, Triple

Layout = Literal["auto", "unimed", "biomedica", "clip_benchmark", "img2dataset"]

Modality = Annotated[str, Field(pattern=r"^[A-Z]{2,16}$")]


class PhantomSource(Section):
    """Synthetic chest-abdomen CT studies, made once and cached."""

    kind: Literal["phantom"] = Field("phantom", description="generate CT phantoms")
    studies: int = Field(1500, ge=8, description="how many studies to generate, all splits together")
    seed: int = Field(0, ge=0, description="seed of the phantom generator (not of training)")


class ShardSource(Section):
    """Shards written by data_shards.build."""

    kind: Literal["shards"] = Field(description="read a shard set")
    path: str = Field(min_length=1, description="folder or URL with manifest.json; a folder from the working folder on")
    selection: str | None = Field(None, min_length=1, description="file of data_shards.select: use these studies alone")


class TarSource(Section):
    """Somebody else's published WebDataset tars, read where they lie."""

    kind: Literal["tars"] = Field(description="read published WebDataset tars")
    path: str = Field(min_length=1, description="folder, .tar, or pattern such as 'train/*.tar'")
    layout: Layout = Field("auto", description="how they were written; auto recognises it by their members")
    modality: Modality | None = Field(None, description="DICOM code of all images; null: what the layout tells, or OT")
    patient_field: str | None = Field(None, description="field of their json that must not be in two splits")
    selection: str | None = Field(None, min_length=1, description="file of data_shards.select: use these studies alone")
    val_fraction: Fraction = Field(0.0, lt=1.0, description="share drawn for split val, where they have no splits")
    test_fraction: Fraction = Field(0.0, lt=1.0, description="share drawn for split test, likewise")


PERCENTILES = (0.5, 1.0, 2.0, 5.0, 25.0, 50.0, 75.0, 95.0, 98.0, 99.0, 99.5)  # as data_shards.geometry, without numpy


class MixtureEntry(Section):
    """One shard set of a mixture, or published tars."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$", description="what counts, errors and weights call it")
    path: str = Field(
        min_length=1, description="folder or URL with manifest.json; with layout: folder or pattern of tars"
    )
    layout: Layout | None = Field(None, description="of published tars: how they were written, or auto")
    modality: Modality | None = Field(None, description="of published tars: DICOM code of all images")
    selection: str | None = Field(None, min_length=1, description="file of data_shards.select: use these studies alone")
    weight: float | None = Field(None, gt=0.0, description="with mix: weights, how often it is drawn beside the others")


class MixtureSource(Section):
    """Several shard sets, drawn by declared weights."""

    kind: Literal["mixture"] = Field(description="draw from several shard sets")
    sources: tuple[MixtureEntry, ...] = Field(min_length=1, description="what is mixed")
    mix: Literal["weights", "proportional", "uniform", "temperature"] = Field(
        "weights", description="shares: as weighted, as studies, all alike, or studies^(1/temperature)"
    )
    temperature: float | None = Field(None, gt=0.0, description="mix: temperature; 1 is proportional, large uniform")
    batches: Literal["mixed", "homogeneous", "stratified"] = Field(
        "mixed", description="a global batch has what is drawn, one group alone, or every group at its share"
    )
    by: Literal["source", "modality"] = Field("source", description="what a group of homogeneous and stratified is")


class VolumeGeometry(Section):
    """How a stored CT or MR volume becomes channels; saved in the release."""

    kind: Literal["volume"] = Field(description="3D volumes")
    orientation: Literal["RAS"] = Field("RAS", description="axis order of the volume the model sees")
    spacing_mm: Triple | None = Field(
        description="voxel spacing after resampling, z y x, mm; null keeps each scan's own"
    )
    interpolation: Literal["linear", "nearest"] = Field("linear", description="resampling kernel")
    antialias: bool = Field(True, description="widen the kernel when downsampling")
    pad_hu: float = Field(-1024.0, description="value outside the scan, in its unit")
    windows: tuple[tuple[float, float], ...] = Field(
        min_length=1, description="one (low, high) HU window per channel of a scan, each scaled to [-1, 1]"
    )
    windows_in: Literal["unit", "percentile"] = Field(
        "unit", description="percentile: windows are percentiles of each volume, for MR and PET of arbitrary units"
    )
    rounding: Literal["none", "nearest"] = Field("none", description="nearest: whole units after resampling")
    levels: int | None = Field(
        None, ge=2, description="values of a window after resampling, evenly spaced; 256: as an 8-bit picture of it"
    )
    dtype: Literal["float32"] = Field("float32", description="dtype of the channels")
    scans_per_study: int = Field(
        1, ge=1, le=99, description="scans of a study that the tower sees together: as many volumes of its tag, v-"
    )


class PlanarGeometry(Section):
    """How a 2D image becomes channels; saved in the release as open_clip's preprocess_cfg."""

    kind: Literal["image"] = Field(description="2D images")
    mean: Channels = Field((0.48145466, 0.4578275, 0.40821073), description="subtracted per channel")
    std: Channels = Field((0.26862954, 0.26130258, 0.27577711), description="divided by per channel")
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="resize kernel")
    resize_mode: Literal["shortest", "longest", "squash"] = Field("shortest", description="open_clip resize mode")
    mode: Literal["RGB", "L"] = Field("RGB", description="colour space the image is converted to")
    deep_percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="images of more than 8 bits: clip to these percentiles, then scale to 8 bits"
    )
    size: tuple[int, int] = Field((224, 224), description="height, width the model sees")


class SliceGeometry(Section):
    """How one slice of a stored volume becomes the three channels of an image; saved in the release."""

    kind: Literal["slice"] = Field(description="2D slices of volumes")
    plane: Literal["axial", "coronal", "sagittal"] = Field("axial", description="which way volumes are cut")
    size: tuple[int, int] = Field((224, 224), description="height, width the model sees")
    spacing_mm: float | None = Field(None, gt=0.0, description="mm a pixel; null: each slice whole, in proportion")
    windows: tuple[tuple[float, float], ...] = Field(
        min_length=1, description="one (low, high) HU window for all three channels, or three, a channel each"
    )
    windows_in: Literal["unit", "percentile"] = Field(
        "unit", description="percentile: windows are percentiles of each volume, for MR and PET of arbitrary units"
    )
    pad_hu: float = Field(-1024.0, description="value outside the scan, in its unit")
    interpolation: Literal["linear", "nearest"] = Field("linear", description="resampling kernel")
    antialias: bool = Field(True, description="widen the kernel when downsampling")
    rounding: Literal["none", "nearest"] = Field("none", description="nearest: whole units after resampling")
    levels: int | None = Field(
        None, ge=2, description="values of a window after resampling, evenly spaced; 256: as an 8-bit picture of it"
    )
    mean: Channels = Field((0.5, 0.5, 0.5), description="subtracted per channel, of windows scaled to [0, 1]")
    std: Channels = Field((0.5, 0.5, 0.5), description="divided by per channel")
    span: tuple[Fraction, Fraction] = Field(
        (0.0, 1.0), description="part of the volume that slices are taken from, 0 at the feet, the back and the left"
    )


class ViewSection(Section):
    """Which part of a scan the model sees."""

    kind: Literal["random", "centre", "resize", "sliding", "multi", "slices"] = Field(
        description="how the region is chosen"
    )
    size: Size = Field(description="D H W of a volume or H W of an image, in model voxels")
    jitter: int = Field(0, ge=0, description="random: shift by up to this many voxels where the scan is smaller")
    scale: tuple[float, float] = Field(
        (0.8, 1.0), description="random, images and slices: part the crop covers (least, most)"
    )
    overlap: float = Field(0.25, ge=0.0, lt=1.0, description="sliding: overlap of neighbouring windows")
    merge: Literal["mean", "max"] = Field("mean", description="sliding, multi, slices: how the scores of crops merge")
    slices: int = Field(1, ge=1, description="slices: how many of a volume, evenly spaced")


class UnitSection(Section):
    """Which texts of a study the text tower reads."""

    report: bool = Field(True, description="the whole report as one unit")
    report_text: Literal["report", "findings"] = Field(
        "report", description="what the report unit says: all of the report, or its findings alone"
    )
    alternate: Literal["anatomy"] | None = Field(
        None, description="anatomy: every other batch has one anatomical section of the findings in place of the others"
    )
    sentences: bool = Field(False, description="every sentence of report and captions as a unit of its own")
    sections: bool = Field(False, description="findings and impression as units")
    captions: bool = Field(False, description="stored captions as units")
    templates: str | None = Field(
        None, min_length=1, description="captions made of labels: a template file, or the name of a shipped one"
    )
    shuffle_sentences: bool = Field(False, description="shuffle the sentences of FINDINGS inside the report unit")
    max_sentences: int = Field(64, gt=0, description="sentences kept per study")
    drop_words: Fraction = Field(0.0, lt=1.0, description="chance of each word to be left out in training")


class SplitSection(Section):
    """Names of the splits in the index."""

    train: str = Field("train", min_length=1, description="fitted")
    select: str = Field("val", min_length=1, description="scored during training; chooses the best checkpoint")
    test: str = Field("test", min_length=1, description="scored once, at the end")


class DataSection(Section):
    """Studies and how they become batches."""

    source: Annotated[PhantomSource | ShardSource | TarSource | MixtureSource, Field(discriminator="kind")] = Field(
        description="where studies are"
    )
    cache: str = Field("~/.cache/voxclip", min_length=1, description="folder for generated and downloaded data")
    geometry: Annotated[VolumeGeometry | PlanarGeometry | SliceGeometry, Field(discriminator="kind")] = Field(
        description="preprocessing, stored in the release"
    )
    train_view: ViewSection = Field(description="what training sees")
    eval_view: ViewSection = Field(description="what evaluation and users of the release see")
    units: UnitSection = Field(UnitSection(), description="texts")
    splits: SplitSection = Field(SplitSection(), description="split names")
    workers: int = Field(0, ge=0, le=256, description="loader processes; batches are the same for any number")
    max_damaged: int = Field(
        0, ge=0, description="distinct damaged samples a rank may leave out in one start of a run; 0 stops at the first"
    )
