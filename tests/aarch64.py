"""The flight install run as aarch64, emulated: `python -m tests.aarch64` runs tests/flight there.

QEMU runs single programs of another processor: no kernel, no container, no rights are needed, and files and processes
are this machine's own. Debian's Python for arm64 comes by apt, from where the packages of this machine come, and beside
it the wheels that JetPack 6 would take. What a program starts is emulated too: its `sys.executable` is a script that
calls QEMU.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.flight_wheels import COMPUTERS, CONSTRAINTS, Computer, flight_install

TREE = Path(__file__).parents[1]
CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "damp-deploy-ci"
"""Where `.ci/run` keeps its own; it removes there what nobody used for a week."""
BUNDLES = TREE / "build" / "aarch64"
EXTRAS = ("cpu", "openvino", "signing", "stream")
DEBS = ("python3", "libstdc++6")
CPU = "cortex-a76"
"""What QEMU knows that is nearest to the Cortex-A78AE of a Jetson Orin: NEON with FP16 and dot products, no SVE."""
ASKS = (Path(__file__), Path(__file__).with_name("flight_wheels.py"), CONSTRAINTS, TREE / "pyproject.toml")
"""What the contents of a root follow from."""


def emulator() -> str:
    """Path of QEMU's emulator of single programs."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None:
        sys.exit("qemu-aarch64-static is missing: apt-get install qemu-user-static")
    return found


def unpack_python(root: Path) -> None:
    """Debian's Python for arm64 and the libraries it needs, from where apt finds this machine's own packages.

    apt keeps its state in a folder of ours, so that the machine's own stays as it is and nobody need be root.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        (state / "lists" / "partial").mkdir(parents=True)
        (state / "archives" / "partial").mkdir(parents=True)
        (state / "status").touch()
        settings = {
            "APT::Architecture": "arm64",
            "APT::Architectures::": "arm64",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": state,
            "Debug::NoLocking": "true",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        subprocess.run(["apt-get", "-qq", *options, "update"], check=True)
        subprocess.run(["apt-get", "-qq", *options, "--yes", "--download-only", "install", *DEBS], check=True)
        for deb in sorted((state / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", deb, root], check=True)


def write_launcher(root: Path) -> Path:
    """The script that is `sys.executable` there. It finds its root by its own path, so that the root may be moved."""
    python = (root / "usr" / "bin" / "python3").readlink()
    launcher = root / "usr" / "bin" / "python"
    launcher.write_text(
        "#!/bin/sh\n"
        "root=${0%/usr/bin/*}\n"
        f'exec {emulator()} -cpu {CPU} -L "$root" -0 "$0" "$root/usr/bin/{python}" "$@"\n'
    )
    launcher.chmod(0o755)
    return launcher


def unpack_wheels(root: Path, python: Path) -> None:
    """The flight install and pytest, of the versions that JetPack 6's Python takes."""
    ask = "import os, sys; print('%d.%d' % sys.version_info[:2], os.confstr('CS_GNU_LIBC_VERSION').rpartition('.')[2])"
    version, glibc = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    computer = Computer("emulated", version, int(glibc), pinned_for=COMPUTERS[0].python)
    installs = flight_install(computer, EXTRAS, besides=("pytest", "pytest-xdist"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:"]
    command += ["--python-version", version, "--implementation", "cp", "--disable-pip-version-check"]
    for tag in computer.platforms:
        command += ["--platform", tag]
    command += ["--target", str(root / "usr" / "lib" / "python3" / "dist-packages"), "--upgrade"]
    exact = [f"{found['metadata']['name']}=={found['metadata']['version']}" for found in installs]
    subprocess.run([*command, *exact], check=True)


def kept_python() -> Path:
    """Python of the root that is kept for what this tree asks for; the root is made where there is none."""
    release = platform.freedesktop_os_release()
    asked = hashlib.sha256(" ".join([release["ID"], release.get("VERSION_ID", ""), emulator()]).encode())
    for path in ASKS:
        asked.update(path.read_bytes())
    root = CACHES / f"aarch64-{asked.hexdigest()[:16]}"
    CACHES.mkdir(parents=True, exist_ok=True)
    with (CACHES / "aarch64.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "finished").exists():
            print(f"making {root}", flush=True)
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            unpack_python(root)
            unpack_wheels(root, write_launcher(root))
            os.sync()
        (root / "finished").touch()
    return root / "usr" / "bin" / "python"


def main() -> None:
    """Make bundles of the packaged models here and run the flight tests there; the exit status of the tests."""
    python = kept_python()
    shutil.rmtree(BUNDLES, ignore_errors=True)
    start = time.monotonic()
    built = subprocess.run(
        [sys.executable, "-m", "tests.flight_bundles", BUNDLES], cwd=TREE, check=False, capture_output=True, text=True
    )
    if built.returncode:
        sys.exit(built.stdout + built.stderr)
    print(f"bundles, built here: {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    there = {**os.environ, "FLIGHT_BUNDLES": str(BUNDLES), "PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1"}
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "worksteal", "tests/flight", *sys.argv[1:]]
    done = subprocess.run([python, *words], cwd=TREE, env=there, check=False)
    print(f"flown, emulated: {time.monotonic() - start:.0f} s")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
