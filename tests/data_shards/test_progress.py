"""Progress where there is no terminal: a line now and then, none for what is over at once."""

import pytest

from data_shards import progress


def test_a_log_gets_lines_of_long_work_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))  # each look at the clock is four seconds later
    with progress.counting(3, "encoding") as advance:
        advance(3)
    assert capsys.readouterr().err == "", "over at once"
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.counting(100, "encoding") as advance:
        for _ in range(10):
            advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 10, "now and then"
    assert lines[-1].startswith("encoding: 100/100 studies, ") and lines[-1].endswith("/s, 0 s left")
    assert list(progress.track("abc", 3, "reading")) == ["a", "b", "c"]
