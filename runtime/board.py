"""What a board tells of its clocks, power and temperature, read from the kernel and from NVIDIA's own tools.

Reading needs no privilege and no package, and takes a bounded time. What a board does not tell is None or left out. The
formats: Linux `Documentation/ABI/testing/sysfs-class-thermal` and `Documentation/admin-guide/pm/cpufreq.rst`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
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
    parse_tegrastats,
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
    cores = _cpufreq(root)
    line = tell(TEGRASTATS, True)
    tegra = parse_tegrastats(line) if line else None
    told = tell(NVPMODEL, False) if tegra else None
    shown = tell(JETSON_CLOCKS, False) if tegra else None
    smi = None if tegra else tell(SMI, False)
    gpus = parse_nvidia_smi(smi) if smi else ()
    temperatures = thermal_zones(root)
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


def core_mhz(root: Path) -> tuple[float, ...]:
    """Clock of every core that is on."""
    return tuple(_mhz(_core_folders(root), "scaling_cur_freq"))


def _cpufreq(root: Path) -> _Cores:
    ordered = _core_folders(root)
    governors = {text for folder in ordered if (text := _text(folder / "scaling_governor"))}
    return _Cores(
        core_mhz(root),
        min(_mhz(ordered, "scaling_min_freq"), default=None),
        max(_mhz(ordered, "scaling_max_freq"), default=None),
        ", ".join(sorted(governors)) or None,
    )


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
