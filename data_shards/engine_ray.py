"""The build on a Ray cluster: the same studies, the same order, the same bytes. Heavy: imported only when asked for."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from data_shards.engine import ATTEMPTS, DIED, ONE_THREAD, Make, Rejection
from data_shards.errors import DataError
from data_shards.sources.base import StudyRow


class RayTasks:
    """A task per study on the cluster of $RAY_ADDRESS, one that runs on this machine, or one started here.

    Every node needs this package, and sees the files of the source under the same paths; only the driver writes. A task
    whose worker or node died is tried again. Only our own objects are serialised: rows, and studies made of them.
    slots: `workers`, or all the cluster's processors where it is 0.
    """

    def __init__(self, make: Make, workers: int, died: Callable[[StudyRow, str], Rejection]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a hospital's cluster reports to nobody
        try:
            import ray
        except ImportError:
            raise DataError(
                "--engine ray needs Ray, which is not installed", fix="pip install 'voxclip[cluster]'"
            ) from None
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        if self._mine:
            try:
                _knock(os.environ.get("RAY_ADDRESS", ""))
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise DataError(
                    f"the Ray cluster cannot be reached ({type(error).__name__})",
                    fix="check RAY_ADDRESS and `ray status`",
                ) from None
        self.slots = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._died = died
        self._make = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1, runtime_env={"env_vars": ONE_THREAD})(_call)
        self._by = ray.put(make)
        self._flying: dict[Any, tuple[int, StudyRow]] = {}

    def submit(self, number: int, row: StudyRow) -> None:
        self._flying[self._make.remote(self._by, row)] = number, row

    def collect(self) -> list[tuple[int, Any]]:
        (ready,), _ = self._ray.wait(list(self._flying), num_returns=1)
        number, row = self._flying.pop(ready)
        try:
            return [(number, self._ray.get(ready))]
        except self._ray.exceptions.RayError as error:  # not what `make` found: that comes back as a Rejection
            how = type(error).__name__
            return [(number, self._died(row, f"{DIED} ({how}): it may need more memory than there is"))]

    def close(self) -> None:
        for task in self._flying:
            self._ray.cancel(task, force=True)
        self._flying.clear()
        if self._mine:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes. "auto" and ray:// are Ray's own to find."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _call(make: Make, row: StudyRow) -> Any:
    return make(row)
