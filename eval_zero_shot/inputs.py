"""What every protocol's command line shares: a model, a shard set, and the features of its studies."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from data_shards.opening import add_tar_options, open_studies
from data_shards.study_images import study_scans
from eval_zero_shot.cases import EveryScan, scans_of
from eval_zero_shot.errors import EvalError

if TYPE_CHECKING:
    from eval_zero_shot.embedding import Features, StudyFeatures
    from eval_zero_shot.feature_cache import FeatureCache

VERSIONS = ("torch", "open_clip_torch", "timm", "numpy", "scikit-learn")


def add_inputs(parser: argparse.ArgumentParser, split: str | None = "test") -> None:
    """--model, --data, --split and how to embed; `split` None: the protocol has split options of its own."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODEL", help="release folder, or what eval_zero_shot.models lists")
    add("--data", required=True, metavar="DIR", help="shard set (folder or URL) or published .tar files")
    if split is not None:
        add("--split", default=split, metavar="NAME", help=f"split to score (default: {split})")
    add("--max-studies", type=int, metavar="N", help="score a fixed choice of N studies")
    add_embedding(parser)
    add_tar_options(parser)


def add_embedding(parser: argparse.ArgumentParser) -> None:
    """How studies are embedded."""
    add = parser.add_argument
    add("--batch-size", type=int, default=8, metavar="N", help="studies encoded together (default: 8)")
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="arithmetic (default: fp32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--cache", default="~/.cache/voxclip/features", metavar="DIR", help="of features (default: %(default)s)")
    add("--no-cache", action="store_true", help="encode every study again and keep nothing")


def add_features(parser: argparse.ArgumentParser) -> None:
    """--features: which of a tower's features."""
    parser.add_argument(
        "--features", choices=("projected", "trunk"), default="projected",
        help="projected: of unit length, what texts are compared with; trunk: those before the projection, as they are "
        "(Merlin's 2048) (default: projected)",
    )  # fmt: skip


class Counts(TypedDict):
    """Of what was scored, as an `Outcome` holds it."""

    studies: int
    scans: int
    patients: int


@dataclass
class Inputs:
    """A model and the studies it is asked about. `name` is how tables call the model.

    scans: what a case is (eval_zero_shot.cases); None: the model's own choice. vectors: what `features` gives.
    shards: the studies, given as they are or as what has a row a case, which is what `shards` becomes.
    """

    name: str
    loaded: Any
    shards: Any
    cache: FeatureCache | None
    batch_size: int = 8
    precision: Any = "fp32"
    asked: argparse.Namespace | None = None  # how tars are read (data_shards.opening.add_tar_options)
    scans: Any = None  # one of Scans once settled
    vectors: Features = "projected"

    def __post_init__(self) -> None:
        self.scans = scans_of(self.scans, self.loaded.geometry)
        given = self.shards  # of `dataclasses.replace`, these are scans already
        studies = given.studies if isinstance(given, EveryScan) else given
        single = self.scans in ("mean", "every")
        self._every = EveryScan(studies, self.loaded.geometry.source) if single else None
        self.shards = self._every if self.scans == "every" else studies

    @property
    def arithmetic(self) -> str:
        """What `precision` is on the model's device: fp32 or bf16."""
        from eval_zero_shot.embedding import arithmetic

        return arithmetic(self.loaded.model, self.precision)[0]

    def open_shards(self, where: str) -> Any:
        """Further studies, read as the first ones were asked for."""
        return open_studies(where, self.asked)

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, shards: Any, geometry: Any, view: Any, *, name: str = "model",
        sha256: str = "", batch_size: int = 8, precision: Any = "fp32",
    ) -> Inputs:  # fmt: skip
        """A model in memory (see `eval_zero_shot.embedding`), as one that is being trained; nothing is kept."""
        loaded = SimpleNamespace(
            model=model, tokenizer=tokenizer, geometry=geometry, view=view, sha256=sha256, kind="clip"
        )
        return cls(name, loaded, shards, None, batch_size, precision)

    def rows(self, split: str, max_studies: int | None = None) -> NDArray:
        """Rows of a split, all cases of at most `max_studies` studies. Raises EvalError naming the splits there are."""
        if not self.shards.manifest["splits"].get(split):
            raise _no_split(split, self.shards)
        if isinstance(self.shards, EveryScan):
            return self.shards.of(choose_rows(self.shards.studies.rows(split), max_studies))
        return choose_rows(self.shards.rows(split), max_studies)

    def studies(self, rows: Sequence[int] | NDArray) -> NDArray[np.int64]:
        """A number of the study of each row."""
        rows = np.asarray(rows, dtype=np.int64)
        return self.shards.study_C[rows] if isinstance(self.shards, EveryScan) else rows

    @property
    def cases(self) -> str:
        """How notes call rows."""
        return "scans" if self.scans == "every" else "studies"

    def counted(self, rows: Sequence[int] | NDArray) -> Counts:
        """How much is scored with rows."""
        studies = np.unique(self.studies(rows))
        read = len(rows)
        if self._every is not None and self.scans == "mean":
            read = len(self._every.of(studies))
        elif self.scans == "together":
            most = self.loaded.geometry.scans_per_study
            read = sum(len(study_scans(self.shards, int(row), most)) for row in rows)
        patients = {self.shards.patient(int(row)) for row in rows}
        return {"studies": len(studies), "scans": read, "patients": len(patients)}

    def said(self, rows: Sequence[int] | NDArray) -> tuple[str, ...]:
        """A note of what a case is, where it is not a study by its first scan."""
        n = self.counted(rows)
        others = self._every.others if self._every is not None else 0
        kind = self.loaded.geometry.source
        left = f" Scans that are no {kind} are left out: {others} of all splits." if others else ""
        if self.scans == "mean":
            return (
                "A case is a study: the mean of the unit vectors of all its scans, of unit length again "
                f"({n['scans']} scans of {n['studies']} studies).{left}",
            )
        if self.scans == "together":
            most = self.loaded.geometry.scans_per_study
            return (
                f"A case is a study: up to {most} of its scans, the first, read together "
                f"({n['scans']} scans of {n['studies']} studies).",
            )
        if self.scans == "every":
            return (
                f"A case is a scan: {n['scans']} scans of {n['studies']} studies, each with labels and texts of its "
                f"study; intervals draw patients with all their scans.{left}",
            )
        return ()

    def features(self, rows: Sequence[int] | NDArray) -> StudyFeatures:
        """Vectors of rows, in their order, each study encoded once and kept in the cache."""
        from eval_zero_shot.feature_cache import features_of

        def embed(shards: Any, rows: NDArray) -> StudyFeatures:
            return features_of(self.loaded, shards, rows, self.precision, self.cache, self.batch_size, self.vectors)

        every = self._every
        if every is not None and self.scans == "mean":  # of the vectors that "every" keeps
            return every.means(rows, lambda scans: embed(every, scans), self.vectors)
        return embed(self.shards, np.asarray(rows))

    def attended(self, rows: Sequence[int] | NDArray, texts: Mapping[str, NDArray]) -> NDArray[np.float64]:
        """[N, U]: cosines of texts (with their unit vectors) by the released head (eval_zero_shot.attended); of a study
        that is the mean of its scans, the mean of their cosines."""
        from eval_zero_shot.attended import attended_cosines

        if self._every is None or self.scans != "mean":
            return attended_cosines(self, self.shards, rows, texts)
        scans = self._every.of(rows)
        cosine_CU = attended_cosines(self, self._every, scans, texts)
        place = {int(row): i for i, row in enumerate(rows)}
        of_C = np.array([place[int(study)] for study in self._every.study_C[scans]])
        total_NU = np.zeros((len(place), len(texts)))
        np.add.at(total_NU, of_C, cosine_CU)
        return total_NU / np.bincount(of_C, minlength=len(place))[:, None]

    def texts(self, texts: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Unit vector of every distinct text. Raises EvalError where the model has no text tower."""
        self.require_texts()
        from eval_zero_shot.embedding import embed_texts

        return embed_texts(self.loaded.model, self.loaded.tokenizer, texts, precision=self.precision)

    def require_texts(self) -> None:
        """Raises EvalError where the model has no text tower."""
        if self.loaded.tokenizer is None:
            raise EvalError(
                f"{self.name} has no text tower",
                why="prompts and reports cannot be compared with its images",
                fix="probe its features with labels (protocol probe, without a task)",
            )

    def provenance(self, rows: Sequence[int] | NDArray, split: str, **more: Any) -> dict[str, Any]:
        """What must be equal before two outcomes may be compared, and what says how they came about."""
        keys = "\n".join(self.shards.key(int(row)) for row in rows)
        studies = self.shards.studies if isinstance(self.shards, EveryScan) else self.shards
        return {
            "data_sha256": studies.manifest_hash,
            "scan_choice": self.scans,
            "split": split,
            "rows_sha256": hashlib.sha256(keys.encode()).hexdigest(),
            "geometry_sha256": self.loaded.geometry.identity,
            "view_sha256": self.loaded.view.identity,
            "precision": self.arithmetic,
            "versions": {name: version(name) for name in VERSIONS},
            **more,
        }


def open_inputs(args: argparse.Namespace, texts: bool = True) -> Inputs:
    """The shards first, which fail fast, then the model. texts: the model must have a text tower.

    Raises EvalError, DataError or ReleaseError with what is wrong.
    """
    require_folder(getattr(args, "out", None))
    if getattr(args, "resamples", 0) < 0 or getattr(args, "seed", 0) < 0:
        raise EvalError("--resamples or --seed below 0", why="nothing can be drawn", fix="give 0 or more")
    if args.batch_size < 1:
        raise EvalError(f"--batch-size {args.batch_size}", why="nothing would be encoded", fix="1 or more")
    shards = open_studies(args.data, args)
    for split in (getattr(args, "split", None), getattr(args, "threshold_split", None)):
        if split and not shards.manifest["splits"].get(split):  # said before the model is loaded
            raise _no_split(split, shards)
    print("loading the model", file=sys.stderr, flush=True)
    from eval_zero_shot.feature_cache import FeatureCache
    from eval_zero_shot.release import load_dual, load_release, model_name

    loaded = (load_dual if texts else load_release)(args.model, args.device)
    cache = None if args.no_cache else FeatureCache(args.cache)
    scans: Any = getattr(args, "scans", None)
    vectors: Any = getattr(args, "features", "projected")
    return Inputs(
        model_name(args.model), loaded, shards, cache, args.batch_size, args.precision, scans=scans, vectors=vectors
    )


def _no_split(split: str, shards: Any) -> EvalError:
    known = ", ".join(shards.manifest["splits"])
    return EvalError(f"no study in split '{split}'", why="nothing can be scored", fix=f"name one of: {known}")


def require_folder(out: Any) -> None:
    """Raise EvalError where results would go into a file that exists."""
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise EvalError(
            "--out is a file that exists",
            why="results are a folder of several files",
            fix="name a folder, or a new one",
        )


def choose_rows(rows: Sequence[int] | NDArray, max_studies: int | None, seed: int = 0) -> NDArray:
    """At most `max_studies` of the rows, the same ones at every call with the same seed, in ascending order."""
    rows = np.sort(np.asarray(rows))
    if max_studies is not None and max_studies < 1:
        raise EvalError(f"--max-studies {max_studies}", why="no study would be left", fix="1 or more, or leave it out")
    if max_studies is None or len(rows) <= max_studies:
        return rows
    return np.sort(np.random.Generator(np.random.Philox(seed)).permutation(rows)[:max_studies])


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, do: Any) -> int:
    """Parse, do, and return 0, or 1 with the reason on stderr; every command of this package ends here."""
    args = parser.parse_args(argv)
    from data_shards.errors import DataError
    from encoders.errors import ReleaseError

    try:
        do(args)
    except (EvalError, DataError, ReleaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
