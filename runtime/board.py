"""What a board tells of its clocks, power and temperature, read from the kernel and from NVIDIA's own tools.

Reading needs no privilege and no package, and takes a bounded time. What a board does not tell is None or left out. The
formats: Linux `Documentation/ABI/testing/sysfs-class-thermal` and `Documentation/admin-guide/pm/cpufreq.rst`; the
"tegrastats Utility" and "Power and Performance" pages of NVIDIA's Jetson Linux Developer Guide (35 to 39, that is
JetPack 5 to 7); `nvidia-smi --help-query-gpu`.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

Tell = Callable[[Sequence[str], bool], "str | None"]
"""Runs a command: (arguments, whether its first line is enough) -> what it printed, None where it cannot say."""

SECONDS = 3.0
"""Longest wait for one command: a driver that hangs must not hang us."""
LARGEST = 1 << 16
SMALL = 4096
COLDEST, HOTTEST = -100.0, 250.0
"""Degrees Celsius; sensors that are powered down report numbers outside, such as -256."""
INTERVAL = 1.0
"""Seconds between two readings of a board that is watched; more when that takes hours."""
MOST_READINGS = 1 << 12
SMI_FIELDS = (
    "index", "name", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu",
    "memory.used",
)  # fmt: skip
SMI = ("nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits")
TEGRASTATS = ("tegrastats", "--interval", "500")
NVPMODEL = ("nvpmodel", "-q")
JETSON_CLOCKS = ("jetson_clocks", "--show")
TEGRASTATS_ON = ("tegrastats", "--interval", f"{1000 * INTERVAL:.0f}")
SMI_ON = (*SMI, f"--loop-ms={1000 * INTERVAL:.0f}")


@dataclass(frozen=True)
class Gpu:
    """A GPU: clocks in MHz, power in W, temperature in degrees Celsius; None is what it does not tell.

    Attributes:
        memory_mib: in use by all programs; of an integrated GPU the board's, which the CPU uses too.
        index: of `nvidia-smi`.
    """

    name: str
    clock_mhz: float | None = None
    max_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    memory_mib: float | None = None
    index: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class Tegrastats:
    """One line of `tegrastats`.

    Attributes:
        cpu_mhz: clock of every core that is on.
        gpu_mhz: highest clock of the GPU's clusters, None where it is not told.
        memory_mhz: clock of the memory controller.
        temperatures_c: by sensor.
        power_w: by rail, at this moment. Rails may be parts of each other: they are not to be added up.
        memory_mib: in use on the board, which CPU and GPU share.
    """

    cpu_mhz: tuple[float, ...]
    gpu_mhz: float | None
    memory_mhz: float | None
    temperatures_c: dict[str, float]
    power_w: dict[str, float]
    memory_mib: float | None = None

    def gpu(self) -> Gpu:
        """What the line tells of the board's own GPU."""
        return Gpu("integrated", clock_mhz=self.gpu_mhz, memory_clock_mhz=self.memory_mhz, memory_mib=self.memory_mib)


@dataclass(frozen=True)
class Reading:
    """A board at one moment.

    Attributes:
        cpu_mhz: clock of every core that is on; empty where it is not told.
        cpu_min_mhz, cpu_max_mhz: between these the kernel may move the clocks now.
        governor: what decides over the CPU's clocks, several in alphabetical order.
        temperatures_c: by sensor.
        power_w: by rail (Jetson). Rails may be parts of each other: they are not to be added up.
        gpus: all that are seen.
        power_mode: of `nvpmodel` (Jetson).
        clocks_locked: whether `jetson_clocks` holds CPU and GPU at one clock; None where it does not tell, which
            without root it does not.
    """

    cpu_mhz: tuple[float, ...] = ()
    cpu_min_mhz: float | None = None
    cpu_max_mhz: float | None = None
    governor: str | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_w: dict[str, float] = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    power_mode: str | None = None
    clocks_locked: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """The reading as plain values; lists in place of tuples."""
        return {**asdict(self), "cpu_mhz": list(self.cpu_mhz), "gpus": [asdict(gpu) for gpu in self.gpus]}


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


def listen(command: Sequence[str], first_line: bool = False, seconds: float = SECONDS) -> str | None:
    """What a command prints within `seconds`; it is ended then, and after its first line where that is enough.

    None where there is no such command, it failed, or it did not finish in time.
    """
    process = _start(command)
    if process is None:
        return None
    try:
        assert process.stdout is not None
        data, ended = _heard(process.stdout.fileno(), first_line, time.monotonic() + seconds)
        if first_line and b"\n" in data:
            return data.partition(b"\n")[0].decode("utf-8", "replace")
        if not ended or process.wait(1.0) != 0:
            return None
        return data.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """A command in a session of its own, its output in a pipe; None where there is no such command."""
    program = shutil.which(command[0])
    if program is None or os.name != "posix":
        return None
    try:
        return subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        # With what it started itself: some of the tools are shell scripts.
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    # One that is stuck in its driver cannot even be killed; it is not waited for.
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _heard(descriptor: int, first_line: bool, deadline: float) -> tuple[bytes, bool]:
    """(bytes, whether the other side has closed), read until a line, the end, the deadline or too much."""
    data = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while len(data) < LARGEST and not (first_line and b"\n" in data):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return data, False
            part = os.read(descriptor, SMALL)
            if not part:
                return data, True
            data += part
    return data, False


def read_board(root: Path = Path("/"), tell: Tell = listen) -> Reading:
    """Read the board now; takes up to some seconds where NVIDIA's tools are installed.

    Args:
        root: where `sys` and `proc` lie.
        tell: runs a command.
    """
    cores = _cpufreq(root)
    line = tell(TEGRASTATS, True)
    tegra = parse_tegrastats(line) if line else None
    told = tell(NVPMODEL, False) if tegra else None
    shown = tell(JETSON_CLOCKS, False) if tegra else None
    smi = None if tegra else tell(SMI, False)
    gpus = parse_nvidia_smi(smi) if smi else ()
    temperatures = _thermal_zones(root)
    if tegra is not None:
        temperatures = {**temperatures, **tegra.temperatures_c}
        gpus = (tegra.gpu(),)
    return Reading(
        cpu_mhz=cores.now or (tegra.cpu_mhz if tegra else ()),
        cpu_min_mhz=cores.least,
        cpu_max_mhz=cores.most,
        governor=cores.governor,
        temperatures_c=temperatures,
        power_w=tegra.power_w if tegra else {},
        gpus=gpus,
        power_mode=parse_nvpmodel(told) if told else None,
        clocks_locked=parse_jetson_clocks(shown) if shown else None,
    )


def board_model(root: Path = Path("/")) -> str | None:
    """Name of the board (device tree), of the machine (DMI) or of its CPU; None where none is told."""
    for place in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = _text(root / place)
        if text:
            return text
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else None


def parse_tegrastats(line: str) -> Tegrastats | None:
    """Read one line of `tegrastats`, as JetPack 5, 6 and 7 print it; None where it is none.

    Cores: `CPU [1%@729,off]`. GPU: `GR3D_FREQ 62%`, `62%@612`, `0%@[305]`, `12%@[1300,1300]` or `@[1000,1000]`.
    Temperatures: `gpu@50.218C`, `GPU@42.5C` or `gpu@47.6C/47.6C`. Rails: `VDD_IN 4654mW/4600mW`, now and on average.
    """
    memory_used = re.search(r"\bRAM (\d+)/\d+MB\b", line)
    if memory_used is None:
        return None
    cores = re.search(r"\bCPU \[([^\]]*)\]", line)
    gpu = re.search(r"\bGR3D_FREQ (?:\d+%)?@\[?([\d,]+)", line)
    memory = re.search(r"\bEMC_FREQ (?:\d+%)?@(\d+)", line)
    sensors = {m[1].lower(): float(m[2]) for m in re.finditer(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b", line)}
    return Tegrastats(
        cpu_mhz=tuple(float(mhz) for mhz in re.findall(r"%@(\d+)", cores[1])) if cores else (),
        gpu_mhz=max((float(mhz) for mhz in gpu[1].split(",") if mhz), default=None) if gpu else None,
        memory_mhz=float(memory[1]) if memory else None,
        temperatures_c={name: value for name, value in sensors.items() if COLDEST < value < HOTTEST},
        power_w={m[1]: int(m[2]) / 1000 for m in re.finditer(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW\b", line)},
        memory_mib=float(memory_used[1]),
    )


def parse_nvpmodel(text: str) -> str | None:
    """Power mode that `nvpmodel -q` tells, such as MAXN or 25W."""
    found = re.search(r"^.*\bNV Power Mode: *(\S.*?)\s*$", text, re.MULTILINE)
    return found[1] if found else None


def parse_jetson_clocks(text: str) -> bool | None:
    """Whether `jetson_clocks --show` tells of CPU cores and GPU that stay at one clock; None where it does not tell."""
    cores = re.findall(r"^cpu\d+: +Online=1 .*?\bMinFreq=(\d+) +MaxFreq=(\d+)", text, re.MULTILINE)
    gpu = re.findall(r"^GPU +MinFreq=(\d+) +MaxFreq=(\d+)", text, re.MULTILINE)
    if not cores or not gpu:
        return None
    return all(least == most for least, most in (*cores, *gpu))


def parse_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """GPUs in the answer to the query `SMI`, one a line; `[N/A]`, `[Not Supported]` and their like are None."""
    gpus = []
    for line in text.splitlines():
        index, _, rest = line.partition(",")
        name, *values = rest.rsplit(",", len(SMI_FIELDS) - 2)
        if len(values) == len(SMI_FIELDS) - 2 and re.fullmatch(r"\d{1,4}", index.strip()):
            numbers = [float(v) if re.fullmatch(r"\d+(\.\d+)?", v.strip()) else None for v in values]
            gpus.append(Gpu(name.strip(), *numbers, index=int(index)))
    return tuple(gpus)


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
        self._readings.append(Reading(cpu_mhz=_core_mhz(self._root), temperatures_c=_thermal_zones(self._root)))
        for line in self._heard():
            tegra = parse_tegrastats(line)
            if tegra is not None:
                self._readings.append(
                    Reading(
                        tegra.cpu_mhz,
                        temperatures_c=tegra.temperatures_c,
                        power_w=tegra.power_w,
                        gpus=(tegra.gpu(),),
                    )
                )
            else:
                self._readings.append(Reading(gpus=parse_nvidia_smi(line)))
        if len(self._readings) > MOST_READINGS:
            del self._readings[::2]
            self._interval *= 2

    def _heard(self) -> list[str]:
        """Whole lines that the tool has printed since it was last heard."""
        if self._tool is None or self._tool.stdout is None:
            return []
        data, _ = _heard(self._tool.stdout.fileno(), False, 0.0)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def __enter__(self) -> BoardWatch:
        for command in self._tools:
            tool = _start(command)
            if tool is None or tool.stdout is None:
                continue
            try:
                data, _ = _heard(tool.stdout.fileno(), True, time.monotonic() + SECONDS)
                if b"\n" in data:
                    self._tool, self._rest = tool, data.rpartition(b"\n")[2]
                    break
            finally:
                if self._tool is None:
                    _end(tool)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._tool is not None:
            _end(self._tool)


def peak_memory_mib(root: Path = Path("/")) -> float | None:
    """Most memory that this process has held at once (resident set, Linux `proc(5)`), in MiB; None where untold."""
    told = re.search(r"^VmHWM:\s*(\d+) kB$", _text(root / "proc/self/status") or "", re.MULTILINE)
    return int(told[1]) / 1024 if told else None


def forget_peak_memory(root: Path = Path("/")) -> bool:
    """Count the peak of this process's memory from now on; False where the system does not let us."""
    try:
        # Unbuffered: the kernel refuses when it is written to, not when it is closed.
        with (root / "proc/self/clear_refs").open("r+b", buffering=0) as file:
            file.write(b"5")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class _Cores:
    now: tuple[float, ...]
    least: float | None
    most: float | None
    governor: str | None


def _core_folders(root: Path) -> list[Path]:
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")
    return sorted(folders, key=lambda folder: int(re.sub(r"\D", "", folder.parent.name)))


def _mhz(folders: Iterable[Path], name: str) -> list[float]:
    values = (_number(folder / name) for folder in folders)
    return [khz / 1000 for khz in values if khz is not None]


def _core_mhz(root: Path) -> tuple[float, ...]:
    return tuple(_mhz(_core_folders(root), "scaling_cur_freq"))


def _cpufreq(root: Path) -> _Cores:
    ordered = _core_folders(root)
    governors = {text for folder in ordered if (text := _text(folder / "scaling_governor"))}
    return _Cores(
        _core_mhz(root),
        min(_mhz(ordered, "scaling_min_freq"), default=None),
        max(_mhz(ordered, "scaling_max_freq"), default=None),
        ", ".join(sorted(governors)) or None,
    )


def _thermal_zones(root: Path) -> dict[str, float]:
    """Degrees Celsius by kind of zone; the second of a kind is `kind 2`."""
    folders = (root / "sys/class/thermal").glob("thermal_zone[0-9]*")
    found: dict[str, float] = {}
    for zone in sorted(folders, key=lambda folder: int(re.sub(r"\D", "", folder.name))):
        millidegrees = _number(zone / "temp")
        if millidegrees is None or not COLDEST < millidegrees / 1000 < HOTTEST:
            continue
        # tegrastats says `cpu` for the zone that the kernel calls `cpu-thermal`.
        kind = (_text(zone / "type") or zone.name).removesuffix("-thermal")
        name, others = kind, 1
        while name in found:
            others += 1
            name = f"{kind} {others}"
        found[name] = millidegrees / 1000
    return found


def _text(path: Path) -> str | None:
    """Text of a small file of the kernel; None where it cannot be read: sensors may be off."""
    try:
        with path.open("rb") as file:
            return file.read(SMALL).decode("utf-8", "replace").strip("\0 \n\t") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and re.fullmatch(r"-?\d{1,18}", text) else None
