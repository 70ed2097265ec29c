"""A store that is being written: hidden until it is whole, then put in its place at once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runtime.closing import Closing
from runtime.durable import part_of, place_folder
from runtime.errors import CubeFileError
from runtime.files.disk import reason
from runtime.products.zarr_tree import is_store

_REMEDY = "check the folder, its permissions and its free space"


class Hidden(Closing):
    """A folder with a temporary name beside `out`; removed by `close` unless it was placed.

    Raises:
        CubeFileError: `out` is not a store that may be replaced, or lies in the source, or the system refused.
    """

    def __init__(self, out: Path, source: Path) -> None:
        self.out = out
        if os.path.lexists(out) and (out.is_symlink() or not is_store(out)):
            raise CubeFileError("is there, and is no Zarr store", file=out, remedy="give another name")
        if source.resolve() in (out.resolve(), *out.resolve().parents):
            raise CubeFileError("would overwrite the input", file=out, remedy="write to another name or folder")
        self._stack = ExitStack()
        with writing(out):
            self.path = self._stack.enter_context(part_of(out, folder=True))

    def place(self) -> None:
        """Sync its folders and give it its name; a store that was there is removed afterwards."""
        with writing(self.out):
            place_folder(self.path, self.out)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the system refuses while `out` is written is a CubeFileError."""
    try:
        yield
    except OSError as error:
        raise CubeFileError(f"cannot be written: {reason(error)}", file=out, remedy=_REMEDY) from error
