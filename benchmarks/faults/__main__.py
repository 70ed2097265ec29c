"""What do faults do, and what finds them? `python -m benchmarks.faults`.

A bundle of `damp-nano` for frames of 64x64 is built, or `--bundle DIR` is taken. Bits are flipped in its files, and in
the weights of an engine in memory; what changes the bundles in slots is killed; disks fill; connections are held. Only
loopback, temporary folders and processes of its own are used; about a quarter of an hour. Bars: every flip of a file is
refused; every flip in memory that moves an image by more than 1e-3 of its range is found by the next round of
self-tests; one good slot starts after every kill; what is recorded is whole and counted; no line is lost to a stranger.
Exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import show
from runtime.bundle_files import verified_bundle
from runtime.trust import NO_KEYRING

from . import disk, kills, memory, streams
from .report import table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--disk", type=int, default=1000, help="bits flipped in files")
    parser.add_argument("--memory", type=int, default=1000, help="bits flipped in loaded weights")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = (asked.bundle or built(folder / "bundle")).resolve()
        bands = verified_bundle(bundle, NO_KEYRING).manifest.signature.measured.bands
        rows = []
        # First of all, while nothing else has left copies of the weights in memory.
        if asked.memory:
            rows += memory.flips(bundle, asked.memory, folder, asked.seed)
        if asked.disk:
            rows += disk.flips(bundle, asked.disk, folder, asked.seed)
        if asked.kills:
            rows += kills.kills(bundle, asked.kills, folder, asked.seed)
        rows += streams.full_disks(bundle, folder, bands)
        if asked.connections:
            rows += streams.held_connections(bundle, asked.connections, folder, bands)
    show(table(rows))
    missed = [sentence for row in rows for sentence in row.missed]
    show(*(f"missed: {sentence}" for sentence in missed))
    return int(bool(missed))


def built(out: Path) -> Path:
    """A bundle of damp-nano, by a process of its own: PyTorch is not to lie in the memory of this one."""
    command = ("-m", "deploy", "build", "--checkpoint", "damp-nano", "--size", "64x64", "--target", "cpu", "--out", out)
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return out


if __name__ == "__main__":
    sys.exit(main())
