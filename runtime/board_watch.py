"""A board while something is measured: read again and again, from a thread."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread
from typing import Any

from .board import Reading, core_mhz, parse_tegrastats, thermal_zones
from .board_tools import SECONDS, SMI, Gpu, end_tool, heard, parse_nvidia_smi, start_tool

INTERVAL = 1.0
"""Seconds between two readings of a board that is watched; more when that takes hours."""
MOST_READINGS = 1 << 12
TEGRASTATS_ON = ("tegrastats", "--interval", f"{1000 * INTERVAL:.0f}")
SMI_ON = (*SMI, f"--loop-ms={1000 * INTERVAL:.0f}")


@dataclass(frozen=True)
class Spread:
    """Least, middle and most of what a figure was over a while."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Watched:
    """A board over a while; what it did not tell in that time is None or left out.

    Attributes:
        samples: how often the kernel's figures were read.
        cpu_mhz: over all cores that are on.
        temperatures_c: by sensor.
        power_w: by rail (Jetson).
        gpus: figure of `Gpu` -> its spread, by index.
    """

    samples: int = 0
    cpu_mhz: Spread | None = None
    temperatures_c: dict[str, Spread] = field(default_factory=dict)
    power_w: dict[str, Spread] = field(default_factory=dict)
    gpus: dict[int, dict[str, Spread]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The spreads as plain values."""
        told = asdict(self)
        return {**told, "gpus": [{"index": index, **figures} for index, figures in told["gpus"].items()]}


def watched(readings: Sequence[Reading], samples: int) -> Watched:
    """The spreads of what several readings tell."""
    gpus = sorted({gpu.index for reading in readings for gpu in reading.gpus})
    cores = [mhz for reading in readings for mhz in reading.cpu_mhz]
    return Watched(
        samples,
        _spread(cores) if cores else None,
        _spreads(reading.temperatures_c for reading in readings),
        _spreads(reading.power_w for reading in readings),
        {
            index: _spreads(_figures(gpu) for reading in readings for gpu in reading.gpus if gpu.index == index)
            for index in gpus
        },
    )


def _figures(gpu: Gpu) -> dict[str, float]:
    moving = ("clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "memory_mib")
    return {name: value for name in moving if (value := getattr(gpu, name)) is not None}


def _spreads(told: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    values: dict[str, list[float]] = {}
    for one in told:
        for name, value in one.items():
            values.setdefault(name, []).append(value)
    return {name: _spread(found) for name, found in values.items()}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), float(median(values)), max(values))


class BoardWatch:
    """Reads the board about once a second, from a thread, while something is measured. A context manager.

    A reading takes a few milliseconds, for the kernel's figures. NVIDIA's tool runs all the while and prints by itself;
    it is heard once before the context begins, since its start is what would disturb.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        tools: Sequence[Sequence[str]] = (TEGRASTATS_ON, SMI_ON),
        interval: float = INTERVAL,
    ) -> None:
        """Watch nothing yet.

        Args:
            root: where `sys` lies.
            tools: what prints lines again and again; the first that is there and prints in time is used.
            interval: seconds between two readings.
        """
        self._root, self._tools, self._interval = root, tools, interval
        self._tool: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._readings: list[Reading] = []
        self._samples = 0
        self._lock, self._ended = Lock(), Event()
        self._thread = Thread(target=self._run, name="board", daemon=True)

    def restart(self) -> None:
        """Forget what was read: what is measured begins now."""
        with self._lock:
            self._heard()
            self._readings.clear()
            self._samples = 0

    def watched(self) -> Watched:
        """What was read since the beginning, or since `restart`, and now once more."""
        with self._lock:
            self._sample()
            return watched(self._readings, self._samples)

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        self._samples += 1
        self._readings.append(Reading(cpu_mhz=core_mhz(self._root), temperatures_c=thermal_zones(self._root)))
        for line in self._heard():
            self._readings.append(parse_tegrastats(line) or Reading(gpus=parse_nvidia_smi(line)))
        if len(self._readings) > MOST_READINGS:
            del self._readings[::2]
            self._interval *= 2

    def _heard(self) -> list[str]:
        """Whole lines that the tool has printed since it was last heard."""
        if self._tool is None or self._tool.stdout is None:
            return []
        data, _ = heard(self._tool.stdout.fileno(), False, 0.0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def __enter__(self) -> BoardWatch:
        for command in self._tools:
            tool = start_tool(command)
            if tool is None or tool.stdout is None:
                continue
            try:
                data, _ = heard(tool.stdout.fileno(), True, time.monotonic() + SECONDS)
                if b"\n" in data:
                    self._tool, self._rest = tool, data.rpartition(b"\n")[2]
                    break
            finally:
                if self._tool is None:
                    end_tool(tool)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._tool is not None:
            end_tool(self._tool)
