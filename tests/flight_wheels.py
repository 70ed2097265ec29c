"""Do the flight computers find wheels for the flight install? `python -m tests.flight_wheels` resolves it for them.

pip judges markers by the Python that runs it, whatever --python-version says. So markers are judged here, for the
flight computer, and pip is asked again until nothing that is needed there is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DISTRIBUTION = "damp-deploy"
EXTRAS = ("cpu", "photographs", "signing", "stream", "tensorrt", "video")
FROM_JETPACK = {"tensorrt"}
"""What JetPack brings, and pip is not asked for."""
SOURCES = {"pyvips": "cffi>=1"}
"""Of pure Python and published as source alone, with what it needs: pip makes the wheel on the flight computer."""
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


@dataclass(frozen=True)
class Computer:
    """A flight computer as pip sees it: its Python and its C library (glibc 2.`glibc`).

    `pinned_for` is the Python whose versions of constraints.txt it takes, if not its own.
    """

    name: str
    python: str
    glibc: int
    machine: str = "aarch64"
    pinned_for: str = ""

    def wants(self, requirement: Requirement, extra: str = "") -> bool:
        """True if the requirement's marker holds there."""
        if requirement.marker is None:
            return True
        return requirement.marker.evaluate(
            {
                "python_version": self.python,
                "python_full_version": f"{self.python}.0",
                "implementation_version": f"{self.python}.0",
                "platform_machine": self.machine,
                "platform_system": "Linux",
                "sys_platform": "linux",
                "os_name": "posix",
                "extra": extra,
            }
        )

    def pins(self) -> list[str]:
        """The lines of constraints.txt that hold there."""
        pinned = replace(self, python=self.pinned_for or self.python)
        lines = [
            Requirement(line) for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")
        ]
        return [bare(pin) for pin in lines if pinned.wants(pin)]

    @property
    def platforms(self) -> list[str]:
        """Platform tags of the wheels that it takes."""
        return [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, 16, -1)] + [
            f"manylinux2014_{self.machine}"
        ]


COMPUTERS = (
    Computer("Jetson Orin, JetPack 6", "3.10", 35),
    Computer("Jetson Orin or Thor, JetPack 7", "3.12", 39),
)


def bare(requirement: Requirement) -> str:
    """The requirement without its marker."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def resolve(computer: Computer, wanted: list[str], constraints: Path) -> list[dict[str, Any]]:
    """What pip would install there, wheels only.

    Raises:
        subprocess.CalledProcessError: there is no such set of wheels; pip has said why on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        command += ["--target", folder, "--report", "-", "--only-binary", ":all:", "--constraint", str(constraints)]
        command += ["--python-version", computer.python, "--implementation", "cp"]
        for platform in computer.platforms:
            command += ["--platform", platform]
        done = subprocess.run([*command, *wanted], stdout=subprocess.PIPE, check=True, text=True)
    installs: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return installs


def flight_install(
    computer: Computer, extras: Collection[str] = EXTRAS, besides: Collection[str] = ()
) -> list[dict[str, Any]]:
    """What the flight install with these extras, and what is `besides`, brings to a computer, as pip reports it."""
    own = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    asked = {bare(item) for item in own if any(computer.wants(item, extra) for extra in ("", *extras))} | {*besides}
    wanted = {SOURCES.get(Requirement(item).name, item) for item in asked if Requirement(item).name not in FROM_JETPACK}
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{pin}\n" for pin in computer.pins()))
        while True:
            installs = resolve(computer, sorted(wanted), constraints)
            there = {canonicalize_name(install["metadata"]["name"]) for install in installs}
            missing = {
                bare(need)
                for install in installs
                for need in map(Requirement, install["metadata"].get("requires_dist", []))
                for extra in ["", *install.get("requested_extras", [])]
                if computer.wants(need, extra) and canonicalize_name(need.name) not in there
            }
            if not missing:
                return installs
            wanted |= missing


def main() -> None:
    """Print the wheels of every computer; pip's exit code where one is missing."""
    for computer in COMPUTERS:
        print(f"{computer.name}: Python {computer.python}, {computer.machine}, glibc 2.{computer.glibc}")
        try:
            installs = flight_install(computer)
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)
        for wheel in sorted(install["download_info"]["url"].rpartition("/")[2] for install in installs):
            print(f"  {wheel}")


if __name__ == "__main__":
    main()
