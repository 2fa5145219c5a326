"""Studies by the place that a command line names."""

from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.opening import open_studies


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder or file 'shrds'"):
        open_studies(tmp_path / "shrds")
    with pytest.raises(DataError, match=r"no manifest\.json at this place"):
        open_studies(tmp_path)
