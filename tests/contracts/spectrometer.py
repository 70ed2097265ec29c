"""A virtual line-scan spectrometer in a network of its own, independent of what it tests.

The camera speaks GigE Vision on the loopback interface of a private network namespace, so that discovery reaches nobody
else. It lies beside the folder of real cubes, as `spectrometer/fake_spectrometer.py`. What talks to it must run in the
same namespace:

    with spectrometer(cube, folder=tmp_path) as camera:
        camera.call(read_some, "127.0.0.1", count=100)   # a function of a test's module, in a process of its own
        camera.run(sys.executable, "-m", "deploy", "stream", ...)

As a program it is the other end of `call`: `python -m tests.contracts.spectrometer MODULE FUNCTION ARGUMENTS`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DAMP_DATA") or ROOT.parent / "shared" / "data").resolve()
PROGRAMS = DATA.parent / "spectrometer"
ADDRESS = "127.0.0.1"
SERIAL = "HSI01"
START_SECONDS = 20

_STOCK = """
import ctypes, subprocess, sys
aravis = ctypes.CDLL("libaravis-0.8.so.0")
aravis.arv_gv_fake_camera_new.restype = ctypes.c_void_p
aravis.arv_gv_fake_camera_new.argtypes = [ctypes.c_char_p] * 2
camera = aravis.arv_gv_fake_camera_new(b"127.0.0.1", b"STOCK")
sys.exit(subprocess.run(["arv-tool-0.8", "-a", "127.0.0.1", "genicam"], timeout=10).returncode)
"""


@cache
def _why_not() -> str:
    """Why there can be no virtual spectrometer here; empty where there can."""
    if not (PROGRAMS / "fake_spectrometer.py").is_file():
        return "set DAMP_DATA: the virtual spectrometer lies beside the folder of real cubes"
    for program in ("unshare", "nsenter", "ip", "arv-tool-0.8"):
        if shutil.which(program) is None:
            return f"needs {program} (apt install util-linux iproute2 aravis-tools-cli)"
    try:
        import ctypes

        ctypes.CDLL("libaravis-0.8.so.0")
    except OSError:
        return "needs libaravis (apt install libaravis-0.8-0)"
    tried = subprocess.run(
        [*_unshare(), "ip", "link", "set", "lo", "up"], capture_output=True, text=True, timeout=20, check=False
    )
    return f"network namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


def _unshare() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-r", "-n"]


class Spectrometer:
    """The namespace, and the camera in it.

    Attributes:
        cube: what it serves, over and over: uint16 [lines, bands, samples].
        under: a command that starts the camera, with its arguments; may be set before it is switched on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.under: tuple[str, ...] = ()
        self._camera: subprocess.Popen[str] | None = None
        # It ends with this process, whatever happens: its input closes.
        self._holder = subprocess.Popen(
            [*_unshare(), "sh", "-c", "ip link set lo up && echo ready && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def command(self, *arguments: object) -> list[str]:
        """`arguments` as a command that runs inside the namespace."""
        user = [] if os.geteuid() == 0 else ["-U", "--preserve-credentials"]
        return ["nsenter", *user, "-n", "-t", str(self._holder.pid), "--", *map(str, arguments)]

    def popen(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Start a command inside; with the repository as its folder and text as its output, unless told otherwise."""
        plain: dict[str, Any] = {"cwd": ROOT, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
        return subprocess.Popen(self.command(*arguments), **{**plain, **options})

    def run(self, *arguments: object, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end and keep its output; as `popen` otherwise."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        with self.popen(*arguments, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start_call(
        self, function: Callable[..., Any], *arguments: Any, under: tuple[str, ...] = (), **more: Any
    ) -> subprocess.Popen[str]:
        """Start a function of an importable module inside, with arguments that JSON can carry.

        Args:
            under: a command that starts the process, with its arguments.
        """
        program = (*under, sys.executable, "-X", "faulthandler", "-m", __name__)
        said = json.dumps([arguments, more])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return self.popen(*program, function.__module__, function.__qualname__, said, **pipes)

    def finish_call(self, process: subprocess.Popen[str], timeout: float = 60) -> Any:
        """What the function returned, through JSON."""
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == 0, f"rc {process.returncode}\n{out}\n{err}"
        return json.loads(out.splitlines()[-1])

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = 60, **more: Any) -> Any:
        """Run a function inside, in a process of its own."""
        return self.finish_call(self.start_call(function, *arguments, **more), timeout)

    def start(self, cube: NDArray[np.uint16], *, lost_per_thousand: float = 0, serial: str = SERIAL) -> None:
        """Switch the camera on; it serves `cube`, [lines, bands, samples], from its first line."""
        assert self._camera is None, "it is on already"
        self.cube, self._lost, self._serial = cube, lost_per_thousand, serial
        _, bands, samples = cube.shape
        description, served = self._folder / "camera.xml", self._folder / "served.npy"
        np.save(served, cube)
        made = subprocess.run(
            [sys.executable, PROGRAMS / "mkxml.py", self.stock(), description, str(samples), str(bands)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        self.serve(PROGRAMS / "fake_spectrometer.py", description, served, lost_per_thousand, serial)

    def stock(self) -> Path:
        """The description of the camera that Aravis ships."""
        base = self._folder / "base.xml"
        if not base.exists():
            stock = self.run(sys.executable, "-c", _STOCK)
            assert stock.returncode == 0, stock.stderr
            base.write_text(stock.stdout)
        return base

    def serve(self, *program: object) -> None:
        """Switch a camera on that is a Python program with its arguments."""
        self._camera = self.popen(
            *self.under, sys.executable, *program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._camera.stdout is not None
        first = self._camera.stdout.readline()
        assert first.startswith("serving"), first

    def kill(self) -> None:
        """Switch it off at once (SIGKILL)."""
        if self._camera is not None:
            self._camera.kill()
            self._camera.communicate(timeout=START_SECONDS)
            self._camera = None

    def switch_off(self) -> float:
        """Kill it; returns its processor time in seconds."""
        assert self._camera is not None
        # user and system time are the 14th and the 15th field (proc(5)); the name before them may hold spaces.
        fields = Path(f"/proc/{self._camera.pid}/stat").read_text().rpartition(")")[2].split()
        self.kill()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def restart(self) -> None:
        """Off, and on again with the same cube."""
        self.kill()
        self.start(self.cube, lost_per_thousand=self._lost, serial=self._serial)

    def pause(self) -> None:
        """Let it hang (SIGSTOP): it stays there but neither sends nor answers."""
        assert self._camera is not None
        self._camera.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._camera is not None
        self._camera.send_signal(signal.SIGCONT)

    def close(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.kill()
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(timeout=START_SECONDS)
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@contextmanager
def spectrometer(
    cube: NDArray[np.uint16], *, folder: Path, lost_per_thousand: float = 0, serial: str = SERIAL
) -> Iterator[Spectrometer]:
    """A camera that serves `cube`, [lines, bands, samples]; the test is left out where there can be none.

    Args:
        folder: for its files.
        lost_per_thousand: packets that get lost on their way.
    """
    with network(folder) as camera:
        camera.start(cube, lost_per_thousand=lost_per_thousand, serial=serial)
        yield camera


@contextmanager
def network(folder: Path) -> Iterator[Spectrometer]:
    """A network with no camera in it yet; the test is left out where there can be none."""
    if reason := _why_not():
        pytest.skip(reason)
    camera = Spectrometer(folder)
    try:
        yield camera
    finally:
        camera.close()


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Return when it is so; fail when it takes too long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


if __name__ == "__main__":
    _module, _function, _said = sys.argv[1:]
    _arguments, _more = json.loads(_said)
    print(json.dumps(getattr(import_module(_module), _function)(*_arguments, **_more)), flush=True)
