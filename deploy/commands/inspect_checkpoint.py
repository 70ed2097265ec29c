"""`deploy inspect CHECKPOINT`: which architecture takes it, or what its keys are where none does."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from runtime.errors import CheckpointError
from runtime.signature import plane_text

from .. import console

if TYPE_CHECKING:
    from torch import Tensor

    from export.networks import CheckpointFacts

SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")
MODELS = Path(__file__).parents[2] / "export/models"
DEPTH, SHOWN = 2, 3
"""Keys are grouped by so many of their parts, and so many shapes of a group are shown."""


def is_checkpoint(path: Path) -> bool:
    """Whether this names a checkpoint rather than a bundle: a file by its suffix, or a packaged model."""
    packaged = path.name == str(path) and (MODELS / f"{path}.safetensors.xz").is_file()
    return not path.is_dir() and (path.name.removesuffix(".xz").endswith(SUFFIXES) or packaged)


def inspect_checkpoint(name: Path, options: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Show a checkpoint, loaded with these options; returns what `--json` prints.

    Raises:
        CheckpointError: it cannot be read, or no architecture takes it; `report` has its keys by prefix.
    """
    from export.networks import ARCHITECTURES, find_checkpoint, load_checkpoint
    from export.networks.places import find_weights
    from export.networks.reading import read_checkpoint

    file = find_checkpoint(name)
    content = read_checkpoint(file)
    state, facts = content.tensors, content.facts
    try:
        chosen = options.get("weights")
        found = find_weights(content, ARCHITECTURES, None if chosen is None else str(chosen))
        state, facts = found.state, found.facts
        net = load_checkpoint(file, **options)
    except CheckpointError as error:
        told = _told(state, facts)
        rows = [(key, str(of["count"]), ", ".join(map(str, of["shapes"]))) for key, of in told["keys"].items()]
        console.table(f"{len(state)} tensors", ("keys", "tensors", "first shapes"), rows)
        if facts.place:
            console.say(facts.place)
        error.report = told
        raise
    for doubt in facts.doubts:
        console.warn(doubt)
    signature, nm = net.smallest, net.wavelengths
    for label, text in (
        ("checkpoint", f"{file.name} (sha256 {facts.sha256[:12]})"),
        ("architecture", f"{net.architecture.id}: {net.architecture.about(net.module)}"),
        ("parameters", f"{net.parameters / 1e6:.2f} M in {len(state)} tensors"),
        *([("in the file", facts.place)] if facts.place else []),
        ("options", ", ".join(f"{key} {value}" for key, value in net.options.items()) or "none"),
        ("one frame" if net.architecture.size(net.module) else "least frame", plane_text(signature.measured)),
        ("restored", plane_text(signature.restored)),
        *((f"takes {p.name}", f"{p.kind} {p.of}, {list(p.shape)}") for p in signature.prompts),
        *((f"gives {s.name}", f"{s.kind}, {list(s.shape)}") for s in signature.side),
        ("wavelengths", f"{nm[0]:g} to {nm[-1]:g} nm" if nm else "not told"),
        ("scale", f"{facts.scale:g}" if facts.scale else "not told"),
        ("about", facts.about or "-"),
    ):
        console.say(f"{label:<13} {text}")
    return {
        **_told(state, facts),
        "wavelengths": list(nm),
        "architecture": net.architecture.id,
        "configuration": net.configuration,
        "options": net.options,
        "parameters": net.parameters,
        "signature": asdict(signature),
    }


def _told(state: Mapping[str, "Tensor"], facts: "CheckpointFacts") -> dict[str, Any]:
    """What a file says of itself, its keys by prefix, and where in it the weights are."""
    shapes = [(".".join(key.split(".")[:DEPTH]), list(state[key].shape)) for key in sorted(state)]
    keys = {prefix: [shape for _, shape in group] for prefix, group in groupby(shapes, lambda one: one[0])}
    return {
        "checkpoint": str(facts.file),
        "sha256": facts.sha256,
        "about": facts.about,
        "scale": facts.scale,
        "wavelengths": list(facts.wavelengths),
        "weights": facts.weights,
        "not_used": [*facts.rivals, *facts.beside],
        "keys": {prefix: {"count": len(of), "shapes": of[:SHOWN]} for prefix, of in keys.items()},
    }
