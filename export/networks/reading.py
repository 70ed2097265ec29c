"""Checkpoint files as tensors and facts. Untrusted: no code in them runs, no size in them is believed."""

import hashlib
import io
import json
import lzma
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from runtime.durable import write_bytes
from runtime.errors import CheckpointError, plain
from runtime.untrusted import IrregularError, TooLargeError, read_untrusted

METADATA_KEY = "damp_deploy"
DIGEST = "weights_sha256"
PACKED = b"\xfd7zXZ\0"
"""How an .xz begins."""
PACKING = {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 2, "lp": 2, "pb": 2}
"""Numbers of two and four bytes: 0.83 of their size, 0.87 without being told."""
LARGEST_FILE = 4 << 30
LARGEST_CONFIG = 1 << 20
LARGEST_HEADER = 64 << 20
UNPACKING = 256 << 20
"""Memory that an .xz may ask for; the strongest preset asks for 65 MiB."""
MOST_ENTRIES, LONGEST_KEY, DEEPEST = 1 << 17, 256, 4
"""What a pickle holds at most; how long the key of a dictionary may be, and how deep it may lie, to be looked into."""
LARGEST_EXPANSION = 4
"""Bytes of tensors per byte of file, and of a file per byte of .xz. A state dict repeats little; a tensor of one
repeated element can be any size."""
NAMED = 6
DOS_FOLDER = 0x10
DAMAGED = "copy or download it again; nothing of it was used"
REFUSED = re.compile(r"GLOBAL ([\w.]+)|unrecognized function (.+)|(?:create new|only build) .* got (.+)")
"""How PyTorch says that it will not run what a pickle asks for."""
PLAIN_TYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    *(getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


class Foreign:
    """Stands for data of other libraries that trainers keep beside weights: takes whatever comes and does nothing."""

    NAMES = (
        "argparse.Namespace", "datetime.datetime", "numpy.dtype", "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    )  # fmt: skip

    def __new__(cls, *arguments: object) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class CheckpointFacts:
    """Where weights came from and what sensor they were trained for.

    Attributes:
        file: the checkpoint.
        sha256: of its bytes; of an .xz of what is in it.
        scale: DN per 1.0 of the training data, None if not told.
        wavelengths: band centres in nanometres, empty if not told.
        about: one line on data and recipe.
        weights: where in the file the weights are, what their keys have in common there; `.` for nothing.
        rivals: where the weights of other networks are in it, or other weights of the same.
        beside: what other tensors it holds, and how many.
        doubts: sentences on what was taken though nobody said so.
        fills: it was trained on frames whose holes were made up, see `runtime.signature`.
    """

    file: Path
    sha256: str
    scale: float | None = None
    wavelengths: tuple[float, ...] = ()
    about: str = ""
    weights: str = "."
    rivals: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    fills: bool = False

    @property
    def name(self) -> str:
        """Of the file that the hash is of."""
        return self.file.name.removesuffix(".xz")

    @property
    def place(self) -> str:
        """Where the weights are and what is not used, in one clause; empty where there is nothing to say."""
        under = "" if self.weights == "." else f"weights under {plain(self.weights)}"
        unused = f"not used: {listed((*self.rivals, *self.beside))}" if self.rivals or self.beside else ""
        return "; ".join(filter(None, (under, unused)))


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file.

    Attributes:
        entries: (dotted path, tensor or what else is there), of all dictionaries in it.
        size: bytes of the file.
        facts: without those of its weights.
        architecture: its name if told.
        given: configuration if told.
    """

    entries: tuple[tuple[str, object], ...]
    size: int
    facts: CheckpointFacts
    architecture: str | None = None
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors in it by path, weights or not."""
        return {path: value for path, value in self.entries if isinstance(value, Tensor)}


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a `.pth` or `.safetensors`, or an .xz of one, by its content, not its name. Raises CheckpointError."""
    data = _bytes(file)
    if data.startswith(PACKED):
        data = _unpacked(data, file)
    digest = hashlib.sha256(data).hexdigest()
    if _looks_like_safetensors(data, file):
        return _read_safetensors(file, data, digest)
    entries = _entries(_read_pickle(file, data), file)
    return Checkpoint(entries, len(data), CheckpointFacts(file, digest), given=_neighbour_config(file))


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write tensors and our metadata, whole or not at all; packed where the name ends with .xz."""
    tensors = {k: v.detach().contiguous().cpu() for k, v in state.items()}
    content = {**metadata, DIGEST: _weights_digest(safetensors.torch.save(tensors))}
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(content, sort_keys=True)})
    write_bytes(path, packed(data) if path.suffix == ".xz" else data)
    return path


def _weights_digest(data: bytes) -> str:
    """SHA-256 of the part of a safetensors file that holds the numbers."""
    return hashlib.sha256(memoryview(data)[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        data = read_untrusted(file, LARGEST_FILE)
    except IrregularError as error:
        remedy = "give the .pth or .safetensors file itself"
        raise CheckpointError("is not a file", file=file, remedy=remedy) from error
    except TooLargeError as error:
        raise CheckpointError(
            "the file is too large for a checkpoint", file=file, value=error.size, remedy="at most 4 GiB"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", file=file, remedy="check the path and its permissions"
        ) from error
    if not data:
        raise CheckpointError("the file is empty", file=file, remedy=DAMAGED)
    return data


def packed(data: bytes) -> bytes:
    """A checkpoint as .xz."""
    return lzma.compress(data, filters=[PACKING])


def _unpacked(data: bytes, file: Path) -> bytes:
    xz = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=UNPACKING)
    try:
        content = xz.decompress(data, max_length=LARGEST_EXPANSION * len(data))
    except lzma.LZMAError as error:
        raise _damaged(file, str(error)) from None
    if not xz.eof or xz.unused_data:
        why = "it ends early, or expands beyond what weights do" if not xz.eof else "something follows its end"
        raise _damaged(file, why)
    return content


def _looks_like_safetensors(data: bytes, file: Path) -> bool:
    return data[8:9] == b"{" or (file.suffix == ".safetensors" and not data.startswith(b"PK"))


def _read_safetensors(file: Path, data: bytes, digest: str) -> Checkpoint:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, LARGEST_HEADER):
        raise CheckpointError("the safetensors file is damaged or truncated", file=file, key="header", remedy=DAMAGED)
    try:
        header = json.loads(data[8 : 8 + length])
        state = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            "the safetensors file is damaged or truncated", file=file, key="header", value=error, remedy=DAMAGED
        ) from error
    try:
        metadata = json.loads(header["__metadata__"][METADATA_KEY])
        configuration = metadata["configuration"]
        if not isinstance(configuration, dict):
            raise TypeError("the configuration is not a mapping")
        facts = CheckpointFacts(
            file,
            digest,
            None if metadata.get("scale") is None else _positive(metadata["scale"]),
            tuple(map(_positive, metadata.get("wavelengths", ()))),
            str(metadata.get("about", "")),
            fills=_truth(metadata.get("fills", False)),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            "the file does not hold our configuration",
            file=file,
            key=f"__metadata__.{METADATA_KEY}",
            value=error,
            remedy="save it with export.networks.save_checkpoint, or give the original .pth",
        ) from error
    if DIGEST in metadata and metadata[DIGEST] != _weights_digest(data):
        raise CheckpointError(
            "the weights are not those that were saved: their SHA-256 differs", file=file, key=DIGEST, remedy=DAMAGED
        )
    return Checkpoint(tuple(state.items()), len(data), facts, str(metadata.get("architecture")), configuration)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r} is not a positive number")
    return float(value)


def _read_pickle(file: Path, data: bytes) -> Any:
    if data.startswith(b"PK"):
        _check_archive(file, data)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(Foreign, name) for name in Foreign.NAMES]):
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = _cause(str(error))
        if named := REFUSED.search(cause):
            raise CheckpointError(
                "the file holds more than tensors and was not executed",
                file=file,
                key=next(filter(None, named.groups())),
                remedy="save the bare weights with torch.save(model.state_dict(), path)",
            ) from None
        raise _damaged(file, cause) from None
    except MemoryError:
        raise _damaged(file, "it asks for more memory than there is") from None
    # torch.load lets whatever a damaged stream trips over escape: no narrower class covers it.
    except Exception as error:
        raise _damaged(file, str(error)) from None


def _cause(text: str) -> str:
    """What PyTorch's unpickler found, without the advice around it to load the file unsafely."""
    for lead in ("WeightsUnpickler error:", "trusted source."):
        text = text.partition(lead)[2] or text
    return text.strip().partition("\n")[0]


def _damaged(file: Path, text: str) -> CheckpointError:
    first = text.strip().splitlines()[0] if text.strip() else None
    return CheckpointError("the checkpoint is damaged or truncated", file=file, value=first, remedy=DAMAGED)


def _check_archive(file: Path, data: bytes) -> None:
    """Refuse an archive that expands, and one whose checksums are wrong: torch.load does not look at them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            expands = any(m.compress_type != zipfile.ZIP_STORED for m in members)
            if expands or sum(m.file_size for m in members) > len(data):
                raise CheckpointError(
                    "the archive would expand beyond its size",
                    file=file,
                    remedy="save it with torch.save, which does not compress",
                )
            # A member marked as a folder reads as zeros in torch.load.
            spoilt = next((m.filename for m in members if m.external_attr & DOS_FOLDER), None) or archive.testzip()
    except (zipfile.BadZipFile, ValueError, RuntimeError, OSError, EOFError) as error:
        raise _damaged(file, str(error)) from None
    if spoilt is not None:
        raise _damaged(file, f"{spoilt} is not as it was written")


def _entries(content: Any, file: Path) -> tuple[tuple[str, object], ...]:
    """(dotted path, leaf) of all that the dictionaries in it hold, each of which is looked into once."""
    entries: list[tuple[str, object]] = []
    empty: list[str] = []
    seen: set[int] = set()

    def collect(found: object, prefix: str, depth: int) -> None:
        seen.add(id(found))
        if not dict.__len__(found):
            empty.append(prefix[:-1])
        # Methods of the type, not of the instance: a pickle can put anything in their place.
        for key, value in dict.items(found):
            path = f"{prefix}{key if isinstance(key, (str, int)) else type(key).__name__}"
            if isinstance(value, dict) and isinstance(key, str) and len(key) <= LONGEST_KEY and depth < DEEPEST:
                if id(value) not in seen:
                    collect(value, f"{path}.", depth + 1)
            else:
                entries.append((path, value if isinstance(key, str) else key))
            if len(entries) > MOST_ENTRIES:
                remedy = "save the weights with torch.save(model.state_dict(), path)"
                raise CheckpointError(f"the file holds more than {MOST_ENTRIES} entries", file=file, remedy=remedy)

    if isinstance(content, dict):
        collect(content, "", 1)
    if not any(isinstance(value, Tensor) for _, value in entries):
        # Some trainers write such a file where an evaluation did not improve.
        bare = next((path for path in empty if not path or "state_dict" in path), None)
        raise CheckpointError(
            "the file holds no state dict" + ("" if bare is None else ": it is empty"),
            file=file,
            key=bare or None,
            value=type(content).__name__,
            remedy="save the weights with torch.save(model.state_dict(), path)"
            + ("" if bare is None else ", or take another checkpoint of that training"),
        )
    return tuple(entries)


def check_plain(state: Mapping[str, Tensor], size: int, file: Path) -> None:
    """Refuse tensors that are not arrays of numbers, and those that hold more elements than the file does."""
    total = 0
    for key, value in state.items():
        form = value.dtype, value.layout, value.device.type
        if value.is_nested or value.dtype not in PLAIN_TYPES or form[1:] != (torch.strided, "cpu"):
            raise CheckpointError(
                "not a plain array of numbers",
                file=file,
                key=key,
                value=", ".join(map(str, form)),
                remedy="give the float weights, not a quantised or sparse form",
            )
        total += value.numel() * value.element_size()
    if total > LARGEST_EXPANSION * size:
        raise CheckpointError(
            "the tensors would expand beyond the file's size",
            file=file,
            value=f"{total} bytes from {size}",
            remedy="save the weights with torch.save(model.state_dict(), path)",
        )


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(plain, names[:NAMED])) + more


def _neighbour_config(file: Path) -> dict[str, Any]:
    beside = file.with_name("config.json")
    if not beside.is_file():
        return {}
    try:
        if beside.stat().st_size > LARGEST_CONFIG:
            raise ValueError("larger than 1 MiB")
        content = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            "the options beside the checkpoint cannot be read",
            file=beside,
            value=error,
            remedy="mend it or move it away and give top_k",
        ) from error
    return content
