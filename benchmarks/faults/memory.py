"""Bits that flip in the weights of a loaded engine, what they do to an image, and which self-test finds them."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from runtime.arrays import Float32
from runtime.bundle import Bundle, load_bundle
from runtime.engines import Engine
from runtime.errors import DeployError, MachineError
from runtime.golden import golden_feeds
from runtime.parity import apart
from runtime.stream.selftest import SelfTest
from runtime.trust import NO_KEYRING

from .report import Row, counted, spread, steps
from .weights import RUN, Memory

HARM = 1e-3
"""Of the range, by which a flip may change an image unfound."""
INTERVAL = 60
"""Seconds between two self-tests of a stream, unless it is told otherwise."""
OTHERS, LOOKED_AT = 3, 200
"""Frames beside the golden ones, and of how many they are chosen."""
EXPONENT = range(23, 31)
REPAIRS = 20


class Watched(Engine):
    """An engine whose every output is compared with what it gave for the same input when it was whole.

    Attributes:
        effects: by input, differences since `forget`, as shares of the range; infinite where it gave nothing finite.
    """

    def __init__(self, engine: Engine, known: dict[int, Float32] | None = None) -> None:
        super().__init__(engine.signature)
        self._engine, self.known = engine, {} if known is None else known
        self._learning = known is None
        self._image = list(engine.signature.ports.outputs).index(engine.signature.restored.name)
        self.forget()

    def forget(self) -> None:
        self.effects: dict[int, float] = {}

    @property
    def effect(self) -> float:
        """The largest."""
        return max(self.effects.values(), default=0.0)

    def key(self, feeds: Mapping[str, Float32]) -> int:
        """Of an input, by which its output is known."""
        return key_of(*(feeds[name] for name in self.signature.ports.inputs))

    def learned(self) -> None:
        """What it gives from now on is compared."""
        self._learning = False

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        outputs = self._engine.infer_impl(*inputs)
        key, image = key_of(*inputs), outputs[self._image]
        if self._learning:
            self.known[key] = image.copy()
            return outputs
        # Wrong ones may be so large that differences of them overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            off = apart(image, self.known[key])
        self.effects[key] = off if math.isfinite(off) else math.inf
        return outputs

    def describe(self) -> dict[str, str]:
        return self._engine.describe()

    def close(self) -> None:
        self._engine.close()


def key_of(*inputs: Float32) -> int:
    key = 0
    for array in inputs:
        key = crc32(array.data, key)
    return key


@dataclass
class Found:
    """What became of the flips of one kind."""

    tried: int = 0
    by: Counter[str] = field(default_factory=Counter)
    tests: list[int] = field(default_factory=list)
    found: float = 0.0
    unfound: float = 0.0
    missed: list[str] = field(default_factory=list)


def flips(path: Path, tried: int, folder: Path, seed: int) -> list[Row]:
    """Half of them in any bit of a weight, half in its exponent; each alone, with one round of self-tests after it."""
    rng = random.Random(seed)
    bundle = load_bundle(path, threads=1, trust=NO_KEYRING)
    memory = Memory(path / bundle.manifest.graphs[bundle.choice.precision], folder)
    bundle.self_test()
    watched = Watched(bundle.engine)
    bundle.engine = watched
    proving, more = list(golden(bundle)), others(bundle, seed)
    called = [experts(watched, feeds) for feeds in proving]
    uncalled = {watched.key(feeds) for feeds in more if not experts(watched, feeds) <= set[Any]().union(*called)}
    frames = [*proving, *more]
    watched.learned()
    watch = SelfTest(bundle, bundle.again, INTERVAL)
    places, proofs = memory.places(), len(bundle.manifest.proofs)
    kinds = {"any bit": range(32), "a bit of its exponent": EXPONENT}
    rows = {kind: Found() for kind in kinds}
    tests: list[float] = []
    repairs: list[float] = []
    unrepaired: list[str] = []
    weights = RUN * len(places)
    every = max(1, tried // (2 * REPAIRS))
    for number in steps(tried, "bits of weights in memory"):
        kind = list(kinds)[number % 2]
        address = weight(memory, places, rng)
        before = memory.word(address)
        after = before ^ 1 << rng.choice(kinds[kind])
        memory.write(address, after)
        watched.forget()
        said, took = one_round(watch, proofs, tests)
        rest(watched, frames)
        judge(rows[kind], said, took, watched.effects, uncalled)
        if said is not None and number % every == 0 and len(repairs) < REPAIRS:
            began = time.perf_counter()
            bundle = watch.renew(repair=True)
            repairs.append(time.perf_counter() - began)
            watched = Watched(bundle.engine, watched.known)
            bundle.engine = watched
            rest(watched, frames)
            if watched.effect:
                unrepaired.append(f"after a repair images are {watched.effect:.1e} of the range apart")
            places = memory.places()
        # Where the flip was in memory that nothing used, something else may be there by now.
        elif memory.word(address) == after:
            memory.write(address, before)
    watched.forget()
    rest(watched, frames)
    if watched.effect:
        unrepaired.append(f"with every flip undone images are {watched.effect:.1e} of the range apart")
    watch.close()
    memory.close()
    made = [told(kind, found, tests) for kind, found in rows.items()]
    made[0].missed.extend(unrepaired)
    about = f"in {weights:,} weights and their copies; {proofs} golden frames, {len(frames) - proofs} others"
    made.append(Row(f"repairs ({about})", len(repairs), "-", spread(repairs), "none afterwards: the same bits"))
    return made


def experts(engine: Engine, feeds: Mapping[str, Float32]) -> set[Any]:
    """Those that a frame calls, by name of the output and place in it."""
    made = engine.infer(feeds)
    return {(side.name, int(place)) for side in engine.signature.side for place in np.flatnonzero(made[side.name])}


def golden(bundle: Bundle) -> Iterator[dict[str, Float32]]:
    """What every proof goes in with."""
    for proof in bundle.manifest.proofs:
        shapes = bundle.manifest.signature.ports.inputs
        yield {name: np.load(bundle.path / proof[name]).reshape(shape) for name, shape in shapes.items()}


def others(bundle: Bundle, seed: int) -> list[dict[str, Float32]]:
    """Other frames with random metrics, that choose as many sets of experts as there are found."""
    rng = np.random.default_rng(seed)
    signature, base = bundle.manifest.signature, golden_feeds(bundle.contents, bundle.manifest.signature, bundle.path)
    measured = signature.measured.name
    by_experts: dict[Any, dict[str, Float32]] = {}
    spare = []
    for _ in range(LOOKED_AT if signature.metrics is not None and signature.side else OTHERS):
        frame = np.roll(base[measured], rng.integers(0, base[measured].shape[-1], 2), (-2, -1))
        noise = rng.normal(0, rng.uniform(0, 0.2), frame.shape)
        feeds = {**base, measured: (frame * rng.uniform(0.3, 1.0) + noise).clip(0, 1).astype(np.float32)}
        if signature.metrics is not None:
            name = signature.metrics.name
            feeds[name] = (base[name] * np.exp(rng.normal(0, 1.0, base[name].shape))).astype(np.float32)
        spare.append(feeds)
        if signature.side:
            # The engine below: nothing is learned of frames that are not taken.
            made = bundle.engine.infer(feeds)
            by_experts.setdefault(tuple((made[side.name] > 0).tobytes() for side in signature.side), feeds)
    taken = list(by_experts.values())
    return [*taken, *(one for one in spare if not any(one is other for other in taken))][: max(OTHERS, len(taken))]


def weight(memory: Memory, places: Any, rng: random.Random) -> int:
    """Address of a weight, each as likely as any other."""
    while True:
        address = int(places[rng.randrange(len(places))]) + 4 * rng.randrange(RUN)
        if memory.is_weight(address):
            return address


def one_round(watch: SelfTest, proofs: int, seconds: list[float]) -> tuple[DeployError | None, int]:
    """Self-tests, one for each golden frame, to the first that finds something: what it says, and which it was."""
    for test in range(1, proofs + 1):
        began = time.perf_counter()
        said = watch.test()
        seconds.append(time.perf_counter() - began)
        if said is not None:
            return said, test
    return None, proofs


def rest(watched: Watched, frames: list[dict[str, Float32]]) -> None:
    """Restore the frames that no test has restored since."""
    for feeds in frames:
        key = watched.key(feeds)
        if key in watched.effects:
            continue
        try:
            watched.infer(feeds)
        except MachineError:
            watched.effects[key] = math.inf


def judge(row: Found, said: DeployError | None, took: int, effects: Mapping[int, float], uncalled: Set[int]) -> None:
    """Count a flip; `uncalled` are the frames whose experts no golden frame calls."""
    row.tried += 1
    effect = max(effects.values())
    if said is not None:
        how = "its first answer's bits" if "bits" in said.problem else "tolerance of the golden frame"
        row.by["not finite" if isinstance(said, MachineError) else how] += 1
        row.tests.append(took)
        row.found = max(row.found, effect)
        return
    if effect == 0:
        row.by["changed no frame"] += 1
        return
    elsewhere = all(effects[key] == 0 for key in effects.keys() - uncalled)
    where = "not found, in an expert that no golden frame calls" if elsewhere else "not found"
    row.by[where] += 1
    row.unfound = max(row.unfound, effect)
    if effect > HARM:
        row.missed.append(f"{where}: a flip that moves an image by {share(effect)} of its range")


def told(kind: str, found: Found, tests: list[float]) -> Row:
    after = "-"
    if found.tests:
        median, worst = sorted(found.tests)[len(found.tests) // 2], max(found.tests)
        after = (
            f"{INTERVAL * median} s, {INTERVAL * worst} s (tests {median}, {worst} of a round); a test {spread(tests)}"
        )
    effect = f"found: {share(found.found)}; not found: {share(found.unfound)}"
    return Row(f"{kind} of a weight in memory", found.tried, counted(found.by), after, effect, found.missed)


def share(effect: float) -> str:
    """Of the range, for people."""
    return "not finite" if math.isinf(effect) else "0" if effect == 0 else f"{effect:.1e}"
