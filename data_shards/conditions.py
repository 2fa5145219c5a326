"""Conditions on the columns of a table, in SQL, evaluated by a duckdb that can reach nothing but that table.

A condition is one expression, such as `modality = 'CT' and effusion = 1`. It is parsed as an expression, never pasted
into a statement; files, network, extensions, Python variables and settings are switched off and locked, so that a
condition from somebody else's recipe can do nothing but be true, false, unknown or refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_shards.errors import DataError

if TYPE_CHECKING:
    import pyarrow

PREFIXES = ("label:", "meta:")
_SETTINGS = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GB",
    "threads": "1",  # rows come back in their order
    "temp_directory": "",  # nothing of the table is spilled to a disk
}
# duckdb's catalogue calls only some of these volatile, but each would select other rows on another day or machine.
_NOT_FIXED = {
    "now",
    "today",
    "age",
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "current_localtime",
    "current_localtimestamp",
    "get_current_time",
    "get_current_timestamp",
    "transaction_timestamp",
    "txid_current",
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
    "current_database",
    "current_schema",
    "current_schemas",
    "in_search_path",
    "current_setting",
    "getvariable",
    "getenv",
    "version",
    "ago",
    "pg_conf_load_time",
    "pg_postmaster_start_time",
}


def meets(table: pyarrow.Table, where: str) -> list[bool | None]:
    """Whether each row meets the condition; None where it is unknown, as `effusion = 0` is for an unknown label.

    Columns `label:NAME` and `meta:NAME` may be written NAME where no other column has this name; a name with spaces or
    colons stands in double quotes. Raises: DataError for anything that is not one true-or-false expression over the
    columns, and for functions that give another answer at another time (random(), now()).
    """
    duckdb = _duckdb()
    readable = _with_short_names(table)
    connection = duckdb.connect(":memory:", config=_SETTINGS)
    try:
        connection.execute("SET lock_configuration = true")
        _refuse(connection, where, readable.column_names)
        relation = connection.from_arrow(readable)
        # A newline ends a comment in the condition; filter() accepts exactly one expression, so that after it the text
        # is known to be one and may stand between brackets.
        relation.filter(f"{where}\n")
        answer = relation.project(f"(\n{where}\n) AS answer")
        if [str(kind) for kind in answer.types] != ["BOOLEAN"]:
            raise DataError(
                f"the condition {where!r} is a value, not true or false",
                "every row would count as meeting it",
                "compare it with something, as in effusion = 1",
            )
        return [row[0] for row in answer.fetchall()]
    except duckdb.Error as error:
        # Only these speak of the condition; a conversion error repeats the cell it failed on.
        of_the_text = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
        said = str(error).splitlines()[0] if isinstance(error, of_the_text) else type(error).__name__
        raise DataError(
            f"the condition {where!r} is not understood: {said}",
            fix=f"the columns are {', '.join(readable.column_names)}; names with spaces or colons stand in "
            "\"…\", words in '…'",
        ) from None
    finally:
        connection.close()


def resolve(columns: Iterable[str], name: str) -> str:
    """The column that a name means: itself, or label:NAME or meta:NAME. Raises: DataError for none, or two."""
    have = list(columns)
    found = [name] if name in have else [p + name for p in PREFIXES if p + name in have]
    if len(found) != 1:
        state = f"could be {found}" if found else "is not one"
        raise DataError(
            f"there is no column {name!r}: it {state} of the columns {have}",
            fix="name one of them; columns beside the labels are stored by data_shards.build --meta-columns",
        )
    return found[0]


def typed_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> pyarrow.Table:
    """Texts of a table as an arrow table for conditions: a column of numbers is float64, blank cells are null."""
    import pyarrow as pa

    arrays: dict[str, Any] = {}
    for i, name in enumerate(columns):
        cells = [row[i].strip() for row in rows]
        arrays[name] = _as_numbers(cells)
        if arrays[name] is None:
            arrays[name] = pa.array([cell or None for cell in cells], pa.string())
    return pa.table(arrays)


def _as_numbers(cells: list[str]) -> Any:
    import pyarrow as pa

    try:
        found = [float(cell) if cell else math.nan for cell in cells]
    except ValueError:
        return None
    # duckdb counts NaN as larger than any number: it is unknown instead.
    known = [None if math.isnan(value) else value for value in found]
    return None if all(value is None for value in known) else pa.array(known, pa.float64())


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise DataError(
            "conditions need the package duckdb, which is not installed", fix="pip install duckdb"
        ) from None
    return duckdb


def _refuse(connection: Any, where: str, columns: Iterable[str]) -> None:
    """What would parse as an expression and yet is no plain condition: subqueries, and answers that change.

    duckdb's own parse tree is asked, since quotes and comments can hide a name from whoever searches the text."""
    (answer,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT (\n{where}\n)"]).fetchone()
    try:
        tree = json.loads(answer)
    except RecursionError:
        raise DataError("the condition is nested too deeply", fix="say it with fewer brackets") from None
    if tree["error"]:
        raise DataError(
            f"the condition {where!r} is not understood: {tree.get('error_message', tree.get('error_type'))}",
            fix="give one expression over the columns, as in modality = 'CT' and effusion = 1",
        )
    nodes = list(_nodes(tree))
    # The statement around the condition is the one query that may be there.
    if len(tree["statements"]) != 1 or sum("from_table" in n or n.get("class") == "SUBQUERY" for n in nodes) != 1:
        raise DataError(f"the condition {where!r} holds a query of its own", fix="compare columns with values only")
    query = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE stability = 'VOLATILE'"
    changing = {row[0] for row in connection.execute(query).fetchall()} | _NOT_FIXED
    called = {str(node["function_name"]).lower() for node in nodes if "function_name" in node}
    # current_date without brackets parses as a column, and is one where the table has it.
    plain = {str(node["column_names"][-1]).lower() for node in nodes if node.get("column_names")}
    called |= plain - {name.lower() for name in columns}
    if found := sorted(called & changing):
        raise DataError(
            f"the condition calls {', '.join(found)}, which gives another answer each time",
            "nobody could make this selection again",
            "compare stored columns; for a random part use --cap with --seed",
        )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a parsed JSON text."""
    waiting = [tree]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            yield at
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at


def _with_short_names(table: pyarrow.Table) -> pyarrow.Table:
    """The same rows with label:NAME and meta:NAME also as NAME, where that is nobody else's. duckdb takes Effusion and
    effusion for one name, so two such columns get no short one."""
    names = list(table.column_names)
    taken = [name.lower() for name in names]
    short = {name: name.split(":", 1)[1] for name in names if name.startswith(PREFIXES)}
    wanted = [alias.lower() for alias in short.values()]
    for name, alias in short.items():
        if alias.lower() not in taken and wanted.count(alias.lower()) == 1:
            table = table.append_column(alias, table.column(name))
    return table
