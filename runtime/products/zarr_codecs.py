"""How the bytes of a Zarr chunk become numbers, and back: the codecs by name, none of which gives more than it should.

Zarr's specification, versions 2 and 3. What zarr's own pipeline inflates has no bound, so the steps are done here.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOSC = ("blosclz", "lz4", "lz4hc", "zlib", "zstd", "snappy")
_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_WINDOW = {"zlib": 15, "gzip": 31}
Bytes = bytes | memoryview
_ZSTD = b"\x28\xb5\x2f\xfd"


class CodecError(ValueError):
    """Bytes that are not what their array says, or a codec that is not known: one clause."""


@dataclass(frozen=True)
class Step:
    """A codec from bytes to bytes, with its settings."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Codecs:
    """From an array to bytes.

    Attributes:
        stored: type with its byte order.
        axes: of the array, in the order in which they are stored.
        steps: over the bytes, in the order of writing.
    """

    stored: np.dtype[Any]
    axes: tuple[int, ...]
    steps: tuple[Step, ...] = ()

    def decoded(self, raw: Bytes, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array of `shape` in native order; raises CodecError where there are fewer bytes or more."""
        sizes: list[int | None] = [prod(shape) * self.stored.itemsize]
        for step in self.steps:
            before = sizes[-1]
            sizes.append(before + 4 if step.name == "crc32c" and before is not None else None)
        for step, size in zip(reversed(self.steps), reversed(sizes[:-1]), strict=True):
            raw = _undone(step, raw, size)
        if len(raw) != sizes[0]:
            raise CodecError(f"{len(raw)} bytes instead of {sizes[0]}")
        values: NDArray[Any] = np.frombuffer(raw, self.stored).reshape([shape[axis] for axis in self.axes])
        native: NDArray[Any] = values.transpose(np.argsort(self.axes)).astype(self.stored.newbyteorder("="), copy=False)
        return native

    def encoded(self, array: NDArray[Any]) -> bytes:
        """The bytes of an array; the same for the same values."""
        raw = np.ascontiguousarray(array.transpose(self.axes), self.stored).tobytes()
        for step in self.steps:
            raw = _done(step, raw)
        return raw


def step_of(name: str, settings: Mapping[str, Any], itemsize: int) -> Step:
    """A codec by its name in either version; raises CodecError where it is not known, or its settings are not."""
    taken = {"crc32c", "zstd", "lz4", "blosc", *_WINDOW}
    if name not in taken:
        raise CodecError(f"the codec {name[:40]!r} is not known; known are {', '.join(sorted(taken))}")
    checked: dict[str, Any] = {}
    ranges = {"level": (-131072, 22), "acceleration": (0, 1 << 20), "clevel": (0, 9), "blocksize": (0, 1 << 30)}
    for key, (low, high) in ranges.items():
        value = settings.get(key, 1 if key == "acceleration" else 0 if key == "blocksize" else 5)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise CodecError(f"the codec {name!r} has no {key} {str(value)[:20]}")
        checked[key] = value
    if name in _WINDOW and not 0 <= checked["level"] <= 9:
        raise CodecError(f"the codec {name!r} has no level {checked['level']}")
    checked["checksum"] = settings.get("checksum") is True
    if name == "blosc":
        checked["cname"], shuffle = settings.get("cname", "lz4"), settings.get("shuffle", 1)
        shuffle = _SHUFFLES.get(shuffle) if isinstance(shuffle, str) else shuffle
        if checked["cname"] not in _BLOSC or shuffle not in (-1, 0, 1, 2):
            raise CodecError("blosc has settings that are not known")
        # -1 leaves it to the size of the numbers.
        checked["shuffle"] = shuffle if shuffle >= 0 else 2 if itemsize == 1 else 1
        typesize = settings.get("typesize", itemsize)
        checked["typesize"] = typesize if isinstance(typesize, int) and typesize in (2, 4, 8) else itemsize
    return Step(name, checked)


def check_steps(steps: tuple[Step, ...]) -> None:
    """Raise CodecError where a step's size could not be known before it is undone."""
    if sum(step.name != "crc32c" for step in steps) > 1:
        raise CodecError("it is compressed twice")


def checksum(raw: Bytes) -> bytes:
    """CRC-32C as Zarr stores it. Its library comes with zarr 3."""
    import google_crc32c

    return int(google_crc32c.value(bytes(raw))).to_bytes(4, "little")


def _undone(step: Step, raw: Bytes, size: int | None) -> Bytes:
    if step.name == "crc32c":
        if len(raw) < 4 or checksum(raw[:-4]) != raw[-4:]:
            raise CodecError("its checksum is not that of its bytes")
        return raw[:-4]
    if size is None:
        raise CodecError("it is compressed twice")
    if step.name in _WINDOW:
        inflater = zlib.decompressobj(_WINDOW[step.name])
        try:
            out = inflater.decompress(raw, size + 1)
        except zlib.error as error:
            raise CodecError(f"it cannot be inflated: {error}") from error
        if not inflater.eof or inflater.unused_data or len(out) != size:
            raise CodecError(f"it does not inflate to {size} bytes")
        return out
    import numcodecs

    said = {"zstd": _zstd_says, "lz4": _lz4_says, "blosc": _blosc_says}[step.name](raw)
    if said is not None and said != size:
        raise CodecError(f"it says that it holds {said} bytes instead of {size}")
    module = {"zstd": numcodecs.zstd, "lz4": numcodecs.lz4, "blosc": numcodecs.blosc}[step.name]
    into = np.empty(size, np.uint8)
    try:
        module.decompress(raw, into)
    except Exception as error:
        raise CodecError(f"its {step.name} bytes are damaged") from error
    return into.data


def _done(step: Step, raw: bytes) -> bytes:
    if step.name == "crc32c":
        return raw + checksum(raw)
    settings = step.settings
    if step.name in _WINDOW:
        # Python's own gzip would write the time.
        deflater = zlib.compressobj(settings["level"], zlib.DEFLATED, _WINDOW[step.name])
        return deflater.compress(raw) + deflater.flush()
    import numcodecs

    if step.name == "zstd":
        more = {"checksum": True} if settings["checksum"] else {}
        return bytes(numcodecs.zstd.compress(raw, settings["level"], **more))
    if step.name == "lz4":
        return bytes(numcodecs.lz4.compress(raw, settings["acceleration"]))
    blosc = numcodecs.blosc
    # Threads would store blocks in the order in which they end.
    before, blosc.use_threads = blosc.use_threads, False
    try:
        arguments = (settings["cname"].encode(), settings["clevel"], settings["shuffle"], settings["blocksize"])
        return bytes(blosc.compress(np.frombuffer(raw, f"u{settings['typesize']}"), *arguments))
    except ValueError as error:
        raise CodecError(f"blosc cannot write {settings['cname']} here") from error
    finally:
        blosc.use_threads = before


def _zstd_says(raw: Bytes) -> int | None:
    """The content size of a frame (RFC 8878, 3.1.1.1), None where it does not say."""
    if len(raw) < 6 or raw[:4] != _ZSTD:
        raise CodecError("it is no zstd frame")
    flags = raw[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not width:
        return None
    return int.from_bytes(raw[start : start + width], "little") + (256 if width == 2 else 0)


def _lz4_says(raw: Bytes) -> int:
    return int.from_bytes(raw[:4], "little")


def _blosc_says(raw: Bytes) -> int:
    if len(raw) < 16 or int.from_bytes(raw[12:16], "little") != len(raw):
        raise CodecError("it is cut short")
    return int.from_bytes(raw[4:8], "little")
