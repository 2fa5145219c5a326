"""Imports run one way, in no circles, and late: the rooms of CONTRIBUTING.md, asserted on the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ROOMS = ("data_shards", "encoders", "pretrain", "eval_zero_shot", "configs")

# Which modules of other rooms a room may import. A package name covers what is below it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "configs": (),
    "data_shards": (),
    "encoders": ("data_shards.volume", "data_shards.preprocess"),
    "eval_zero_shot": ("encoders", "data_shards"),
    "pretrain": ("encoders", "data_shards"),
    "pretrain.fit": ("encoders", "data_shards", "eval_zero_shot"),
}
# What training may not know even so: how a volume is read.
NEVER = {"pretrain": ("data_shards.volume", "data_shards.sources")}
# What the two leaves may not pull in, or `encoders.load` would drag the shard format along.
NOT_LEAF = (
    "shard_set",
    "shard_write",
    "stream",
    "build",
    "check",
    "privacy",
    "report",
    "phantom",
    "sources",
    "reading",
    "inspect",
    "resample",
    "arrays",
    "conditions",
    "selection",
    "select",
    "order",
    "mixture",
    "samples",
    "union",
    "workers",
    "catalogue",
    "engine",
    "journal",
    "make_study",
    "build_folder",
    "build_run",
)


@cache
def modules() -> dict[str, ast.Module]:
    """Source of every module of every room."""
    found = {}
    for room in ROOMS:
        for file in sorted((REPO / room).rglob("*.py")):
            parts = file.relative_to(REPO).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


@cache
def _packages() -> set[str]:
    return {".".join(f.parent.relative_to(REPO).parts) for room in ROOMS for f in (REPO / room).rglob("__init__.py")}


def imports(tree: ast.AST, module: str, only_at_import: bool = False) -> set[str]:
    """Absolute names of imported modules of our rooms; `from a import b` counts as a.b where that is a module."""
    names: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module if module in _packages() else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in modules() else base for a in node.names}
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(node)
        if not (only_at_import and deferred):
            todo += ast.iter_child_nodes(node)
    return {name for name in names if name.partition(".")[0] in (*ROOMS, "tests", "benchmarks")}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == a or name.startswith(a + ".") for a in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_one_way(room: str) -> None:
    own = [name for name in modules() if _within(name, (room,))]
    assert own, f"no module found in {room}"
    wrong = []
    for name in own:
        allowed = (room, *MAY_IMPORT.get(name, MAY_IMPORT[room]))
        for target in sorted(imports(modules()[name], name)):
            if not _within(target, allowed) or _within(target, NEVER.get(room, ())):
                wrong.append(f"{name} imports {target}")
    assert not wrong, wrong


def test_no_import_circles() -> None:
    """Nothing that runs at import time leads back to itself; `a.b` also runs `a`."""
    graph = {
        name: {t for t in imports(tree, name, only_at_import=True) if t in modules()}
        for name, tree in modules().items()
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                walk(target, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize("leaf", ["data_shards.volume", "data_shards.preprocess"])
def test_leaves_stay_leaves(leaf: str) -> None:
    todo, reached = [leaf], set()
    while todo:
        name = todo.pop()
        if name in modules() and name not in reached:
            reached.add(name)
            todo += imports(modules()[name], name)
    assert leaf in reached
    beyond = [name for name in reached if _within(name, tuple(f"data_shards.{part}" for part in NOT_LEAF))]
    assert not beyond, f"{leaf} leads to {beyond}"


def _command_lines() -> list[str]:
    found = []
    for name, tree in modules().items():
        if any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in tree.body):
            found.append(name)
        elif name.endswith(".__main__"):
            found.append(name.removesuffix(".__main__"))
    return found


_HELP = """
import runpy, sys
name = sys.argv[1]
sys.argv = [name, "--help"]
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "lightning", "open_clip", "timm", "monai", "torchvision", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("module", _command_lines())
def test_help_answers_without_torch(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _HELP, module], cwd=REPO, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
