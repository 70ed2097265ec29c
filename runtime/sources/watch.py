"""`watch:DIR`: a folder into which a recorder drops ENVI pairs, each read once when it is complete.

No line is given twice: a file that is touched or grows after it was read is not read again; it is told, and what it
grew by is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from runtime.files.envi_header import EnviHeader, stated_by
from runtime.lines import LineFormat
from runtime.sources.contract import SourceOptions
from runtime.sources.envi_file import LineReader, converting, described, format_of, path_of, sampled
from runtime.sources.pairs import Pairs, Skipped
from runtime.sources.watching import PATIENCE, Finished, Watch
from runtime.stated import Stated


def open_source(address: str, options: SourceOptions) -> Watch:
    """Open a folder; see `Watch`. For `idle_seconds`, or 10 s, a pair may stay incomplete before it is skipped.

    Raises:
        CubeFileError: there is no such folder, or no complete pair came in that time.
        InputError: the address is empty, or the options do not fit the first file.
    """
    path = path_of(address, "watch")
    patience = PATIENCE if options.idle_seconds is None else options.idle_seconds
    return Watch(path, _Pairs(path, patience), options)


class _Pairs(Pairs):
    what = "ENVI pair"

    @property
    def waits(self) -> bool:
        return bool(self.waiting)

    def finished(self) -> Iterator[Finished | Skipped]:
        return (_Pair(found) if isinstance(found, EnviHeader) else found for found in self.ready())


class _Pair(Finished):
    def __init__(self, header: EnviHeader) -> None:
        self._header = header
        self.path, self.name, self.stated = header.path, header.data_path.name, stated_by(header)

    def format(self, options: SourceOptions) -> LineFormat:
        return format_of(self._header, options)

    def lines(self, frame: int | None) -> LineReader:
        return LineReader(self._header, frame)

    def sample(self) -> NDArray[Any] | None:
        return sampled(self._header, self._header.lines)

    def describe(self) -> dict[str, str]:
        return described("watch", self._header) | {"model": "folder of ENVI files"}

    def otherwise(self, first: Stated) -> str:
        return converting(first, self._header)
