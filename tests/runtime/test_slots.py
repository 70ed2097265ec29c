"""Two slots for bundles: what is installed, tried, good or bad, and what a kill or a flipped bit leaves of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import slots
from runtime.archive import pack
from runtime.bundle_files import verified_bundle
from runtime.errors import BundleError, InputError
from runtime.slots import NAMES, Slot, State
from tests.contracts.bundles import known_bundle, reseal

ROOT = Path(__file__).parents[2]


def of_serial(folder: Path, serial: int) -> Path:
    bundle = known_bundle(folder / f"ground-{serial}", gain=1 + serial / 100)
    reseal(bundle, lambda content: content.update(serial=serial))
    return bundle


def kinds(store: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in (store / "log.jsonl").read_text().splitlines()]


def states(state: State) -> dict[str, tuple[str, int]]:
    return {name: (slot.state, slot.serial) for name, slot in state.slots.items()}


def test_a_new_bundle_is_tried_three_times_and_good_once_somebody_says_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    state = slots.install(of_serial(tmp_path, 1), store)
    assert states(state) == {"a": ("empty", 0), "b": ("new", 1)} and state.active == "b"
    assert [slots.next_slot(store) for _ in range(3)] == ["b"] * 3
    assert slots.next_slot(store) is None
    assert slots.read_state(store).slots["b"].why == "it did not prove itself in 3 tries"
    slots.use(store, "b")
    assert slots.next_slot(store) == "b"
    assert slots.good(store, "b").highest == 1
    assert [slots.next_slot(store) for _ in range(5)] == ["b"] * 5, "what was good is not counted down"
    assert kinds(store) == ["begun", "installed", *["try"] * 3, "bad", "use", "try", "good"]


def test_an_update_never_takes_the_only_good_slot(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = slots.install(of_serial(tmp_path, 1), store).active
    slots.good(store, first)
    for serial in (2, 3):
        state = slots.install(of_serial(tmp_path, serial), store)
        assert state.slots[first] == Slot("good", 3, 1, state.slots[first].digest)
        assert state.active != first and states(state)[state.active] == ("new", serial)
    second = state.active
    assert slots.next_slot(store) == second
    assert slots.next_slot(store, [second]) == first, "the good one where the new one does not load"
    state = slots.bad(store, second, "the golden frame")
    assert (state.active, slots.next_slot(store)) == (first, first)
    # Two good ones: the one that does not fly goes.
    slots.good(store, slots.install(of_serial(tmp_path, 4), store).active)
    assert states(slots.install(of_serial(tmp_path, 5), store))[first] == ("new", 5)


def test_a_damaged_bundle_is_not_made_good(tmp_path: Path) -> None:
    store = tmp_path / "store"
    state = slots.install(of_serial(tmp_path, 1), store)
    graph = store / "b/graphs/fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(BundleError, match="SHA-256 differs"):
        slots.good(store, "b")
    assert slots.read_state(store) == state


def test_serials_go_back_only_with_a_word(tmp_path: Path) -> None:
    store, older = tmp_path / "store", of_serial(tmp_path, 6)
    slots.good(store, slots.install(of_serial(tmp_path, 7), store).active)
    before = slots.read_state(store)
    with pytest.raises(InputError, match="is older than one that was good here") as caught:
        slots.install(older, store)
    assert caught.value.value == 6 and slots.read_state(store) == before
    assert states(slots.install(older, store, allow_older=True))[before.other] == ("new", 6)
    last = json.loads((store / "log.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["allowed_older_than"]) == ("installed", 7)
    # An older one that becomes good makes no newer one older.
    assert slots.good(store, before.other).highest == 7


def test_archives_are_installed_and_damaged_ones_change_nothing(tmp_path: Path) -> None:
    store, bundle = tmp_path / "store", of_serial(tmp_path, 1)
    pack(bundle, tmp_path / "one.damp")
    state = slots.install(tmp_path / "one.damp", store)
    assert verified_bundle(store / state.active).files == verified_bundle(bundle).files
    data = bytearray((tmp_path / "one.damp").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "two.damp").write_bytes(data)
    with pytest.raises(BundleError):
        slots.install(tmp_path / "two.damp", store)
    assert slots.read_state(store) == state
    assert sorted(one.name for one in store.iterdir()) == [state.active, "lock", "log.jsonl", "state", "state.bak"]


@pytest.mark.parametrize("copy", ["state", "state.bak"])
def test_one_damaged_copy_of_the_state_costs_nothing(tmp_path: Path, copy: str) -> None:
    store = tmp_path / "store"
    slots.good(store, slots.install(of_serial(tmp_path, 1), store).active)
    state, data = slots.read_state(store), (store / copy).read_bytes()
    for damage in (
        b"",
        b"{}",
        data[:-1],
        data.replace(b"good", b"bad "),
        b"\xff" * len(data),
        data[:60] + b"7" + data[61:],
    ):
        (store / copy).write_bytes(damage)
        assert slots.read_state(store) == state
    (store / copy).unlink()
    assert slots.read_state(store) == state


def test_a_store_without_a_state_is_what_lies_in_its_slots(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for serial in (1, 2):
        slots.good(store, slots.install(of_serial(tmp_path, serial), store).active)
    active = slots.read_state(store).active
    for name in ("state", "state.bak"):
        (store / name).write_bytes(b"lost")
    state = slots.read_state(store)
    assert state.active == active and set(states(state).values()) == {("new", 1), ("new", 2)}
    shutil.rmtree(store / active)
    assert slots.read_state(store).active != active


@pytest.mark.parametrize("lost", ["log.jsonl", "slots"])
def test_serials_do_not_go_back_where_the_state_is_lost(tmp_path: Path, lost: str) -> None:
    store, older = tmp_path / "store", of_serial(tmp_path, 6)
    slots.good(store, slots.install(of_serial(tmp_path, 7), store).active)
    assert slots.doubts(store) == []
    (store / "state").write_bytes(b"lost")
    assert ["state is damaged or lost" in one for one in slots.doubts(store)] == [True]
    (store / "state.bak").unlink()
    if lost == "slots":
        shutil.rmtree(store / "b")
        (store / "log.jsonl").write_bytes(b'{"kind": 7}\ntorn\n' + (store / "log.jsonl").read_bytes() + b'{"kind"')
    else:
        (store / "log.jsonl").unlink()
    (doubt,) = slots.doubts(store)
    assert "both copies of the state" in doubt and "serials below 7" in doubt
    with pytest.raises(InputError, match="is older than one that was good here"):
        slots.install(older, store)
    assert kinds(store)[-1] == "doubt" if lost != "slots" else b"both copies" in (store / "log.jsonl").read_bytes()


def test_what_holds_something_else_is_no_store(tmp_path: Path) -> None:
    bundle = of_serial(tmp_path, 1)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/one.png").write_bytes(b"")
    for place, match in ((bundle, "is no store"), (tmp_path / "pictures", "is no store"),
                         (tmp_path / "pictures/one.png", "this is a file")):  # fmt: skip
        before = sorted(place.rglob("*"))
        for way in (slots.read_state, slots.doubts, lambda place: slots.bad(place, "a", "no")):
            with pytest.raises(InputError, match=match):
                way(place)
        with pytest.raises(InputError, match=match):
            slots.install(known_bundle(tmp_path / f"new-{place.name}"), place)
        assert sorted(place.rglob("*")) == before
    with pytest.raises(InputError, match="no such store"):
        slots.bad(tmp_path / "none", "a", "no")
    (tmp_path / "empty").mkdir()
    assert slots.install(bundle, tmp_path / "empty").active == "b"


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such store"):
        slots.read_state(tmp_path / "none")
    store = tmp_path / "store"
    slots.install(of_serial(tmp_path, 1), store)
    with pytest.raises(InputError, match="no bundle in this slot"):
        slots.use(store, "a")
    with pytest.raises(InputError, match="lies in the store itself"):
        slots.install(store / "b", store)


CHANGES = """
import sys
from pathlib import Path
from runtime import slots
store, ground, first = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
other = "b" if first == "a" else "a"
print("ready", flush=True)
while True:
    slots.install(ground, store)
    slots.next_slot(store)
    slots.use(store, other)
    slots.bad(store, other, "tried")
    slots.use(store, first)
    slots.good(store, first)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_one_good_slot_starts(tmp_path: Path, seed: int) -> None:
    """Fifty kills each, of installing, using, marking."""
    store, ground = tmp_path / "store", of_serial(tmp_path, 2)
    first = slots.install(of_serial(tmp_path, 1), store).active
    slots.good(store, first)
    digest = slots.read_state(store).slots[first].digest
    rng = random.Random(seed)
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", CHANGES, str(store), str(ground), first], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = slots.read_state(store)
        assert [name for name in NAMES if state.slots[name].state == "good"] == [first]
        assert state.slots[first].digest == digest
        started = slots.next_slot(store) or slots.next_slot(store)
        verified_bundle(store / first)
        assert started is not None and verified_bundle(store / started)
        slots.use(store, first)
