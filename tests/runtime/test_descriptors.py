"""A process without a descriptor left: the record goes on, what can wait waits."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.descriptors import HELD, hold_back, insisting, is_shortage
from runtime.errors import InputError
from runtime.record.index import verify
from runtime.record.writer import open_line_writer
from tests.contracts.line_files import SMALL
from tests.runtime.test_line_file import LIMIT, SEGMENT, append

FDS = Path("/proc/self/fd")


@contextmanager
def none_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(one.name) for one in FDS.iterdir()) + 16, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limit", [None, LIMIT])
def test_a_record_goes_on_without_a_descriptor_left(tmp_path: Path, limit: int | None) -> None:
    hold_back()
    size = None if limit is None else SEGMENT
    with open_line_writer(tmp_path, "lines", SMALL, limit=limit, segment_bytes=size) as writer:
        append(writer, 3)
        with none_left():
            # Over several segments of a ring, of which some go.
            for _ in range(20):
                append(writer, 10)
                writer.checkpoint()
        append(writer, 1)
    report = verify(tmp_path, "lines")
    assert not report.problems
    assert report.last == 203


def test_a_header_that_cannot_be_written_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.record.segment.insisting", lambda action: action())
    with open_line_writer(tmp_path, "lines", SMALL) as writer:
        append(writer, 3)
        with none_left():
            writer.checkpoint()
            assert not (tmp_path / "lines.hdr").exists()
        writer.checkpoint()
        assert (tmp_path / "lines.hdr").exists()


def test_what_is_held_back_is_taken_again() -> None:
    hold_back()
    before = len(list(FDS.iterdir()))
    with none_left():
        one = insisting(lambda: os.open(os.devnull, os.O_RDONLY))
        os.close(one)
    hold_back()
    assert len(list(FDS.iterdir())) == before
    assert HELD > 1


def test_other_troubles_are_not_asked_twice() -> None:
    asked = []

    def fails() -> None:
        asked.append(1)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        insisting(fails)
    assert len(asked) == 1


def test_a_shortage_is_known_by_what_it_came_from() -> None:
    error = InputError("cannot be written")
    error.__cause__ = OSError(24, "Too many open files")
    assert is_shortage(error)
    assert not is_shortage(InputError("other"))
