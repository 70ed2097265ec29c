"""The ranges of int8: what values a network has on calibration frames, behind experts that no frame chose too."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx

from calibration import equalising, modelopt, steering
from calibration import ranges as ranging
from calibration.dataset import CalibrationSet
from calibration.quantized import taken
from calibration.ranges import Feeds
from export.networks import Network
from export.onnx import Probe
from runtime.arrays import Float32
from runtime.durable import replacing, write_bytes

from .. import console

DETOURS = 3
"""Frames that are steered towards each expert that no frame chose by itself."""
RANGES, PEAKS, DIGEST = "ranges.json", "peaks.npz", "digest"


def evened(
    net: Network, graph: bytes, ranked: bytes, every: frozenset[str], frames: CalibrationSet, work: Path
) -> tuple[bytes, bytes]:
    """Both graphs with the channels of what their products take made alike, as the frames that choose ranges say."""
    file = work / PEAKS
    try:
        with np.load(file, allow_pickle=False) as held:
            peaks = {name: held[name] for name in held.files if name != DIGEST}
            fits = str(held[DIGEST]) == frames.digest() and peaks.keys() <= every
    # Not there yet, or damaged: made anew.
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        fits = False
    if not fits:
        inputs = taken(onnx.load_model_from_string(ranked), every)
        kept = work / "frames"
        with console.progress("comparing the network's channels"):
            peaks = equalising.peaks_of(ranked, inputs, lambda: (s.feeds for s in frames.samples(frames.fit, kept)))
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **peaks, **{DIGEST: np.array(frames.digest())})  # type: ignore[arg-type]
    return equalising.equalised(graph, peaks), equalising.equalised(ranked, peaks)


@dataclass(frozen=True)
class Experts:
    """How many frames chose each expert, [layers][experts], and how many were steered towards those that none chose."""

    coverage: list[list[int]]
    steered: int


def ranges_of(
    net: Network, graph: bytes, every: frozenset[str], frames: CalibrationSet, work: Path
) -> tuple[dict[str, dict[str, float]], Experts]:
    """{method: {product: range}}, and which experts were seen."""
    file = work / RANGES
    try:
        held = json.loads(file.read_bytes())
        if held["digest"] == frames.digest() and set(held["methods"]["minmax"]) == set(every):
            return held["methods"], Experts(**held["experts"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Not there yet, or damaged: made anew.
    signature = net.signature(*frames.size)
    routing, inputs = signature.routing, taken(onnx.load_model_from_string(graph), every)
    turned = None if routing is None else steering.steered(graph, routing.name)
    weights: list[Float32] = []
    kept = work / "frames"

    def given() -> Iterator[Probe]:
        for sample in frames.samples(frames.fit, kept):
            yield sample.feeds

    with console.progress("watching the network's values") as moved:
        beside = None if routing is None else (routing.name, weights.append)
        histograms = ranging.collect(graph, inputs, given, moved, beside=beside)
        detours = list(steering.detours(weights, DETOURS)) if turned else []

        def steered() -> Iterator[Feeds]:
            for place, order in detours:
                (sample,) = frames.samples(frames.fit[place : place + 1], kept)
                yield {**sample.feeds, **order}

        if turned is not None and detours:
            histograms = ranging.collect(turned, inputs, steered, moved, onto=histograms)
    by_method = {method: ranging.ranges(histograms, method) for method in ranging.METHODS}
    by_method |= _by_modelopt(graph, inputs, given, by_method["minmax"])
    chosen = (np.stack(weights) > 0).sum(axis=0).tolist() if weights else []
    experts = Experts(chosen, len(detours))
    idle = sum(count == 0 for layer in chosen for count in layer)
    if chosen:
        count = sum(map(len, chosen))
        console.say(
            f"experts    {count - idle} of {count} were chosen by some calibration frame"
            + (f"; {len(detours)} frames were steered towards the others" if detours else "")
        )
    if idle and not detours:
        console.warn(
            f"{idle} experts were chosen by no calibration frame, and the graph cannot be steered: give more cubes"
        )
    content = {"digest": frames.digest(), "methods": by_method, "experts": asdict(experts)}
    write_bytes(file, json.dumps(content).encode())
    return by_method, experts


def _by_modelopt(
    searched: bytes,
    inputs: Mapping[str, str],
    given: Callable[[], Iterator[Probe]],
    instead: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Ranges by NVIDIA's Model Optimizer where it is installed, ours where it leaves a product alone."""
    found: dict[str, dict[str, float]] = {}
    if not modelopt.available():
        return found
    for way in modelopt.WAYS:
        try:
            found[f"modelopt-{way}"] = {**instead, **modelopt.modelopt_ranges(searched, inputs, given(), way)}
        # Its exceptions share no base class but Exception.
        except Exception as error:  # noqa: PERF203
            console.warn(f"Model Optimizer's {way} is left out: {error}")
    return found
