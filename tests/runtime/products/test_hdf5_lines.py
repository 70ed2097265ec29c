"""Lines of HDF5 data sets: the same numbers whatever the chunks, none inflated twice, a disk where memory is small."""

from __future__ import annotations

import resource
import tempfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import MachineError
from runtime.files.hdf5 import StoredArray
from runtime.products import Reading, contract
from runtime.products.hdf5_lines import LinesOf
from tests.runtime.products.hdf5_data import emit, opened, put, refused, values

CHUNKS = [None, (1, 5, 9), (4, 5, 9), (3, 2, 4), (11, 5, 9), (11, 5, 1), (2, 1, 9)]
SHAPE = (11, 5, 9)


def chunked(path: Path, chunks: tuple[int, ...] | None, dtype: str = "f4", **options: object) -> Path:
    more = {"compression": 4, "shuffle": True, "fletcher32": True} if chunks else {}

    def change(file: h5py.File) -> None:
        del file["reflectance"]
        file.create_dataset("reflectance", data=values(SHAPE, dtype), chunks=chunks, **(more | options))

    return emit(path, change, SHAPE)


def inflations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Corners of the chunks that are inflated from now on."""
    corners: list[tuple[int, ...]] = []
    chunk = StoredArray._chunk

    def counted(self: StoredArray, corner: tuple[int, ...]) -> NDArray[Any]:
        corners.append(corner)
        return chunk(self, corner)

    monkeypatch.setattr(StoredArray, "_chunk", counted)
    return corners


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dtype", ["f4", ">i2"])
def test_any_lines_are_those_h5py_reads(tmp_path: Path, chunks: tuple[int, ...] | None, dtype: str) -> None:
    path = chunked(tmp_path / "a.nc", chunks, dtype)
    with h5py.File(path) as file:
        whole = file["reflectance"][()].transpose(2, 0, 1)
    with opened(path) as reader:
        assert reader.description.block == (chunks[0] if chunks else 1)
        assert reader.description.dtype == np.dtype(dtype).newbyteorder("=")
        for start in range(11):
            for stop in range(start + 1, 12):
                lines = reader.read_lines(start, stop)
                assert lines.flags.c_contiguous
                assert lines.dtype == reader.description.dtype
                np.testing.assert_array_equal(lines, whole[:, start:stop])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7])
def test_in_order_no_chunk_is_inflated_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    path = chunked(tmp_path / "a.nc", (4, 5, 4))
    inflated = inflations(monkeypatch)
    with opened(path) as reader:
        for start in range(0, 11, step):
            reader.read_lines(start, min(start + step, 11))
    assert len(inflated) == len(set(inflated)) == 3 * 3


@pytest.mark.parametrize("chunks", [(11, 5, 1), (4, 5, 2), (5, 2, 9)])
@pytest.mark.parametrize("gathered", [1, 300, 1 << 20])
def test_large_rows_of_chunks_go_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, ...], gathered: int
) -> None:
    monkeypatch.setattr(contract, "LINE_OF_CHUNKS", 500)
    monkeypatch.setattr("runtime.products.hdf5_lines.SPOOLED_AT_ONCE", gathered)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = chunked(tmp_path / "a.nc", chunks)
    inflated = inflations(monkeypatch)
    whole = values(SHAPE).transpose(2, 0, 1)
    with opened(path) as reader:
        assert reader.description.block == 1
        assert not inflated
        for start, stop in [(7, 11), (0, 1), (3, 8), (0, 11)]:
            np.testing.assert_array_equal(reader.read_lines(start, stop), whole[:, start:stop])
        assert list(tmp_path.iterdir()) == [path]
    assert len(inflated) == len(set(inflated))


def test_without_room_for_that_file_the_machine_is_to_blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "LINE_OF_CHUNKS", 500)
    path, limits = chunked(tmp_path / "a.nc", (11, 5, 1)), resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(path) as reader:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(MachineError, match="temporary file failed: File too large"):
                reader.read_lines(0, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_bands_apart_are_read_in_the_order_of_the_description(tmp_path: Path) -> None:
    path = chunked(tmp_path / "a.nc", (4, 5, 4))
    with h5py.File(path) as file:
        stored = StoredArray(file["reflectance"], path.stat().st_size, path, "/reflectance", "")
        lines, out = LinesOf(stored, ("lines", "samples", "bands"), (7, 2, 3)), np.empty((3, 6, 5), "f4")
        lines.read(1, 7, out)
    np.testing.assert_array_equal(out, values(SHAPE).transpose(2, 0, 1)[[7, 2, 3], 1:7])


def test_what_a_reader_holds_is_bounded_and_told(tmp_path: Path) -> None:
    with opened(chunked(tmp_path / "a.nc", (4, 5, 4))) as reader:
        assert 4 * 5 * 9 * 4 <= reader.description.holds < 1 << 20
    with opened(chunked(tmp_path / "b.nc", None)) as reader:
        assert reader.description.holds == 0


def test_a_file_that_changes_under_the_reader(tmp_path: Path) -> None:
    path = chunked(tmp_path / "a.nc", (4, 5, 9))
    with opened(path) as reader:
        reader.read_lines(0, 4)
        with path.open("ab") as file:
            file.write(b"x")
        with pytest.raises(Exception, match="was changed since it was opened"):
            reader.read_lines(4, 8)


def test_chunks_that_are_not_there_or_not_what_they_say(tmp_path: Path) -> None:
    def missing(file: h5py.File) -> None:
        del file["reflectance"]
        file.create_dataset("reflectance", (8, 3, 5), "f4", chunks=(4, 3, 5))[:4] = 1

    refused(emit(tmp_path / "a.nc", missing), "/reflectance: some of its values were never written")

    def beyond(file: h5py.File) -> None:
        del file["reflectance"]
        data = file.create_dataset("reflectance", (4, 3, 5), "f4", chunks=(4, 3, 5), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(50_000_000)))

    refused(emit(tmp_path / "b.nc", beyond), "/reflectance: .*inflates beyond its 240 bytes")
    refused(
        emit(tmp_path / "c.nc", lambda file: put(file, "reflectance", values((4, 3, 5)) > 9)), "truth values|enumerated"
    )
    kind = h5py.enum_dtype({"LOW": 0, "HIGH": 1}, basetype="i2")

    def named(file: h5py.File) -> None:
        del file["reflectance"]
        file.create_dataset("reflectance", (4, 3, 5), kind)[...] = 1

    refused(emit(tmp_path / "d.nc", named), "/reflectance: holds enumerated or packed numbers")

    def twelve_bits(file: h5py.File) -> None:
        del file["reflectance"]
        packed = h5py.h5t.STD_I16LE.copy()
        packed.set_precision(12)
        space = h5py.h5s.create_simple((4, 3, 5))
        h5py.h5d.create(file.id, b"reflectance", packed, space).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.ones((4, 3, 5), "i2")
        )

    refused(emit(tmp_path / "e.nc", twelve_bits), "/reflectance: holds enumerated or packed numbers")


def test_the_layout_names_the_axes_of_a_file_without_dimensions(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = values((5, 7, 6))
    error = refused(tmp_path / "a.h5", "/cube: does not say which axis is which")
    assert "--layout" in error.remedy
    with opened(tmp_path / "a.h5", Reading(layout="bands,samples,lines")) as reader:
        np.testing.assert_array_equal(reader.read_lines(2, 6), values((5, 7, 6)).transpose(0, 2, 1)[:, 2:6])
    refused(tmp_path / "a.h5", "layout: has three axes", Reading(layout="lines,samples"))
