"""Versions of TensorRT that are known to compute wrongly, with the report; `deploy finalize` refuses them."""

from dataclasses import dataclass

from runtime.errors import MachineError
from runtime.versions import within


@dataclass(frozen=True)
class KnownBad:
    """A report of wrong results.

    Attributes:
        kind: `tensorrt` or `tensorrt-rtx`.
        versions: bounds, such as `==10.13`.
        sms: compute capabilities that it concerns; empty for all.
        precisions: those that it concerns; empty for all.
        what: what was seen.
        source: where it is reported.
    """

    kind: str
    versions: str
    sms: tuple[str, ...]
    precisions: tuple[str, ...]
    what: str
    source: str


TABLE: tuple[KnownBad, ...] = (
    KnownBad(
        "tensorrt",
        "==10.13",
        (),
        ("fp16",),
        "FP16 engines differ from ONNX Runtime where 10.3 agreed",
        "https://github.com/NVIDIA/TensorRT/issues/4820",
    ),
    KnownBad(
        "tensorrt",
        "==10.13.3",
        ("8.7",),
        (),
        "it has no kernels for Orin",
        "release notes of TensorRT 10.13.3",
    ),
)
WATCHED: tuple[KnownBad, ...] = (
    KnownBad(
        "tensorrt",
        "==10.3",
        ("8.7",),
        (),
        "wrong results on Orin were reported and not explained; the golden frame decides",
        "https://github.com/NVIDIA/TensorRT/issues/4330",
    ),
    KnownBad(
        "tensorrt",
        ">=10.13,<10.15",
        ("11.0", "12.1"),
        (),
        "RT-DETR's boxes were wrong on Thor and GB10, and right with 10.15; the golden frame decides",
        "https://github.com/ultralytics/ultralytics/pull/23499",
    ),
    KnownBad(
        "tensorrt",
        "==10.16",
        ("12.0",),
        ("fp16",),
        "fused attention was wrong on Blackwell cards; the golden frame decides",
        "https://github.com/NVIDIA/TensorRT/issues/4837",
    ),
    KnownBad(
        "tensorrt",
        "==10.16",
        ("12.0",),
        ("int8",),
        "ResNet-152 lost its accuracy on Blackwell cards; the golden frame decides",
        "https://github.com/NVIDIA/TensorRT/issues/4780",
    ),
)
"""Reports of some networks only: told, never refused. The version may be the only one of a JetPack."""


def matching(table: tuple[KnownBad, ...], kind: str, version: str, sm: str, precision: str) -> list[KnownBad]:
    """The reports that concern this builder, GPU and precision."""
    return [
        bad
        for bad in table
        if bad.kind == kind
        and within(version, bad.versions)
        and (not bad.sms or sm in bad.sms)
        and (not bad.precisions or precision in bad.precisions)
    ]


def refuse_known_bad(kind: str, version: str, sm: str, precision: str) -> None:
    """Raise MachineError where a report says that this builder computes wrongly."""
    for bad in matching(TABLE, kind, version, sm, precision):
        raise MachineError(
            f"this version is known to be bad: {bad.what}",
            key=kind,
            value=version,
            remedy=f"see {bad.source}; install another version, or say --allow-known-bad and trust the golden frame",
        )
