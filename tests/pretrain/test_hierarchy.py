"""Code hierarchies from CSV files: what is above what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.errors import ConfigError
from pretrain.hierarchy import read_hierarchy


def write(folder: Path, text: str) -> Path:
    path = folder / "codes.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "child,parent\n250.21,250.2\n250.2,250\n250.21,kidney\n250,\n",
        "Parents,note,Code\n250.2; kidney,x,250.21\n250,y,250.2\n",
        "\ufeffchild,parent\n250.21,250.2;kidney\n\n250.21,250.2\n250.2,250\n",
    ],
)
def test_several_parents_in_rows_or_in_a_cell(tmp_path: Path, text: str) -> None:
    found = read_hierarchy(write(tmp_path, text))
    assert found.above("250.21") == {"250.2", "250", "kidney"}
    assert found.above("250") == set() == found.above("never heard of")
    assert found.below(["250.2", "x", "250.21"]) == {
        "250": ["250.2", "250.21"],
        "250.2": ["250.21"],
        "kidney": ["250.21"],
    }


def test_two_ways_to_one_code_are_one(tmp_path: Path) -> None:
    found = read_hierarchy(write(tmp_path, "child,parent\na,b\na,c\nb,d\nc,d\n"))
    assert found.above("a") == {"b", "c", "d"}
    assert found.below(["a"])["d"] == ["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("child,parent\na,b\nb,c\nc,a\n", r"has a cycle: (a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)"),
        ("child,parent\nx,y\na,a\n", "has a cycle: a -> a"),
        ("child,parent\na,b\nb,a;c\n", "cycle"),
        ("name,above\na,b\n", "columns name, above"),
        ("", r"columns \(none\)"),
        ("child,parent\na,\n", "names no parent"),
        ("child,parent\n,b\n", "line 2: a parent without a child"),
    ],
)
def test_what_is_no_hierarchy_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_hierarchy(write(tmp_path, text))


def test_a_missing_file_and_a_deep_chain(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        read_hierarchy(tmp_path / "none.csv")
    chain = "child,parent\n" + "".join(f"{i},{i + 1}\n" for i in range(5000))
    assert len(read_hierarchy(write(tmp_path, chain)).above("0")) == 5000
