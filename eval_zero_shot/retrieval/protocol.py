"""Retrieval of one model on one shard set, as an Outcome: one for each kind of text, one for volume to volume.

Legend: N studies, Q queries, K values of k. Every number says in `at` how it was counted:

    k, pool   pool: a size, or "full"
    ties      "identical_texts" (any copy of the query's text is right) or "strict" (the study's own alone)
    noise     "partition": mean over repeats, and percentiles over them, that is the noise of cutting pools. Without
              it: mean over queries, and a bootstrap over patients with the candidates fixed, that is sampling noise
    short_pool  "kept": the last short pool counts too
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval_zero_shot.classify import unit
from eval_zero_shot.errors import EvalError
from eval_zero_shot.outcome import Metric, Outcome
from eval_zero_shot.resample import clustered_means
from eval_zero_shot.retrieval import KS, POOLS, Pool
from eval_zero_shot.retrieval.pools import PoolHits, pool_hits
from eval_zero_shot.retrieval.ranks import DIRECTIONS, TIES, Direction, Ranks, Ties, on_stderr, rank_both
from eval_zero_shot.retrieval.texts import TextKind, Told, text_identity, told_studies
from eval_zero_shot.retrieval.volumes import RELEVANCES, volume_hits

if TYPE_CHECKING:
    import pandas as pd

    from eval_zero_shot.inputs import Inputs

Array = NDArray[np.float64]
MAP_KS = (1, 5, 10, 50)
HEADLINE_POOL = 64
IMAGES = {
    "first": "the first scan of its study",
    "mean": "the mean of its study's scans",
    "every": "a scan",
    "together": "its study's scans together",
}


class _Scored:
    """Metrics and per-query scores as they come; queries of both directions, with keys and patients."""

    def __init__(
        self, keys: Mapping[Direction, Sequence[str]], patients: Mapping[Direction, NDArray], resamples: int, seed: int,
        level: float,
    ) -> None:  # fmt: skip
        self.keys, self.patients = keys, patients
        self.resamples, self.seed, self.level = resamples, seed, level
        self.metrics: list[Metric] = []
        self.tables: list[pd.DataFrame] = []

    def sampled(self, values_QM: Array, patients_Q: NDArray, names: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
        """A metric for each column: its mean over queries and the bootstrap over patients."""
        found = clustered_means(values_QM, patients_Q, resamples=self.resamples, seed=self.seed, level=self.level)
        for (name, of, at), interval, column in zip(names, found, values_QM.T, strict=True):
            self.metrics.append(Metric.of_interval(name, interval, of=of, at=at, n=int((~np.isnan(column)).sum())))

    def keep(self, variant: str, direction: Direction, score_Q: Array) -> None:
        import pandas as pd

        table = pd.DataFrame({"key": list(self.keys[direction]), "patient": self.patients[direction]})
        table = table.assign(variant=variant, of=direction, score=score_Q, label=np.nan)
        self.tables.append(table[~np.isnan(score_Q)])

    def table(self) -> pd.DataFrame | None:
        import pandas as pd

        return pd.concat(self.tables, ignore_index=True) if self.tables else None


def score_retrieval(
    inputs: Inputs,
    rows: Sequence[int] | NDArray,
    *,
    split: str,
    text: TextKind = "report",
    pools: Sequence[Pool] = POOLS,
    ks: Sequence[int] = KS,
    repeats: int = 100,
    short_pool: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    device: str = "cpu",
) -> Outcome:
    """Text to image and image to text of one kind of text, over pools and over all studies.

    Studies without that text are left out on both sides, and counted in the notes. The headline is the mean over both
    directions of R@1 with identical texts as hits, in pools of 64 (else the first pool asked for that the studies
    fill); its name says which. Raises EvalError where fewer than two studies have the text, or on a pool, k or repeat
    count below 1.
    """
    _require(pools, ks, repeats)
    ks, pools = sorted(set(ks)), tuple(dict.fromkeys(pools))
    told = told_studies(inputs.shards, rows, text)
    having, asked = (len(set(inputs.studies(some).tolist())) for some in (told.rows, rows))
    if having < 2:  # all scans of a study have its text
        raise EvalError(
            f"{having} of {asked} studies have a text of kind {text!r}",
            why="there is nothing to choose from",
            fix="name another kind with --text, or another split",
        )
    studies = inputs.features(told.rows)
    vectors = inputs.texts(told.texts)
    images, texts = studies.features_ND, np.stack([vectors[t] for t in told.texts])
    hashes = np.asarray([text_identity(t) for t in told.texts])
    scored = _Scored(
        {"image_to_text": studies.keys, "text_to_image": _text_keys(studies.keys, told)},
        {"image_to_text": studies.patients, "text_to_image": studies.patients[told.study_T]},
        resamples, seed, level,
    )  # fmt: skip
    kept: dict[Pool, dict[tuple[Direction, Ties], Array]] = {}
    reasons: dict[Pool, str] = {}
    for pool in pools:
        size = min(len(told.rows), len(told.texts)) if pool == "full" else pool
        # What a query chooses from: in the full pool images or texts, of which there may be more.
        items: dict[Direction, int] = {"image_to_text": size, "text_to_image": size}
        if pool == "full":
            items = {"image_to_text": len(told.texts), "text_to_image": len(told.rows)}
        within = {direction: [k for k in ks if k <= n] for direction, n in items.items()}
        if pool != "full" and not told.one_each:
            reasons[pool] = "studies with several texts are ranked in the full pool"
        elif size > len(told.rows):
            reasons[pool] = f"{len(told.rows)} {inputs.cases} do not fill one pool of {size}"
        elif ks[0] > size:
            reasons[pool] = f"every k is more than the pool of {size}"
        elif pool == "full":
            both = rank_both(
                images, texts, hashes, np.arange(len(images)), told.study_T, device=device, watch=on_stderr
            )
            kept[pool] = _full(scored, both, within)
        else:
            number_N = np.unique(hashes, return_inverse=True)[1].reshape(-1)
            both_units = unit(images, "studies"), unit(texts, "reports")
            ks_within = within["image_to_text"]
            hits = pool_hits(*both_units, number_N, pool, ks_within, repeats, seed, short_pool)
            kept[pool] = _pooled(scored, hits, pool, ks_within)
        scored.metrics += [
            Metric("recall", None, of=direction, at={"k": k, "pool": pool, "ties": ties},
                   reason=reasons.get(pool, f"k {k} is more than the pool of {items[direction]}"))
            for direction in DIRECTIONS for ties in TIES for k in ks
            if pool in reasons or k not in within[direction]
        ]  # fmt: skip
    name = _headline(scored, kept, pools, ks, reasons)
    return Outcome(
        protocol="retrieval", task=f"retrieval_{text}", model=inputs.name, model_sha256=inputs.loaded.sha256,
        headline=name, metrics=tuple(scored.metrics), **inputs.counted(told.rows), scores=scored.table(),
        provenance=inputs.provenance(told.rows, split, text=text, seed=seed, repeats=repeats, resamples=resamples),
        notes=(*inputs.said(told.rows), *_notes(told, text, len(set(hashes.tolist())), inputs, reasons)),
    )  # fmt: skip


def _require(pools: Sequence[Pool], ks: Sequence[int], repeats: int) -> None:
    if not pools or not ks or min(*ks, repeats, *(pool for pool in pools if pool != "full"), 1) < 1:
        raise EvalError(
            "no pool or k, or a pool, k or repeat count below 1", why="no query is left", fix="give positive numbers"
        )


def _text_keys(keys: Sequence[str], told: Told) -> list[str]:
    """A key a text: the study's, with a number where it has several."""
    if told.one_each:
        return list(keys)
    first = np.searchsorted(told.study_T, np.arange(len(keys)))
    return [f"{keys[s]}#{t - first[s]}" for t, s in enumerate(told.study_T.tolist())]


def _full(
    scored: _Scored, both: Mapping[tuple[Direction, Ties], Ranks], within: Mapping[Direction, Sequence[int]]
) -> dict[tuple[Direction, Ties], Array]:
    out = {}
    for (direction, ties), ranks in both.items():
        ks = within[direction]
        at: dict[str, Any] = {"pool": "full", "ties": ties}
        hits_QK, rank_Q = ranks.hits(ks), ranks.rank()
        names = [("recall", direction, {"k": k, **at}) for k in ks]
        scored.sampled(
            np.column_stack([hits_QK, ranks.reciprocal_rank()]), scored.patients[direction],
            [*names, ("mean_reciprocal_rank", direction, at)],
        )  # fmt: skip
        n = len(rank_Q)
        scored.metrics.append(Metric("median_rank", float(np.median(rank_Q)), of=direction, at=at, n=n))
        luck = ranks.chance(ks).mean(axis=0)
        scored.metrics += [Metric("chance", float(c), of=direction, at={"k": k, **at}, n=n) for k, c in zip(ks, luck)]
        scored.keep(f"rank,pool=full,ties={ties}", direction, rank_Q)
        out[direction, ties] = hits_QK
    return out


def _pooled(
    scored: _Scored, hits: Mapping[tuple[Direction, Ties], PoolHits], pool: int, ks: Sequence[int]
) -> dict[tuple[Direction, Ties], Array]:
    out = {}
    for (direction, ties), found in hits.items():
        ats = [{"k": k, "pool": pool, "ties": ties} for k in ks]
        scored.sampled(found.mean_NK, scored.patients[direction], [("recall", direction, at) for at in ats])
        n = len(found.mean_NK)
        scored.metrics += [Metric("chance", float(c), of=direction, at=at, n=n) for at, c in zip(ats, found.chance_K)]
        partitions: list[tuple[Array, dict[str, Any]]] = [(found.mean_RK, {"noise": "partition"})]
        if found.short_RK is not None:
            partitions.append((found.short_RK, {"noise": "partition", "short_pool": "kept"}))
        tails = 50 * (1 - scored.level), 50 * (1 + scored.level)
        for mean_RK, label in partitions:
            low, high = np.percentile(mean_RK, tails, axis=0)
            scored.metrics += [
                Metric("recall", float(mean_RK[:, j].mean()), float(low[j]), float(high[j]), direction,
                       {**at, **label}, n, scored.level, "partition")
                for j, at in enumerate(ats)
            ]  # fmt: skip
        out[direction, ties] = found.mean_NK
    return out


def _headline(
    scored: _Scored,
    kept: Mapping[Pool, Mapping[tuple[Direction, Ties], Array]],
    pools: Sequence[Pool],
    ks: Sequence[int],
    reasons: Mapping[Pool, str],
) -> str:
    """Add the headline and the per-query scores of every pool at its k; the name of the headline."""
    k = ks[0]
    if not kept:
        name = f"recall_at_{k}"
        scored.metrics.insert(0, Metric(name, None, reason="; ".join(dict.fromkeys(reasons.values()))))
        return name
    chosen = HEADLINE_POOL if HEADLINE_POOL in kept else next(pool for pool in pools if pool in kept)
    for pool, hits in kept.items():
        for (direction, ties), hits_QK in hits.items():
            main = pool == chosen and ties == "identical_texts"
            scored.keep("" if main else f"k={k},pool={pool},ties={ties}", direction, hits_QK[:, 0])
    values = np.concatenate([kept[chosen][d, "identical_texts"][:, 0] for d in DIRECTIONS])
    patients = np.concatenate([scored.patients[d] for d in DIRECTIONS])
    name = f"recall_at_{k}_in_{chosen}"
    before, scored.metrics = scored.metrics, []
    scored.sampled(values[:, None], patients, [(name, "", {})])
    scored.metrics += before
    return name


def _notes(told: Told, text: str, distinct: int, inputs: Inputs, reasons: Mapping[Pool, str]) -> tuple[str, ...]:
    notes = [
        "Queries tied with others count with the share of random orders in which they hit.",
        "Intervals are over patients, the candidates fixed; those at noise=partition are the noise of cutting pools.",
        f"{len(told.texts)} texts of kind {text}, {distinct} distinct; an image is {IMAGES[inputs.scans]}.",
    ]
    if inputs.scans == "every":
        notes.append(
            "Scans of one study have the same text: as identical texts any of them is right; strictly only the query's "
            "own is, and its study's other scans stand in its way, so read strict numbers beside their chance."
        )
    if told.without:
        notes.append(f"{told.without} {inputs.cases} without a text of kind {text} are left out on both sides.")
    return (*notes, *(f"Pool {pool}: {reason}." for pool, reason in reasons.items()))


def score_volumes(
    inputs: Inputs,
    rows: Sequence[int] | NDArray,
    *,
    split: str,
    labels: Sequence[str] = (),
    ks: Sequence[int] = MAP_KS,
    same_patient: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Outcome:
    """Volume to volume by labels of the shards (none named: all), see `eval_zero_shot.retrieval.volumes`.

    The headline is the mean Jaccard of the 5 nearest (or the smallest k). Raises EvalError where there is no label.
    """
    names = tuple(labels) or tuple(inputs.shards.label_names)
    if not names:
        raise EvalError(
            "the shards have no labels", why="nothing says which volumes are alike", fix="build with labels"
        )
    rows = np.asarray(rows)
    labels_NL = inputs.shards.labels(names)[rows]
    studies = inputs.features(rows)
    scored = _Scored({"image_to_text": studies.keys}, {"image_to_text": studies.patients}, resamples, seed, level)
    notes = [f"A study counts where all {len(names)} labels are known. Average precision (SPECTRE) and the mean "
             "Jaccard of CT-CLIP are both called MAP@k by their authors; they do not compare."]  # fmt: skip
    notes.append(f"Other studies of the query's patient {'are' if same_patient else 'are not'} candidates.")
    owner_N = inputs.studies(rows).astype(str) if same_patient else studies.patients
    k = 5 if 5 in ks else min(ks)
    headline = f"map_at_{k}_jaccard"
    import pandas as pd

    tables = []
    for relevance in RELEVANCES:
        found = volume_hits(studies.features_ND, labels_NL, owner_N, relevance, ks)
        ats = [{"k": j, "relevance": relevance} for j in ks]
        scored.sampled(found.score_NK, studies.patients, [("map", "volume_to_volume", at) for at in ats])
        for at, chance in zip(ats, found.chance_K):
            value = None if np.isnan(chance) else float(chance)
            scored.metrics.append(Metric("chance", value, of="volume_to_volume", at=at, n=found.candidates,
                                         reason="no query" if value is None else None))  # fmt: skip
        if relevance == "jaccard":
            scored.sampled(found.score_NK[:, [list(ks).index(k)]], studies.patients, [(headline, "", {})])
        notes += [f"{relevance}: {n} {inputs.cases} left out: {reason}." for reason, n in found.left_out.items()]
        for j, one in enumerate(ks):
            main = relevance == "jaccard" and one == k
            score_N = found.score_NK[:, j]
            table = pd.DataFrame({"key": list(studies.keys), "patient": studies.patients, "score": score_N})
            table = table.assign(variant="" if main else f"k={one},relevance={relevance}", of="volume_to_volume",
                                 label=np.nan)  # fmt: skip
            tables.append(table[~np.isnan(score_N)])
    return Outcome(
        protocol="retrieval", task="retrieval_volumes", model=inputs.name, model_sha256=inputs.loaded.sha256,
        headline=headline, metrics=tuple(scored.metrics), **inputs.counted(rows), classes=names,
        scores=pd.concat(tables, ignore_index=True), notes=(*inputs.said(rows), *notes),
        provenance=inputs.provenance(
            rows, split, seed=seed, resamples=resamples, same_patient=same_patient, labels=list(names)
        ),
    )  # fmt: skip
