"""NVIDIA's tools for its boards and cards: run for a bounded time, and what they print read.

The formats: the "tegrastats Utility" and "Power and Performance" pages of NVIDIA's Jetson Linux Developer Guide (35 to
39, that is JetPack 5 to 7); `nvidia-smi --help-query-gpu`.
"""

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

Tell = Callable[[Sequence[str], bool], "str | None"]
"""Runs a command: (arguments, whether its first line is enough) -> what it printed, None where it cannot say."""

SECONDS = 3.0
"""Longest wait for one command: a driver that hangs must not hang us."""
LARGEST = 1 << 16
SMALL = 4096
COLDEST, HOTTEST = -100.0, 250.0
"""Degrees Celsius; sensors that are powered down report numbers outside, such as -256."""
SMI_FIELDS = (
    "index", "name", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu",
    "memory.used",
)  # fmt: skip
SMI = ("nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits")
TEGRASTATS = ("tegrastats", "--interval", "500")
NVPMODEL = ("nvpmodel", "-q")
JETSON_CLOCKS = ("jetson_clocks", "--show")


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


def listen(command: Sequence[str], first_line: bool = False, seconds: float = SECONDS) -> str | None:
    """What a command prints within `seconds`; it is ended then, and after its first line where that is enough.

    None where there is no such command, it failed, or it did not finish in time.
    """
    process = start_tool(command)
    if process is None:
        return None
    try:
        assert process.stdout is not None
        data, ended = heard(process.stdout.fileno(), first_line, time.monotonic() + seconds)
        if first_line and b"\n" in data:
            return data.partition(b"\n")[0].decode("utf-8", "replace")
        if not ended or process.wait(1.0) != 0:
            return None
        return data.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_tool(process)


def start_tool(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
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


def end_tool(process: subprocess.Popen[bytes]) -> None:
    """Kill a command of `start_tool` that has not ended, and close its pipe."""
    if process.returncode is None:
        # With what it started itself: some of the tools are shell scripts.
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    # One that is stuck in its driver cannot even be killed; it is not waited for.
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def heard(descriptor: int, first_line: bool, deadline: float) -> tuple[bytes, bool]:
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
