"""Which samples to train on: a condition, caps per value, balance; chosen by hash, so that anybody gets the same ones.

BIOMEDICA (arXiv 2501.07171) filters and balances by concept and shows that it matters; its code was never released.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.conditions import meets, resolve
from data_shards.errors import DataError

if TYPE_CHECKING:
    import pyarrow

    from data_shards.shards import Shards
    from data_shards.sources.base import Listing

VERSION = 1
UNKNOWN = "unknown"  # how a value that is not known is counted and shown


@dataclass(frozen=True)
class Cap:
    """At most `most` samples of each value of a column, or of one value."""

    column: str
    most: int
    value: str | None = None


@dataclass(frozen=True)
class Choice:
    """What to keep. where: SQL condition, "" for all. caps and balance thin the splits in `thin_splits` only, so that
    what a model is tested on stays what it is. balance: a column whose known values get as many samples each as the
    rarest has; samples that do not know it are left out of those splits."""

    where: str = ""
    caps: tuple[Cap, ...] = ()
    balance: str | None = None
    seed: int = 0
    thin_splits: tuple[str, ...] = ("train",)


@dataclass(frozen=True)
class Selected:
    """rows: numbers of the kept rows, ascending. counts: column -> value -> (before, after where, kept)."""

    rows: np.ndarray
    unknown: int
    counts: dict[str, dict[str, tuple[int, int, int]]] = field(default_factory=dict)


def parse_cap(text: str) -> Cap:
    """ "concept=5000": each concept at most 5000. "concept=plot:100": plots at most 100. Raises: DataError."""
    column, _, rest = text.partition("=")
    value, _, most = rest.rpartition(":")
    if not column.strip() or not (most.strip().isascii() and most.strip().isdecimal()):
        raise DataError(f"--cap {text!r} is not understood", fix="say COLUMN=N, or COLUMN=VALUE:N")
    return Cap(column.strip(), int(most), value.strip() or None)


def select_rows(table: pyarrow.Table, choice: Choice) -> Selected:
    """Choose rows of a table with the columns `key` and `split` (a shard set's index, or `listing_table`).

    Caps take the samples with the smallest hash of seed and key: the same ones on every machine, and when studies are
    added, a sample chosen before is left out only where a new one takes its place. A list in a column counts for
    each of its values. Raises: DataError for a condition or column that is not there, and where nothing is left.
    """
    names = table.column_names
    caps = [(resolve(names, cap.column), cap) for cap in choice.caps]
    balance = resolve(names, choice.balance) if choice.balance else None
    splits: list[str] = table["split"].to_pylist()
    if (caps or balance) and not set(choice.thin_splits) & set(splits):
        raise DataError(
            f"no sample is in the splits to thin, {list(choice.thin_splits)}",
            "the caps would do nothing",
            f"name others with --thin-splits; there are {sorted(set(splits))}",
        )
    answer: Sequence[bool | None] = meets(table, choice.where) if choice.where else [True] * table.num_rows
    met = [i for i, yes in enumerate(answer) if yes]
    columns = dict.fromkeys(["split", *(column for column, _ in caps), *([balance] if balance else [])])
    values = {column: [_values(v) for v in table[column].to_pylist()] for column in columns}
    thinned = [i for i in met if splits[i] in choice.thin_splits]
    chosen = _thin(thinned, _order(table["key"].to_pylist(), thinned, choice.seed), values, caps, balance)
    rows = np.array(sorted({*(i for i in met if splits[i] not in choice.thin_splits), *chosen}), dtype=np.int64)
    if not len(rows):
        raise DataError(
            "nothing is selected", "a run would train on nothing", "loosen the condition, or check its values"
        )
    counts = {column: _counts(values[column], met, rows) for column in columns}
    return Selected(rows, sum(yes is None for yes in answer), counts)


def _order(keys: list[str], rows: list[int], seed: int) -> list[int]:
    def place(i: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{keys[i]}".encode(), digest_size=16).digest()

    return sorted(rows, key=place)


def _thin(
    rows: list[int],
    order: list[int],
    values: dict[str, list[tuple[str, ...]]],
    caps: list[tuple[str, Cap]],
    balance: str | None,
) -> list[int]:
    """The rows, in their order, for each of whose values there is room."""
    room: dict[tuple[str, str], int] = {}
    for column, cap in caps:
        for value in [cap.value] if cap.value is not None else {v for i in rows for v in values[column][i]}:
            room[column, value] = min(cap.most, room.get((column, value), cap.most))
    if balance is None:
        return _fill(order, values, room)
    order = [i for i in order if UNKNOWN not in values[balance][i]]
    groups = {v for i in order for v in values[balance][i]}
    while True:
        # What other caps leave decides how many the rarest value has; room that one value gives up may be another's,
        # so it is done again until all have the same number, which only falls.
        taken = _fill(order, values, dict(room))
        sizes = Counter(v for i in taken for v in values[balance][i])
        least = min((sizes[value] for value in groups), default=0)
        if all(sizes[value] == least for value in groups):
            return taken
        room |= {(balance, value): least for value in groups}


def _fill(order: list[int], values: dict[str, list[tuple[str, ...]]], room: dict[tuple[str, str], int]) -> list[int]:
    columns = {column for column, _ in room}
    taken = []
    for i in order:
        places = [(c, v) for c in columns for v in values[c][i] if (c, v) in room]
        if all(room[place] > 0 for place in places):
            taken.append(i)
            for place in places:
                room[place] -= 1
    return taken


def _values(cell: Any) -> tuple[str, ...]:
    if isinstance(cell, list):
        return tuple(dict.fromkeys(v for item in cell for v in _values(item))) or (UNKNOWN,)
    if cell is None or cell == "":
        return (UNKNOWN,)
    return (str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell),)


def _counts(values: list[tuple[str, ...]], met: Iterable[int], kept: Iterable[int]) -> dict[str, tuple[int, int, int]]:
    before, after, last = (
        Counter(v for i in rows for v in values[i]) for rows in (range(len(values)), met, map(int, kept))
    )
    return {
        value: (before[value], after[value], last[value]) for value in sorted(before, key=lambda v: (-before[v], v))
    }


def save_selection(path: Path, shards: Shards, choice: Choice, selected: Selected) -> None:
    """Write the keys with the hash of the set they were chosen from: .parquet or .json, aside and then renamed."""
    keys = [shards.key(int(row)) for row in selected.rows]
    about = {
        "version": VERSION,
        "manifest": shards.manifest_hash,
        "where": choice.where,
        "caps": [[cap.column, cap.value, cap.most] for cap in choice.caps],
        "balance": choice.balance,
        "seed": choice.seed,
        "thin_splits": list(choice.thin_splits),
    }
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            aside.write_text(json.dumps({**about, "keys": keys}, indent=1) + "\n", encoding="utf-8")
        elif path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            schema = pa.schema([("key", pa.string())], metadata={"selection": json.dumps(about)})
            pq.write_table(pa.table({"key": keys}, schema=schema), aside, compression="zstd")
        else:
            raise DataError(f"a selection is not written as {path.suffix!r}", fix="name it .parquet or .json")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load_selection(path: str | os.PathLike[str], shards: Shards) -> np.ndarray:
    """The selected row numbers of a shard set, int64, ascending.

    Raises: DataError for a file that is no selection, one of another shard set, and one with a key it does not have.
    """
    about, keys = _read_selection(Path(path))
    if about.get("version") != VERSION or not isinstance(about.get("manifest"), str):
        raise DataError(
            "the selection file is damaged or of another version", fix="make it again with python -m data_shards.select"
        )
    if about["manifest"] != shards.manifest_hash:
        raise DataError(
            "the selection was made from another shard set",
            "its keys may be missing here, or mean studies that were built in another way",
            "make it again from this one: python -m data_shards.select",
        )
    number = {shards.key(row): row for row in range(len(shards))}
    if len(number) < len(shards):
        raise DataError("the shard set has a key twice", "two samples would be taken for one", "select from each set")
    if len(set(keys)) != len(keys) or not all(key in number for key in keys):
        raise DataError("the selection names keys twice or keys that the shard set has not", fix="make it again")
    return np.array(sorted(number[key] for key in keys), dtype=np.int64)


def _read_selection(path: Path) -> tuple[dict[str, Any], list[str]]:
    import pyarrow as pa

    try:
        if path.suffix == ".json":
            body = json.loads(path.read_text(encoding="utf-8"))
            return body, [str(key) for key in body["keys"]]
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return json.loads(table.schema.metadata[b"selection"]), table["key"].to_pylist()
    except FileNotFoundError:
        raise DataError("the selection file does not exist", fix="make it with python -m data_shards.select") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"the selection file cannot be read ({type(error).__name__})", fix="make it again with data_shards.select"
        ) from None


def index_table(shards: Shards) -> pyarrow.Table:
    """What a set tells of its samples, as a table for `select_rows` with a row a sample: the index of a shard set; of
    published tars the same columns, read from their samples."""
    import pyarrow as pa

    index: pyarrow.Table | None = getattr(shards, "index", None)
    if index is not None:
        return index.drop_columns([name for name in ("members",) if name in index.column_names])
    rows = range(len(shards))
    split = np.full(len(shards), None, dtype=object)
    for name in shards.manifest["splits"]:
        split[shards.rows(name)] = name
    columns: dict[str, Any] = {
        "key": pa.array([shards.key(row) for row in rows], pa.string()),
        "split": pa.array(split.tolist(), pa.string()),
        "patient": pa.array([shards.patient(row) for row in rows], pa.string()),
        "modality": pa.array([shards.modality(row) for row in rows], pa.string()),
    }
    for name, values in zip(shards.label_names, shards.labels().T, strict=True):
        columns[f"label:{name}"] = pa.array([None if np.isnan(v) else int(v) for v in values], pa.int8())
    told = [(info.get("licence"), info.get("source"), info.get("meta") or {}) for info in map(shards.json, rows)]
    for i, name in enumerate(("licence", "source")):
        columns[name] = pa.array([one[i] for one in told], pa.string())
    for name in sorted({name for *_, meta in told for name in meta}):
        columns[f"meta:{name}"] = meta_column([meta.get(name) for *_, meta in told])
    return pa.table(columns)


def listing_table(listing: Listing, modality: str | None = None, licence: str = "", source: str = "") -> pyarrow.Table:
    """The studies of a source as a table for `select_rows` before anything is read: the columns of an index, with the
    unhashed id as `key`. `modality` is for scans that do not say; the row number is the place in listing.rows."""
    import pyarrow as pa

    rows = listing.rows
    columns: dict[str, Any] = {
        "key": pa.array([row.id for row in rows], pa.string()),
        "split": pa.array([row.split for row in rows], pa.string()),
        "modality": pa.array([row.scans[0].modality or modality if row.scans else None for row in rows], pa.string()),
        "licence": pa.array([licence] * len(rows), pa.string()),
        "source": pa.array([source] * len(rows), pa.string()),
        "scans": pa.array([len(row.scans) for row in rows], pa.int64()),
    }
    for name in sorted({name for row in rows for name in row.labels}):
        columns[f"label:{name}"] = pa.array([row.labels.get(name) for row in rows], pa.int8())
    for name in sorted({name for row in rows for name in row.meta}):
        columns[f"meta:{name}"] = meta_column([row.meta.get(name) for row in rows])
    return pa.table(columns)


def meta_column(cells: list[Any]) -> Any:
    """A column `meta:NAME` of values as a study keeps them: numbers stay numbers, lists of texts stay lists, everything
    else is text. Text that is a number in every cell becomes one, so that conditions may compare it."""
    import pyarrow as pa

    known = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, bool | int | float) for cell in known):
        return pa.array([None if c is None else float(c) for c in cells], pa.float64())
    if all(isinstance(cell, list) for cell in known):
        return pa.array([None if c is None else [str(v) for v in c] for c in cells], pa.list_(pa.string()))
    if not all(isinstance(cell, str) for cell in known):
        return pa.array([None if c is None else json.dumps(c, ensure_ascii=False) for c in cells], pa.string())
    from data_shards.conditions import typed_table

    return typed_table(["meta"], [[cell or ""] for cell in cells])["meta"]
