"""Options of the objectives that come with this package, by name. Pure pydantic, no torch; objectives of others are
checked by their own class after torch is imported."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pretrain.schema_base import Section, Unit

Positives = Literal["own", "same_caption", "same_label", "same_label_masked", "soft"]
BY_LABEL = ("same_label", "same_label_masked", "soft")  # positives that ask for labels, or for lists of captions


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("two shares above 0 and up to 1, the first not above the second")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class ContrastiveOptions(Section):
    """InfoNCE over all ranks; identical texts and same patients are never negatives (but with positives: own)."""

    units: tuple[Unit, ...] = Field(("report",), min_length=1, description="kinds of text compared with the image")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="smoothing of the targets")
    to_text: float = Field(1.0, ge=0.0, description="share of the direction image to text, beside 1 for text to image")
    positives: Positives = Field(
        "same_caption",
        description="no negatives are: its own text alone (CLIP); equal texts; those of its class, as positives "
        "(UniCL) or left out (masked); or all count by the similarity of labels (MedCLIP)",
    )
    classes: Literal["labels", "captions"] = Field(
        "labels", description="same_label: studies of a class have the same known labels, or the same list of captions"
    )
    labels: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="labels that count: a list, or a file with one a line; null: all of the shards"
    )
    soft_temperature: float = Field(
        0.1, gt=0.0, description="soft: divides similarities; MedCLIP's 1 spreads targets almost evenly over a batch"
    )


class SigmoidOptions(Section):
    """Pairwise sigmoid (SigLIP) over all ranks, with the same exclusions."""

    units: tuple[Unit, ...] = Field(("report",), min_length=1, description="kinds of text compared with the image")
    init_bias: float = Field(-10.0, description="logit bias at the start")


class SentenceOptions(Section):
    """Each image against every distinct sentence of the global batch, several positives, sigmoid."""

    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="kinds of text that count as sentences")
    init_bias: float = Field(-2.5, description="logit bias at the start: log-odds of a pair being positive")


class AttendedOptions(Section):
    """Each text pools the tokens of each image by attention; all pairs of the global batch, sigmoid."""

    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="kinds of text that look at the image")
    heads: int = Field(4, gt=0, description="attention heads; must divide model.embed_dim")
    init_bias: float = Field(-2.5, description="logit bias at the start: log-odds of a pair being positive")


class ViewOptions(Section):
    """Two augmented views of every image, shared by all objectives that read them (pretrain.views)."""

    max_drop: float = Field(0.3, gt=0.0, lt=1.0, description="most of an image that blocks cover, as a share")
    block: float = Field(0.25, gt=0.0, le=1.0, description="longest side of a block, as a share of the image's")


class CropOptions(Section):
    """Crops of every image (2D) whose places are known, shared by all objectives that read them (pretrain.crops)."""

    scale: Range = Field((0.4, 1.0), description="part of the image that each of two large crops shows (least, most)")
    small: int = Field(0, ge=0, le=16, description="small crops beside the two large ones (multi-crop)")
    small_scale: Range = Field((0.08, 0.4), description="part of the image that a small crop shows (least, most)")
    small_size: int | None = Field(None, ge=16, description="pixels of a small crop; null: as a large one")
    flip: float = Field(0.5, ge=0.0, le=1.0, description="chance of a crop to be mirrored")
    jitter: float = Field(0.4, ge=0.0, lt=1.0, description="most change of contrast and brightness, as a share")
    blur: float = Field(0.5, ge=0.0, le=1.0, description="chance of a crop to be blurred")
    cells: int = Field(7, ge=1, le=64, description="rows and columns that feature maps are averaged to")


class PairOptions(ViewOptions):
    """Objectives that compare views of an image, of either kind."""

    views: Literal["turned", "crops"] = Field(
        "turned", description="turned, with blocks cut out (images and volumes); or crops (images alone)"
    )
    crops: CropOptions = Field(CropOptions(), description="with views: crops, how they are made")


class SimCLROptions(PairOptions):
    """Two views of one image against those of all others (NT-Xent) over all ranks, with the same exclusions."""

    temperature: float = Field(0.5, gt=0.0, description="divides the cosines")
    dim: int = Field(512, gt=0, description="width of the projection")
    hidden: int | None = Field(None, gt=0, description="width of a hidden layer before it; null for a linear one")
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class RotationOptions(ViewOptions):
    """Which quarter turn an image was given."""


class VICRegOptions(PairOptions):
    """Variance, invariance and covariance of the projections of two views, over all ranks."""

    dim: int = Field(2048, gt=0, description="width of the projection; published: 8192")
    hidden: int = Field(2048, gt=0, description="width of its two hidden layers; published: 8192")
    invariance: float = Field(25.0, ge=0.0, description="weight of the distance of two views")
    variance: float = Field(25.0, ge=0.0, description="weight of the hinge on deviations")
    covariance: float = Field(1.0, ge=0.0, description="weight of the squared covariances")


class BarlowTwinsOptions(PairOptions):
    """The cross-correlation of the projections of two views is the identity, over all ranks."""

    dim: int = Field(2048, gt=0, description="width of the projection; published: 8192")
    hidden: int = Field(2048, gt=0, description="width of its two hidden layers; published: 8192")
    redundancy: float = Field(0.0051, ge=0.0, description="weight of what is off the diagonal")


class BYOLOptions(PairOptions):
    """A view predicts what a moving average of tower and projector makes of another one."""

    dim: int = Field(256, gt=0, description="width of the projection")
    hidden: int = Field(4096, gt=0, description="hidden width of projector and predictor")
    momentum: float = Field(0.996, ge=0.0, lt=1.0, description="of the moving average at the start; 1 at the end")


class GraphMatchingOptions(Section):
    """Groups of images as graphs, one of each view; which node is which, by second-order matching (LVM-Med)."""

    crops: CropOptions = Field(CropOptions(), description="the views")
    group: int = Field(16, ge=2, le=64, description="images of a graph; what is left of a batch is spread over groups")
    neighbours: int = Field(5, ge=1, description="edges that leave a node")
    edges: Literal["shared", "own"] = Field(
        "shared", description="one edge set from the mean of both views, or each view its own, as published"
    )
    dim: int = Field(128, gt=0, description="width of the embedding and of message passing")
    hidden: int | None = Field(None, gt=0, description="width of the projection's hidden layer; null: the tower's")
    layers: int = Field(2, ge=0, le=8, description="layers of message passing; 0 for none")
    alpha: float = Field(0.8, ge=0.0, le=1.0, description="share of the global affinity of nodes, beside the local one")
    matches: int = Field(20, ge=1, description="closest pairs of map cells that the local affinity is the mean of")
    order: Literal["first", "second"] = Field("second", description="first: nodes alone, no edges")
    gradient: Literal["fenchel_young", "imle"] = Field(
        "fenchel_young", description="perturbed solutions minus identity; or two solves, as published"
    )
    temperature: float = Field(0.05, ge=0.0, description="of the Gumbel noise on affinities; published: 1")
    samples: int = Field(1, ge=1, le=64, description="perturbed solves that the gradient is the mean of")
    strength: float = Field(80.0, gt=0.0, description="imle: lambda, how far the second problem is moved to the target")
    solver: Literal["search", "pylibmgm", "pygmtools"] = Field("search", description="pretrain.matching; ours: search")
    paths: int = Field(2, ge=1, le=64, description="search: paths a graph; more are slower and better")


class InpaintingOptions(ViewOptions):
    """What was there before blocks were cut out."""

    over: Literal["dropped", "all"] = Field("dropped", description="voxels compared: dropped, or all as in SwinUNETR")


class LabelsOptions(Section):
    """Binary cross-entropy of every known label, on the image tower's features before the projection."""

    names: str | tuple[str, ...] | None = Field(
        None, min_length=1, description="labels to learn: a list, or a file with one a line; null: all of the shards"
    )
    hierarchy: str | None = Field(
        None, min_length=1, description="CSV of child,parent: a code is present where one below it is"
    )
    min_positives: int = Field(1, ge=1, description="training studies a label must be present in to be learnt")
    pos_weight: float | None = Field(
        None, ge=1.0, description="presence weighs absent / present studies of its label, at most this; null: 1"
    )


class ReportContrastiveOptions(Section):
    """InfoNCE between images and whole reports as the report transformer reads them (VELVET-Med's L_report)."""

    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="smoothing of the targets")
    init_temperature: float = Field(0.07, gt=0.01, description="temperature at the start; learnt")
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class HierarchicalOptions(Section):
    """Sentences or words against places of the image (GLoRIA, VELVET-Med's L_local)."""

    text: Literal["units", "sentences", "words"] = Field(
        "units", description="the dual encoder's units, or sentences or words as model.report reads them"
    )
    units: tuple[Unit, ...] = Field(("sentence",), min_length=1, description="with text: units, kinds of text")
    level: int | None = Field(None, ge=0, le=3, description="map of the image tower, 0 the finest; null for its tokens")
    width: int = Field(512, gt=0, description="of the space that places and texts are compared in")
    attention_temperature: float = Field(4.0, gt=0.0, le=40.0, description="of the attention over places")
    pooling_temperature: float = Field(5.0, gt=0.0, le=40.0, description="of the sum over a text's units")
    temperature: float = Field(10.0, gt=0.0, description="of the cross-entropy over the batch")
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class MatchingOptions(Section):
    """Does the text belong to the image? Each with its own partner, a hard text and a hard image."""

    temperature: float | None = Field(
        None, gt=0.0, description="hard negatives are drawn by; null: that of report_contrastive, 0.07 without it"
    )
    gather: bool = Field(True, description="negatives of all ranks; false: of the study's own rank, as published")
    exclude_related: bool = Field(True, description="one text or one patient is no negative; false: as published")


class MaskedLanguageOptions(Section):
    """15 % of a report's tokens are hidden and predicted."""

    condition: Literal["text", "image"] = Field("text", description="of the rest of the report, or of the image too")
    own_mask: bool = Field(False, description="draws what it hides by itself, for one more reading of the reports")


class MaskedImageOptions(Section):
    """Voxels of the patches that token dropout took, predicted from the kept tokens of the same pass (MAE)."""

    width: int = Field(192, gt=0, multiple_of=96, description="width of the decoder, a multiple of 96")
    blocks: int = Field(1, ge=1, le=8, description="transformer blocks of the decoder")
    normalise: bool = Field(True, description="each window of a patch to mean 0 and variance 1")


class DistillationOptions(Section):
    """An average of the image tower sees the whole image; the tower, with tokens dropped, predicts its feature."""

    momentum: float = Field(0.99, ge=0.0, lt=1.0, description="of the moving average at the start; 1 at the end")
    width: int = Field(512, gt=0, description="hidden width of the predictor")


OBJECTIVE_OPTIONS: dict[str, type[Section]] = {
    "contrastive": ContrastiveOptions,
    "sigmoid": SigmoidOptions,
    "sentence": SentenceOptions,
    "attended": AttendedOptions,
    "simclr": SimCLROptions,
    "rotation": RotationOptions,
    "inpainting": InpaintingOptions,
    "graph_matching": GraphMatchingOptions,
    "vicreg": VICRegOptions,
    "barlow_twins": BarlowTwinsOptions,
    "byol": BYOLOptions,
    "labels": LabelsOptions,
    "report_contrastive": ReportContrastiveOptions,
    "matching": MatchingOptions,
    "masked_language": MaskedLanguageOptions,
    "hierarchical": HierarchicalOptions,
    "masked_image": MaskedImageOptions,
    "distillation": DistillationOptions,
}
