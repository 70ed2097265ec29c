"""The proof of a bundle where it runs: its golden frame becomes what was recorded, with every prompt."""

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from .arrays import Float32
from .bundle_files import Contents, digest, stored_array
from .engines import Engine
from .errors import BundleError, GateError
from .metrics import prompt_metrics
from .parity import apart, told
from .prompts import TOLERANCES, Prompts, beyond, differences
from .signature import Signature

EMBEDDING_TOLERANCE = 1e-3
"""Of a golden embedding, in float32: twenty times what other processors' sums leave."""


def golden_feeds(contents: Contents, signature: Signature, path: Path) -> dict[str, Float32]:
    """{tensor: array} that the golden frame goes in with."""
    return {name: _golden(contents, name, shape, path) for name, shape in signature.ports.inputs.items()}


def golden_difference(engine: Engine, contents: Contents, precision: str, path: Path) -> float:
    """Run the golden frame of a bundle through an engine, with every prompt; see `Bundle.self_test`.

    Args:
        engine: what is to be proved.
        contents, path: the bundle with its golden files, and its folder.
        precision: that it computes in; the bundle has a tolerance for it.
    """
    return max(
        proved(engine, contents, proof, precision, path).difference for proof in range(len(contents.manifest.proofs))
    )


@dataclass(frozen=True)
class Answer:
    """What an engine made of a golden frame.

    Attributes:
        difference: from what was recorded, see `parity.apart`.
        checksum: CRC-32 of all that it gave, by which two answers are compared bit for bit.
    """

    difference: float
    checksum: int


def proved(engine: Engine, contents: Contents, proof: int, precision: str, path: Path) -> Answer:
    """Run one of a bundle's proofs, by its place in `Manifest.proofs`; else as `golden_difference`.

    Raises:
        BundleError: a golden array is damaged, also where its bytes changed in memory since the bundle was opened.
        GateError: the difference is above the tolerance, or other experts were chosen.
        MachineError: the engine failed.
    """
    signature, output, true = engine.signature, engine.signature.restored.name, contents.manifest.golden.truth
    tolerance = contents.manifest.tolerances[precision]
    truth = None if true is None else _stored(contents, true, signature.restored.shape, path)
    files = contents.manifest.proofs[proof]
    arrays = {name: _stored(contents, file, signature.ports.shapes[name], path) for name, file in files.items()}
    made = engine.infer({name: arrays[name] for name in signature.ports.inputs})
    difference = apart(made[output], arrays[output], truth, precision)
    same = all(np.array_equal(made[side.name] > 0, arrays[side.name] > 0) for side in signature.side)
    if not (difference <= tolerance and same):
        raise GateError(
            "this machine does not restore the golden frame as it was recorded",
            file=path,
            key="golden",
            value=difference,
            remedy=f"at most {told(tolerance, true is not None, precision)} and the same experts; do not fly this "
            "bundle here",
        )
    checksum = 0
    for name in signature.ports.outputs:
        checksum = crc32(made[name].data, checksum)
    return Answer(difference, checksum)


def _stored(contents: Contents, file: str, shape: tuple[int, ...], path: Path) -> Float32:
    data = contents.files[file]
    if digest(data) != contents.manifest.files[file].sha256:
        raise BundleError("changed in memory since it was read", file=path / file, remedy="open the bundle again")
    return stored_array(data, path / file, shape)


def _golden(contents: Contents, name: str, shape: tuple[int, ...], path: Path) -> Float32:
    return _stored(contents, contents.manifest.golden.arrays[name], shape, path)


def check_golden_metrics(prompts: Prompts, contents: Contents, path: Path) -> None:
    """Hold the metrics that the graph computes of the golden frame against NumPy's, of this machine.

    The golden metrics are not always the frame's own: a build may take others that choose other experts.

    Args:
        prompts: what makes metrics; without a graph there is nothing to hold.
        contents, path: as of `golden_difference`.

    Raises:
        GateError: they differ by more than `TOLERANCES` allows.
    """
    measured, metrics = contents.manifest.signature.measured, contents.manifest.signature.metrics
    frame = _golden(contents, measured.name, measured.shape, path)[0]
    if metrics is None or prompts.by(frame.shape) == "host":
        return
    found = differences(prompts.metrics(frame), prompt_metrics(frame, metrics.of), metrics.of)
    for name, value in beyond(found).items():
        raise GateError(
            "this machine does not compute the golden frame's metrics as NumPy does",
            file=path,
            key=name,
            value=value,
            remedy=f"at most {TOLERANCES[name]:g}; do not fly this bundle here, or build it with --metrics host",
        )


def check_golden_embedding(prompts: Prompts, contents: Contents, path: Path) -> None:
    """Hold the embedding that the graph computes of the golden frame against the recorded one. Raises GateError."""
    signature = contents.manifest.signature
    if signature.embedding is None:
        return
    frame = _golden(contents, signature.measured.name, signature.measured.shape, path)[0]
    expected = _golden(contents, signature.embedding.name, signature.embedding.shape, path)
    off = float(np.abs(prompts.embedding(frame) - expected).max()) / (float(np.abs(expected).max()) or 1.0)
    if not off <= EMBEDDING_TOLERANCE:
        raise GateError(
            "this machine does not compute the golden frame's embedding as it was recorded",
            file=path,
            key=signature.embedding.name,
            value=off,
            remedy=f"at most {EMBEDDING_TOLERANCE:g} of its largest number; do not fly this bundle here",
        )
