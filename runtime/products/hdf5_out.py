"""A new HDF5 file that is whole or absent, filled by lines."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from runtime.durable import part_of, sync_folder
from runtime.errors import CubeFileError, DeployError, MachineError
from runtime.files.disk import reason, refuse_inputs
from runtime.plain_json import plain_json
from runtime.products.contract import PROVENANCE


class _Sink:
    """The file that HDF5 writes to. What the system refuses is kept in `error`, and HDF5 is told that all went well.

    HDF5 cannot close a file whose disk is full, and crashes at the end of the process.
    """

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDWR)
        self.error: OSError | None = None
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        data = os.pread(self.descriptor, count, self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self.descriptor, [buffer], self._at)
        self._at += count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += os.pwrite(self.descriptor, view[done:], self._at + done)
        except OSError as error:
            self.error = error
        self._at += len(view)
        self._end = max(self._end, self._at)
        return len(view)

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                os.ftruncate(self.descriptor, size)
        except OSError as error:
            self.error = error
        self._end = size
        return size

    def flush(self) -> None:
        pass


class Hdf5Out:
    """An HDF5 file under a temporary name, that no time of day goes into.

    Args:
        out: its name once it is whole.
        inputs: files that it may not replace.
        order: what HDF5 keeps of the order of links and attributes of the root (`h5p.CRT_ORDER_*`).

    Attributes:
        file: the open `h5py.File`. What is done to it stands in `writing`.

    Raises:
        CubeFileError: `out` is an input, or the system refused.
    """

    def __init__(self, out: Path, inputs: Sequence[Path], order: tuple[int, int]) -> None:
        import h5py
        from h5py import h5f, h5fd, h5p

        refuse_inputs(out, inputs)
        self.out = out
        self._stack = ExitStack()
        try:
            if out.is_dir():
                raise IsADirectoryError(0, "a folder of that name is in the way")
            self._part = self._stack.enter_context(part_of(out))
            self._sink = _Sink(self._part)
            self._stack.callback(os.close, self._sink.descriptor)
        except (OSError, ValueError) as error:
            self._stack.close()
            raise _refused(out, error) from error
        made, access = h5p.create(h5p.FILE_CREATE), h5p.create(h5p.FILE_ACCESS)
        made.set_link_creation_order(order[0])
        made.set_attr_creation_order(order[1])
        made.set_obj_track_times(False)
        access.set_fileobj_driver(h5fd.fileobj_driver, self._sink)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        # Attributes of more than 64 KiB need the headers of HDF5 1.8, which every NetCDF-4 file has.
        access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V110)
        self.file = h5py.File(h5f.create(os.fsencode(out.name), h5f.ACC_TRUNC, made, access))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever goes wrong inside is a CubeFileError about the file that is written, or a MachineError."""
        self.check()
        try:
            yield
        except MemoryError as error:
            raise MachineError("there is not the memory to write it", file=self.out, remedy="free memory") from error
        except Exception as error:
            # HDF5 may stumble over what it could not write: the system's word comes first.
            self.check()
            if isinstance(error, DeployError):
                raise
            raise _refused(self.out, error) from error
        self.check()

    def check(self) -> None:
        """Raise what the system refused, if anything."""
        if self._sink.error is not None:
            raise _refused(self.out, self._sink.error) from self._sink.error

    def sign(self, provenance: Mapping[str, Any], history: str | None) -> None:
        """Say how it was made: one JSON text, and a line under those of `history`."""
        version = provenance.get("version", "")
        line = f"damp-deploy{f' {version}' if isinstance(version, str) and version else ''}: see {PROVENANCE}"
        # Texts of any length: only a reference to them lies in the header, which holds 64 KiB.
        self.file.attrs["history"] = f"{history.rstrip()}\n{line}" if history else line
        self.file.attrs[PROVENANCE] = json.dumps(plain_json(provenance), allow_nan=False)

    def finish(self) -> None:
        """Close it, and put it in its place."""
        with self.writing():
            self.file.close()
        try:
            os.fsync(self._sink.descriptor)
            self._part.replace(self.out)
            sync_folder(self.out.parent)
        except OSError as error:
            raise _refused(self.out, error) from error
        finally:
            self._stack.close()

    def close(self) -> None:
        """Remove what is not finished."""
        if self.file:
            self._sink.error = self._sink.error or OSError("closed")
            self.file.close()
        self._stack.close()


def _refused(out: Path, error: BaseException) -> CubeFileError:
    return CubeFileError(
        f"cannot be written: {reason(error)}",
        file=out,
        remedy="check the folder, its permissions and its free space",
    )
