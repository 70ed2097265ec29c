"""A computer that loses its power while the bundles in its slots are changed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from runtime import slots
from runtime.bundle import load_bundle
from runtime.trust import NO_KEYRING

from .report import Row, counted, spread, steps

CHANGES = """
import sys
from pathlib import Path
from runtime import slots
from runtime.trust import NO_KEYRING
store, ground, first, other = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
print("ready", flush=True)
while True:
    slots.install(ground, store, trust=NO_KEYRING)
    slots.next_slot(store)
    slots.use(store, other)
    slots.bad(store, other, "tried")
    slots.use(store, first)
    slots.good(store, first)
"""


def kills(bundle: Path, tried: int, folder: Path, seed: int) -> list[Row]:
    """SIGKILL at any moment of installing, using and marking; then one good slot is there, and one starts."""
    store, rng = folder / "store", random.Random(seed)
    first = slots.install(bundle, store, trust=NO_KEYRING).active
    state = slots.good(store, first)
    digest, other = state.slots[first].digest, state.other
    found: Counter[str] = Counter()
    seconds, missed = [], []
    command = [sys.executable, "-c", CHANGES, store, bundle, first, other]
    longest = one_turn(bundle, store, first, other)
    for number in steps(tried, "kills of what changes slots"):
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise SystemExit("the process that changes slots did not begin")
            time.sleep(rng.uniform(0, longest))
            process.kill()
        state = slots.read_state(store)
        good = [name for name in slots.NAMES if state.slots[name].state == "good"]
        began = time.perf_counter()
        started = slots.next_slot(store) or slots.next_slot(store)
        if good != [first] or state.slots[first].digest != digest or started is None:
            missed.append(f"kill {number}: good are {good}, {started} starts")
            continue
        with load_bundle(store / started, threads=1, trust=NO_KEYRING) as opened:
            opened.prove(0)
        seconds.append(time.perf_counter() - began)
        found["the good slot starts" if started == first else "the new slot starts, the good one stays"] += 1
        load_bundle(store / first, threads=1, trust=NO_KEYRING).close()
        slots.use(store, first)
    effect = "none: every byte and the golden frame as before"
    return [Row("SIGKILL while slots are changed", tried, counted(found), spread(seconds), effect, missed)]


def one_turn(bundle: Path, store: Path, first: str, other: str) -> float:
    """Seconds of one turn of `CHANGES`, undisturbed."""
    began = time.perf_counter()
    slots.install(bundle, store, trust=NO_KEYRING)
    slots.bad(store, other, "tried")
    slots.use(store, first)
    return time.perf_counter() - began
