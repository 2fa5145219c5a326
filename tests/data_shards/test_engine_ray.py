"""The build on a local Ray cluster of two nodes, with one processor each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_shards.build import main
from data_shards.engine import Rejection, in_order
from tests.data_shards.dying import Dying, died
from tests.data_shards.test_build_resume import arguments, contents, write_table
from tests.data_shards.test_engine import rows

pytestmark = pytest.mark.full
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPO))  # the nodes' workers find this package, and these tests
        patch.setenv("VOXCLIP_SALT", "test")
        pytest.importorskip("ray", reason="pip install 'voxclip[cluster]'")
        from ray.cluster_utils import Cluster

        two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        two.add_node(num_cpus=1)
        patch.setenv("RAY_ADDRESS", two.address)
        try:
            yield
        finally:
            two.shutdown()


def test_the_same_bytes(tmp_path: Path) -> None:
    source = write_table(tmp_path, 7)
    assert main(arguments(source, tmp_path / "here")) == 0
    assert main(arguments(source, tmp_path / "ray", "--engine", "ray")) == 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


def test_a_dead_worker_is_tried_again(tmp_path: Path) -> None:
    from data_shards.engine_ray import RayTasks

    pool = RayTasks(Dying(str(tmp_path), deadly=(5,), once=(2, 9)), 0, died)
    assert pool.slots == 2, "the processors of both nodes"
    results: list[Any] = list(in_order(pool, rows(12)))
    assert [getattr(r, "line", None) or r[0] for r in results] == list(range(1, 13))
    (rejected,) = [r for r in results if isinstance(r, Rejection)]
    assert rejected.line == 5 and "the process that read it died" in rejected.reason
    assert len(list(tmp_path.glob("*.died"))) == 3


def test_no_cluster_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(arguments(write_table(tmp_path, 2), tmp_path / "out", "--engine", "ray")) == 1
    assert "the Ray cluster cannot be reached" in capsys.readouterr().err
