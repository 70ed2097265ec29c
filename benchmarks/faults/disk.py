"""Bits that flip in a bundle's files, between two openings."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path

from runtime.bundle import load_bundle
from runtime.errors import BundleError
from runtime.manifest import MANIFEST
from runtime.trust import NO_KEYRING

from .report import Row, counted, spread, steps


def flips(bundle: Path, tried: int, folder: Path, seed: int) -> list[Row]:
    """Half of them by file, so that small files are hit too, half by byte; each alone, in a copy of the bundle."""
    copy, rng = folder / "flipped", random.Random(seed)
    shutil.copytree(bundle, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    half = tried // 2
    ways = {"chosen by file": (half, None), "chosen by byte": (tried - half, sizes)}
    rows = []
    for way, (count, weights) in ways.items():
        found: Counter[str] = Counter()
        seconds, missed = [], []
        for _ in steps(count, f"bits of files, {way}"):
            path = rng.choices(files, weights)[0]
            bit = rng.randrange(8 * path.stat().st_size)
            flip(path, bit)
            began = time.perf_counter()
            try:
                # A keyring would refuse it unflipped as well.
                load_bundle(copy, trust=NO_KEYRING).close()
                missed.append(f"bit {bit} of {path.relative_to(copy)} was not found")
            except BundleError:
                found["seal of the manifest" if path.name == MANIFEST else "SHA-256 of the file"] += 1
                seconds.append(time.perf_counter() - began)
            finally:
                flip(path, bit)
        fault = f"a bit of a bundle's files, {way}"
        rows.append(Row(fault, count, counted(found), spread(seconds), "none: not opened", missed))
    load_bundle(copy, trust=NO_KEYRING).close()
    return rows


def flip(path: Path, bit: int) -> None:
    """Flip one bit in place; twice is nothing."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        byte = os.pread(descriptor, 1, bit // 8)[0]
        os.pwrite(descriptor, bytes([byte ^ 1 << bit % 8]), bit // 8)
    finally:
        os.close(descriptor)
