"""What the stream costs beside radiometry, metrics and the engine: `python -m benchmarks.stream`.

A bundle of `damp-small` for frames of 31 bands x 256 lines x 256 samples is built, or `--bundle DIR` is taken. Its
frame is timed in parts. Then lines go through a whole stream, with a record and a restored cube on disk, whose engine
and metrics cost nothing: what processor time is left, of all threads together, is the stream's own. Last, an engine and
metrics that only wait: how far apart are frames where one is prepared while the engine has the one before? Bars: own
under 3 % of a frame's time, metrics under 15 % of the engine's, frames no farther apart than 1.2 times the longer of
engine and preparation. Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from runtime.bundle import load_bundle
from runtime.lines import Ended, Event, LineFormat, Taken
from runtime.prompts import Prompts
from runtime.radiometry import load_radiometry
from runtime.record.writer import open_line_writer
from runtime.signature import Signature
from runtime.sinks.restored_file import RestoredFile
from runtime.sources.contract import Source
from runtime.stream.frames import Frame
from runtime.stream.pipeline import NamedSink, Restoring, Stream, StreamOptions
from runtime.stream.pool import LinePool
from runtime.stream.preparing import RestorerFacts
from runtime.stream.report import FrameReport
from runtime.stream.restoring import FrameRestorer

from .timing import show

OWN_BAR, METRICS_BAR, APART_BAR = 0.03, 0.15, 1.2
WAITS = ((20, 15), (20, 5), (5, 15))
"""Milliseconds of engine and metrics."""
FRAMES, RUNS, WARM_UP = 60, 7, 2


class Memory(Source):
    """Lines from memory, over and over, as fast as they are taken or so many in a second.

    Attributes:
        waited: processor seconds of waiting for the next.
    """

    def __init__(self, format: LineFormat, count: int, rate: float | None = None) -> None:
        rng = np.random.default_rng(0)
        self.format, self._left = format, count
        self._lines = rng.integers(1, 4000, (64, *format.shape)).astype(format.dtype)
        self.live, self._rate = rate is not None, rate
        self._due, self.waited = time.monotonic(), 0.0

    def read(self, line: Any, timeout: float) -> Event:
        if not self._left:
            return Ended()
        if self._rate is not None:
            began = time.thread_time()
            self._due += 1 / self._rate
            time.sleep(max(0.0, self._due - time.monotonic()))
            self.waited += time.thread_time() - began
        self._left -= 1
        line[:] = self._lines[self._left % 64]
        return Taken(self._left, time.time_ns())

    def describe(self) -> dict[str, str]:
        return {"kind": "memory"}

    def close(self) -> None:
        """Nothing is held."""


class Unmeasured(Prompts):
    """Metrics that cost nothing."""

    def metrics(self, part: Any) -> Any:
        return np.zeros(len(self.names), np.float32)


def frame_parts(bundle: Any, facts: RestorerFacts, format: LineFormat) -> dict[str, float]:
    """Median seconds of a frame's parts, in the restorer that flies."""
    radiometry = load_radiometry({}, format)
    restorer = FrameRestorer(facts, format, bundle.engine.infer, radiometry)
    pool = LinePool(format, facts.frame[0])
    source = Memory(format, facts.frame[0])
    slots = []
    for number in range(facts.frame[0]):
        slot = pool.acquire(0)
        assert slot is not None
        source.read(slot.line, 0)
        slot.sequence = number
        slots.append(slot)
    frame = Frame(0, 0, 0, tuple(slots), 0, time.monotonic())
    found = [restorer.restore(frame)[1].seconds for _ in range(RUNS + WARM_UP)][WARM_UP:]
    return {part: statistics.median(row[part] for row in found) for part in found[0]}


def own_seconds(facts: RestorerFacts, format: LineFormat, frame_s: float | None = None) -> float:
    """Processor seconds per frame of everything but radiometry, metrics and the engine; median of several streams.

    Lines come as fast as they are taken, or a frame of them in `frame_s` seconds.
    """
    signature = facts.signature
    facts = replace(facts, prompts=Unmeasured(signature))
    side = {s.name: np.ones(s.shape, np.float32) for s in signature.side}

    def idle(feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {signature.restored.name: feeds[signature.measured.name], **side}

    found = []
    for _ in range(3):
        radiometry, spent = load_radiometry({}, format), [0.0]
        plain = radiometry.apply_line

        def timed(raw: Any, out: Any, plain: Any = plain, spent: list[float] = spent) -> None:
            began = time.thread_time()
            plain(raw, out)
            spent[0] += time.thread_time() - began

        radiometry.apply_line = timed  # type: ignore[method-assign]
        step = facts.frame[0] - facts.overlap
        source = Memory(format, FRAMES * step, None if frame_s is None else step / frame_s)
        with tempfile.TemporaryDirectory() as folder:
            record = open_line_writer(Path(folder), "lines", format)
            restored = open_line_writer(Path(folder), "restored", format)
            stream = Stream(
                source, Restoring(facts, idle, radiometry, format), record,
                [NamedSink("restored", RestoredFile(restored), "block", True)], StreamOptions(),
            )  # fmt: skip
            began = time.process_time()
            stream.run()
            found.append((time.process_time() - began - spent[0] - source.waited) / FRAMES)
    return statistics.median(found)


class Waiting(Prompts):
    """Metrics that wait, and use no processor."""

    def __init__(self, signature: Signature, seconds: float) -> None:
        super().__init__(signature)
        self._seconds = seconds

    def metrics(self, part: Any) -> Any:
        time.sleep(self._seconds)
        return np.zeros(len(self.names), np.float32)


def apart(signature: Signature, overlap: int, engine_s: float, metrics_s: float) -> tuple[float, float]:
    """Median seconds from a frame's engine to the next frame's, and of what is prepared before it."""
    facts = RestorerFacts(signature, overlap, Waiting(signature, metrics_s))
    side = {s.name: np.ones(s.shape, np.float32) for s in signature.side}
    begun: list[float] = []

    def waits(feeds: Mapping[str, Any]) -> dict[str, Any]:
        begun.append(time.monotonic())
        time.sleep(engine_s)
        return {signature.restored.name: feeds[signature.measured.name], **side}

    measured = signature.measured
    format = LineFormat(measured.bands, measured.samples, np.dtype(np.uint16), 4095.0, 4095.0)
    step = facts.frame[0] - overlap
    stream = Stream(Memory(format, 80 * step), Restoring(facts, waits, load_radiometry({}, format), format), None)
    prepared: list[float] = []
    seen = stream._seen

    def noted(report: FrameReport) -> None:
        prepared.append(report.seconds["radiometry"] + report.seconds["metrics"])
        seen(report)

    assert stream._restoration is not None
    stream._restoration._seen = noted
    stream.run()
    return statistics.median(b - a for a, b in itertools.pairwise(begun)), statistics.median(prepared)


def waits_table(signature: Signature, overlap: int) -> float:
    """Print it; returns the largest ratio of what frames are apart to the longer of engine and preparation."""
    grid = Table(title=f"engines that wait, a frame of {signature.measured.lines} x {signature.measured.samples}")
    for column in ("engine ms", "preparation ms", "frames apart ms", "of the longer", "of the sum"):
        grid.add_column(column, justify="right")
    worst = 0.0
    for engine_ms, metrics_ms in WAITS:
        found, prepared = apart(signature, overlap, engine_ms / 1e3, metrics_ms / 1e3)
        longer, both = max(engine_ms / 1e3, prepared), engine_ms / 1e3 + prepared
        worst = max(worst, found / longer)
        figures = (engine_ms, 1e3 * prepared, 1e3 * found, found / longer, found / both)
        grid.add_row(*(f"{figure:.2f}" for figure in figures))
    show(grid)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.bundle or built(Path(folder) / "bundle")
        with load_bundle(path, threads=arguments.threads) as bundle:
            m = bundle.manifest
            measured = m.signature.measured
            facts = RestorerFacts(m.signature, m.overlap, bundle.prompts)
            format = LineFormat(measured.bands, measured.samples, np.dtype(np.uint16), 4095.0, 4095.0)
            parts = frame_parts(bundle, facts, format)
    own = own_seconds(facts, format)
    whole = parts["radiometry"] + parts["metrics"] + parts["engine"] + own
    paced = own_seconds(facts, format, whole)
    shape = " x ".join(map(str, measured.shape[1:]))
    grid = Table(
        title=f"a frame of {shape}, {m.network.parameters / 1e6:.1f} M parameters, {arguments.threads} threads"
    )
    for column in ("part", "ms", "share of the frame"):
        grid.add_column(column, justify="left" if column == "part" else "right")
    own_rows = (("the stream's own", own), ("its own where lines come one by one", paced))
    for name, seconds in (*((n, parts[n]) for n in ("radiometry", "metrics", "engine")), *own_rows):
        grid.add_row(name, f"{1e3 * seconds:.1f}", f"{100 * seconds / whole:.2f} %")
    show(grid)
    own_share, metrics_share = own / whole, parts["metrics"] / parts["engine"]
    print(f"own {100 * own_share:.2f} % of a frame's time (bar {100 * OWN_BAR:.0f} %), metrics "
          f"{100 * metrics_share:.1f} % of the engine's (bar {100 * METRICS_BAR:.0f} %)")  # fmt: skip
    # Small frames: what waits is to be most of their time, on a slow computer too.
    signature = facts.signature
    small = {name: replace(getattr(signature, name), lines=64, samples=64) for name in ("measured", "restored")}
    worst = waits_table(replace(signature, **small), 8)
    print(f"frames at most {worst:.2f} times the longer of engine and preparation apart (bar {APART_BAR:g})")
    return int(own_share > OWN_BAR or metrics_share > METRICS_BAR or worst > APART_BAR)


def built(out: Path) -> Path:
    """A bundle of damp-small for this computer."""
    from deploy.building.build import build
    from deploy.config import Config, with_overrides

    build(with_overrides(Config(), {"model.checkpoint": "damp-small", "input.frame": "256x256"}), out)
    return out


if __name__ == "__main__":
    sys.exit(main())
