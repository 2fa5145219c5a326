"""A hierarchy of codes from a CSV file (phecodes under phecodes, findings under organs). No torch: read at stage 1 too.

Two columns, child and parent. A code with several parents has several rows, or all of them in one cell, ";" between
them. A root has no row, or an empty cell.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors import ConfigError

CHILD, PARENT = ("child", "code"), ("parent", "parents")
_COLUMNS = "give it the columns child,parent (a code with several parents: several rows, or ';' between them)"


@dataclass(frozen=True)
class Hierarchy:
    """Each code's parents."""

    parents: Mapping[str, tuple[str, ...]]

    def above(self, code: str) -> set[str]:
        """Every code over this one, by whichever way; not the code itself."""
        found: set[str] = set()
        todo = list(self.parents.get(code, ()))
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo += self.parents.get(one, ())
        return found

    def below(self, codes: Iterable[str]) -> dict[str, list[str]]:
        """code -> those of `codes` that are under it, in their order, for every code that has some."""
        found: dict[str, list[str]] = {}
        for code in codes:
            for above in sorted(self.above(code)):
                found.setdefault(above, []).append(code)
        return found


def read_hierarchy(path: str | Path) -> Hierarchy:
    """Raises ConfigError: no such file, other columns, a row without a child, no parent at all, or a cycle."""
    file = Path(path).expanduser()
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
            child, parent = (next((names[n] for n in known if n in names), None) for known in (CHILD, PARENT))
            if child is None or parent is None:
                raise ConfigError(
                    f"'{path}' has the columns {', '.join(names) or '(none)'}",
                    why="no code's parent is in it",
                    fix=_COLUMNS,
                )
            parents = _read(rows, child, parent, str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"'{path}' cannot be read ({type(error).__name__})", fix=f"check its path; {_COLUMNS}"
        ) from None
    if not any(parents.values()):
        raise ConfigError(f"'{path}' names no parent", why="nothing would be propagated, in silence", fix=_COLUMNS)
    _refuse_cycle(parents, str(path))
    return Hierarchy(parents)


def _read(rows: csv.DictReader[str], child: str, parent: str, path: str) -> dict[str, tuple[str, ...]]:
    parents: dict[str, tuple[str, ...]] = {}
    for row in rows:
        code = (row[child] or "").strip()
        above = [name.strip() for name in (row[parent] or "").split(";") if name.strip()]
        if not code and above:
            raise ConfigError(f"'{path}', line {rows.line_num}: a parent without a child", fix=_COLUMNS)
        if code:
            parents[code] = tuple(dict.fromkeys([*parents.get(code, ()), *above]))
    return parents


def _refuse_cycle(parents: Mapping[str, tuple[str, ...]], path: str) -> None:
    """Depth first, without recursion: hierarchies may be deep."""
    done: set[str] = set()
    for start in parents:
        way, todo = [start], [iter(parents[start])]
        while todo:
            above = next(todo[-1], None)
            if above is None:
                done.add(way.pop())
                todo.pop()
            elif above in way:
                circle = [*way[way.index(above) :], above]
                raise ConfigError(
                    f"'{path}' has a cycle: {' -> '.join(circle)}",
                    why="each of these codes would be present wherever one of them is",
                    fix="take out the row that points back down",
                )
            elif above not in done:
                way.append(above)
                todo.append(iter(parents.get(above, ())))
