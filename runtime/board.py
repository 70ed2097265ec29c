"""What a board tells of its clocks, power and temperature, read from the kernel and from NVIDIA's own tools.

Reading needs no privilege and no package, and takes a bounded time. What a board does not tell is None or left out. The
formats: Linux `Documentation/ABI/testing/sysfs-class-thermal` and `Documentation/admin-guide/pm/cpufreq.rst`.
"""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .board_tools import (
    COLDEST,
    HOTTEST,
    JETSON_CLOCKS,
    NVPMODEL,
    SMALL,
    SMI,
    TEGRASTATS,
    Gpu,
    Tell,
    listen,
    parse_jetson_clocks,
    parse_nvidia_smi,
    parse_nvpmodel,
)


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


def read_board(root: Path = Path("/"), tell: Tell = listen) -> Reading:
    """Read the board now; takes up to some seconds where NVIDIA's tools are installed.

    Args:
        root: where `sys` and `proc` lie.
        tell: runs a command.
    """
    line = tell(TEGRASTATS, True)
    tegra = parse_tegrastats(line) if line else None
    told = tell(NVPMODEL, False) if tegra else None
    shown = tell(JETSON_CLOCKS, False) if tegra else None
    smi = None if tegra else tell(SMI, False)
    tool = tegra or Reading(gpus=parse_nvidia_smi(smi) if smi else ())
    folders = _core_folders(root)
    governors = {text for folder in folders if (text := _text(folder / "scaling_governor"))}
    return replace(
        tool,
        cpu_mhz=core_mhz(root) or tool.cpu_mhz,
        cpu_min_mhz=min(_mhz(folders, "scaling_min_freq"), default=None),
        cpu_max_mhz=max(_mhz(folders, "scaling_max_freq"), default=None),
        governor=", ".join(sorted(governors)) or None,
        temperatures_c={**thermal_zones(root), **tool.temperatures_c},
        power_mode=parse_nvpmodel(told) if told else None,
        clocks_locked=parse_jetson_clocks(shown) if shown else None,
    )


def parse_tegrastats(line: str) -> Reading | None:
    """Read one line of `tegrastats`, as JetPack 5, 6 and 7 print it, power at this moment; None where it is none.

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
    integrated = Gpu(
        "integrated",
        clock_mhz=max((float(mhz) for mhz in gpu[1].split(",") if mhz), default=None) if gpu else None,
        memory_clock_mhz=float(memory[1]) if memory else None,
        memory_mib=float(memory_used[1]),
    )
    return Reading(
        cpu_mhz=tuple(float(mhz) for mhz in re.findall(r"%@(\d+)", cores[1])) if cores else (),
        temperatures_c={name: value for name, value in sensors.items() if COLDEST < value < HOTTEST},
        power_w={m[1]: int(m[2]) / 1000 for m in re.finditer(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW\b", line)},
        gpus=(integrated,),
    )


def board_model(root: Path = Path("/")) -> str | None:
    """Name of the board (device tree), of the machine (DMI) or of its CPU; None where none is told."""
    for place in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = _text(root / place)
        if text:
            return text
    found = re.search(r"^model name\s*:\s*(.+)$", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else None


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


def _core_folders(root: Path) -> list[Path]:
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")
    return sorted(folders, key=lambda folder: int(re.sub(r"\D", "", folder.parent.name)))


def _mhz(folders: Iterable[Path], name: str) -> list[float]:
    values = (_number(folder / name) for folder in folders)
    return [khz / 1000 for khz in values if khz is not None]


def core_mhz(root: Path) -> tuple[float, ...]:
    """Clock of every core that is on."""
    return tuple(_mhz(_core_folders(root), "scaling_cur_freq"))


def thermal_zones(root: Path) -> dict[str, float]:
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
