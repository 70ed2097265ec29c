"""Which JetPack a Jetson stands on, read from L4T's own file and from the records of dpkg."""

import re
from dataclasses import dataclass
from pathlib import Path

RELEASE = "etc/nv_tegra_release"
PACKAGES = "var/lib/dpkg/status"
MOST = 1 << 26
"""Bytes of the records of dpkg that are read; of a full desktop they are some 5 MB."""
STACKS = {
    "35": ("5", "8.5", "3.8"),
    "36": ("6", None, "3.10"),
    "36.3": ("6.0", None, "3.10"),
    "36.4": ("6.2", "10.3", "3.10"),
    "36.4.0": ("6.1", "10.3", "3.10"),
    "38": ("7", "10.13", "3.12"),
    "38.2": ("7.0", "10.13", "3.12"),
    "38.4": ("7.1", "10.13", "3.12"),
    "39.2": ("7.2", "10.16", "3.12"),
}
"""Release of L4T, the longest that fits -> (JetPack, its TensorRT, its Python), as NVIDIA and others' tables tell."""


@dataclass(frozen=True)
class JetPack:
    """The software that NVIDIA ships for a Jetson; None is what nothing here tells.

    Attributes:
        l4t: release of Linux for Tegra, such as `36.4.3`.
        version: of JetPack, such as `6.2`: of its package, or else the one that came with this L4T.
        package: version of `nvidia-jetpack` as dpkg has it, such as `6.2+b77`; None where it is not installed.
        tensorrt, python: what came with this L4T, such as `10.3` and `3.10`.
    """

    l4t: str | None = None
    version: str | None = None
    package: str | None = None
    tensorrt: str | None = None
    python: str | None = None


def read_jetpack(root: Path = Path("/")) -> JetPack | None:
    """The JetPack of this computer; None where it is no Jetson.

    Args:
        root: where `etc` and `var` lie.
    """
    packages = _packages(root / PACKAGES)
    package, core = packages.get("nvidia-jetpack"), packages.get("nvidia-l4t-core", "")
    l4t = _release(root / RELEASE) or _start(core)
    if l4t is None and package is None:
        return None
    parts = (l4t or "").split(".")
    longest = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    version, tensorrt, python = next((STACKS[name] for name in longest if name in STACKS), (None, None, None))
    return JetPack(l4t, _start(package or "") or version, package, tensorrt, python)


def _release(file: Path) -> str | None:
    """`# R36 (release), REVISION: 4.3, GCID: ...` as 36.4.3."""
    found = re.match(r"# R(\d{1,3}) \(release\), REVISION: (\d{1,3}(?:\.\d{1,3})?)\b", _text(file, 4096))
    return f"{found[1]}.{found[2]}" if found else None


def _packages(file: Path) -> dict[str, str]:
    """Name -> version of NVIDIA's installed packages (deb-control(5), dpkg-query(1))."""
    found = {}
    for told in re.finditer(r"^Package: (nvidia-(?:jetpack|l4t-core))\n((?:.+\n)*)", _text(file, MOST), re.MULTILINE):
        version = re.search(r"^Version: ([\w.+:~-]{1,80})$", told[2], re.MULTILINE)
        if version and re.search(r"^Status: \S+ ok installed$", told[2], re.MULTILINE):
            found[told[1]] = version[1]
    return found


def _start(version: str) -> str | None:
    """The dotted numbers at the start of a package's version."""
    found = re.match(r"\d{1,3}(?:\.\d{1,3}){1,2}", version)
    return found[0] if found else None


def _text(file: Path, most: int) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(most).decode("utf-8", "replace")
    except OSError:
        return ""
