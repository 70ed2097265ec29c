"""The tests of what flies, under every Python that is found: `python -m tests.flight_pythons 3.10 3.12`.

A Python has two environments. The first is a bare flight install and pytest: `tests/flight` runs in it. The second sees
the first, and beside it what the tests of `runtime` are written with. Both are kept in a cache, by the hash of all that
asks for them; this tree is put in front of them anew every time. Exit 1 where a test fails, 3 where no such Python is
found.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.flight_bundles import build_all

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.12", "3.13")
EXTRAS = "cpu,openvino,stream,signing,photographs,video"
BARE = ("pytest", "setuptools")
TOOLS = ("hypothesis", "onnx", "rasterio", "spectral")
"""What makes graphs and cubes for the tests of `runtime`, and reads what it wrote."""
TESTS: Mapping[str, tuple[str, ...]] = {
    "runtime": tuple(
        f"tests/runtime/{name}"
        for name in (
            "stream", "test_bundle.py", "test_engines.py", "test_files_envi.py", "test_files_pairs.py",
            "test_files_writing.py", "test_line_file.py", "test_line_file_killed.py", "test_metrics.py",
            "test_radiometry.py", "test_radiometry_detectors.py", "test_radiometry_references.py", "test_restore.py",
            "test_restore_lines.py", "test_signing.py", "test_slots.py", "test_source_sim.py", "test_sources_files.py",
            "test_trust.py",
        )
    ),
    "flight": ("tests/flight",),
}  # fmt: skip
"""What runs in which environment; what takes longest first."""
SIDE_BY_SIDE = 2
NOT_FOUND = 3
ASKED_FOR = ("constraints.txt", "pyproject.toml")


@dataclass(frozen=True)
class Python:
    """A Python and its environments.

    Attributes:
        version: `3.12`.
        found: the interpreter.
        cache: folder of what is installed, shared by all trees; it tells what asked for it.
        own: folder of this tree's, which puts the tree in front of it.
    """

    version: str
    found: Path
    cache: Path
    own: Path


def find(version: str) -> Path | None:
    """`python3.12` on PATH, or the newest of pyenv's, if it runs and is of that version."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders = sorted(pyenv.glob(f"{version}.*"), key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.name)])
    candidates = [shutil.which(f"python{version}"), *(folder / "bin/python" for folder in reversed(folders))]
    code = f"import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != ({version.replace('.', ', ')}))"
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", code], capture_output=True, check=False).returncode == 0:
            return Path(candidate)
    return None


def located(version: str, cache: Path) -> Python | None:
    """A Python that is found, and where its environments are."""
    if (found := find(version)) is None:
        return None
    told = subprocess.run([found, "-c", "import sys; print(sys.version)"], stdout=-1, check=True).stdout
    asking = repr((EXTRAS, BARE, TOOLS)).encode() + b"".join((ROOT / name).read_bytes() for name in ASKED_FOR)
    digest = hashlib.sha256(told + asking).hexdigest()[:16]
    return Python(version, found, cache / f"python{version}-{digest}", ROOT / "build/pythons" / version)


def said(*command: object) -> None:
    """Run a command whose words nobody needs unless it fails."""
    done = subprocess.run([*map(str, command)], cwd=ROOT, text=True, stdout=-1, stderr=-2, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}")


def packages(environment: Path) -> Path:
    """Where an environment keeps its packages."""
    return next(environment.glob("lib/python3*/site-packages"))


def see(environment: Path, others: Iterable[Path]) -> None:
    """Let an environment find the packages of others, behind its own."""
    lines = (f"{packages(other)}\n" for other in others)
    (packages(environment) / "others.pth").write_text("".join(lines))


def fill(python: Python) -> None:
    """Install what is not there yet. What no `finished` file closes was cut off, and is filled again from nothing."""
    with (python.cache.parent / "pythons.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        flight, tools = python.cache / "flight", python.cache / "tools"
        if not (python.cache / "finished").exists():
            print(f"{python.version}: installing into {python.cache}", flush=True)
            shutil.rmtree(python.cache, ignore_errors=True)
            pip = ("-m", "pip", "install", "--quiet", "--constraint", "constraints.txt")
            said(python.found, "-m", "venv", flight)
            said(flight / "bin/python", *pip, *BARE, "--editable", f".[{EXTRAS}]")
            said(flight / "bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", "damp-deploy")
            said(python.found, "-m", "venv", "--without-pip", tools)
            see(tools, [flight])
            said(tools / "bin/python", *pip, *TOOLS)
        (python.cache / "finished").touch()


def put_in_front(python: Python) -> None:
    """Environments of this tree's own: the tree, and behind it what is installed."""
    shutil.rmtree(python.own, ignore_errors=True)
    for name, others in (("flight", ["flight"]), ("runtime", ["tools", "flight"])):
        environment = python.own / name
        said(python.found, "-m", "venv", "--without-pip", environment)
        see(environment, [python.cache / other for other in others])
        pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
        said(environment / "bin/python", *pip, "--editable", ".")


def run(python: Python, name: str, bundles: Path) -> tuple[bool, str, list[str]]:
    """Run the tests of an environment; whether they passed, how many, and sentences on what was left out."""
    environ = {**os.environ, "FLIGHT_BUNDLES": str(bundles), "OMP_NUM_THREADS": "1"}
    environ.pop("PYTHONPATH", None)
    start = time.monotonic()
    done = subprocess.run(
        [python.own / name / "bin/python", "-m", "pytest", "-p", "no:cacheprovider", *TESTS[name]],
        cwd=ROOT, env=environ, text=True, stdout=-1, stderr=-2, check=False,
    )  # fmt: skip
    if done.returncode:
        print(f"== Python {python.version}, tests of {name}", done.stdout, sep="\n", flush=True)
    last = next((line for line in reversed(done.stdout.splitlines()) if re.match(r"\d+ .* in [\d.]+s", line)), "")
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)\b", last))
    left_out = [f"  {name}: {line}" for line in done.stdout.splitlines() if " left out: " in line]
    return not done.returncode, f"{name} {counts or 'no test'} in {time.monotonic() - start:.0f} s", left_out


def main() -> None:
    """One line for every Python, and below it those on tests that were left out."""
    parser = argparse.ArgumentParser(prog="python -m tests.flight_pythons")
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"all where none is said: {' '.join(VERSIONS)}")
    parser.add_argument(
        "--bundles", type=Path, help="folder of tests.flight_bundles; they are built where none is said"
    )
    parser.add_argument("--cache", type=Path, default=ROOT / "build/pythons/cache", help="of what is installed")
    asked = parser.parse_args()
    pythons = {version: located(version, asked.cache.absolute()) for version in asked.versions}
    found = [python for python in pythons.values() if python is not None]
    if not found:
        print(f"none of {', '.join(asked.versions)} is found: nothing was tested")
        sys.exit(NOT_FOUND)
    asked.cache.mkdir(parents=True, exist_ok=True)
    for python in found:
        fill(python)
        put_in_front(python)
    bundles: Path = asked.bundles or ROOT / "build/flight"
    if asked.bundles is None:
        shutil.rmtree(bundles, ignore_errors=True)
        build_all(bundles)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        running = {(p, name): pool.submit(run, p, name, bundles.absolute()) for name in TESTS for p in found}
    for version, python in pythons.items():
        if python is None:
            print(f"{version}: not found")
            continue
        results = [running[python, name].result() for name in TESTS]
        word = "passed" if all(passed for passed, _, _ in results) else "FAILED"
        print(f"{version}: {'; '.join([word, *(told for _, told, _ in results)])}")
        for line in (line for _, _, lines in results for line in lines):
            print(line)
    sys.exit(not all(result.result()[0] for result in running.values()))


if __name__ == "__main__":
    main()
