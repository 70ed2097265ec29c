"""A stream's slot in flight: which bundle takes the place of one that broke, and which slot is blamed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.streaming.slot import SECONDS, TESTS, Flying
from runtime import slots
from runtime.bundle import Bundle, load_bundle
from runtime.errors import BundleError, DeployError, InputError, MachineError, UntrustedError
from runtime.files import write_cube
from tests.contracts.bundles import known_bundle, prove_more, reseal
from tests.contracts.command import assert_failed, invoke
from tests.contracts.signed import write_keys

LINES = "sim:bands=3,samples=16,count=20,rate=2000"


def opened(place: Path, whole: bool) -> Bundle:
    return load_bundle(place)


def stored(folder: Path, *networks: str) -> Path:
    """A store whose slots a and b hold these networks, b the newer one; both are good and b is active."""
    store = folder / "store"
    for serial, network in enumerate(networks, 1):
        bundle = known_bundle(folder / f"ground-{serial}")
        reseal(bundle, lambda content, s=serial, n=network: (  # type: ignore[misc]
            content.update(serial=s), content["network"].update(checkpoint_sha256=n * 64)))  # fmt: skip
        state = slots.install(bundle, store)
        slots.good(store, state.active)
    return store


def snapshot(restored: int, state: str = "on", tests: int = 0) -> dict[str, Any]:
    told = {"tests": tests, "failed": 0, "repairs": 0, "age_s": None}
    return {"lines": {"restored": restored}, "restoration": {"state": state, "tests": told}, "problems": ["it broke"]}


@pytest.mark.parametrize("same", [True, False])
def test_the_other_slot_takes_over_where_it_holds_the_same_network(tmp_path: Path, same: bool) -> None:
    store = stored(tmp_path, "1", "1" if same else "2")
    flying = Flying(store, opened)
    with flying.open() as bundle:
        first = flying.name
        assert first is not None
        other = "a" if first == "b" else "b"
        (store / first / "graphs/fp32.onnx").write_bytes(b"damaged")
        if same:
            bundle.again().close()
            assert flying.name == other
        else:
            with pytest.raises(BundleError, match="another bundle"):
                bundle.again()
            flying.look(snapshot(0, "off"))
    state = slots.read_state(store)
    assert (state.slots[first].state, state.slots[other].state, state.active) == ("bad", "good", other)


def test_a_slot_is_good_only_after_tests_and_restored_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path, "1")
    update = shutil.copytree(tmp_path / "ground-1", tmp_path / "update")
    reseal(update, lambda content: content.update(serial=7))
    new = slots.install(update, store).active
    now = [100.0]
    monkeypatch.setattr("deploy.streaming.slot.time.monotonic", lambda: now[0])
    flying = Flying(store, opened)
    with flying.open():
        for second in range(int(SECONDS) + 10):
            now[0] += 1
            flying.look(snapshot(0, tests=second))
        assert slots.read_state(store).slots[new].state == "new", "nothing was restored"
        for second in range(int(SECONDS) - 1):
            now[0] += 1
            flying.look(snapshot(second + 1, tests=TESTS))
        assert slots.read_state(store).slots[new].state == "new"
        now[0] += 5
        flying.look(snapshot(1000, tests=TESTS))
    state = slots.read_state(store)
    assert (state.slots[new].state, state.highest) == ("good", 7)


def test_a_keyring_or_an_option_says_nothing_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = stored(tmp_path, "1")
    slots.install(known_bundle(tmp_path / "update"), store, allow_older=True)
    before = slots.read_state(store).slots
    write_keys(tmp_path, "other")
    words = ("stream", "--store", store, "--source", "sim:bands=3,samples=16,count=20")
    for more in (("--trust", "nothere"), ("--engine", "nonsense"), ("--prompt", "derain"),
                 ("--trust", "nothere", "--on-bad-bundle", "refuse")):  # fmt: skip
        recorded = (*words, "--record", tmp_path / "raw")
        assert_failed(invoke(capsys, *recorded, *more), 2, more[1])
        assert slots.read_state(store).slots == before
    # A real key, of somebody else: nothing flies, and nobody is blamed.
    done = invoke(capsys, *words, "--trust", tmp_path / "other.pub")
    assert_failed(done, 2, "is not signed")
    assert slots.read_state(store).slots == before


@pytest.mark.parametrize("off", [0, 0.5])
def test_a_start_waits_for_some_golden_frames_and_a_new_slot_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    monkeypatch.setattr("deploy.commands.stream_run.START_S", 0.0)
    store = stored(tmp_path, "1")
    words = ("stream", "--store", store, "--source", LINES, "--record", tmp_path / "raw")
    assert "golden frame restored" in invoke(capsys, *words).out
    update = prove_more(known_bundle(tmp_path / "update"), 0, off)
    slots.good(store, new := slots.install(update, store, allow_older=True).active)
    done = invoke(capsys, *words)
    assert "1 of 3 golden frames restored" in done.out + done.err and "the others follow" in done.out + done.err
    assert done.code == (3 if off else 0)
    said = re.search(r"self-tests [1-9]\d* behind the start's, (\w+) failed", done.out + done.err)
    assert said is not None and (said[1] == "none") == (not off)
    assert slots.read_state(store).slots[new].state == ("bad" if off else "good")
    other = "a" if new == "b" else "b"
    slots.good(store, other)
    slots.install(update, store, allow_older=True)
    done = invoke(capsys, *words)
    if off:
        assert f"slot {new} does not fly" in done.out + done.err and slots.read_state(store).active == other
    else:
        assert "3 golden frames restored" in done.out + done.err and "1 of 3" not in done.out + done.err


def test_where_nothing_goes_on_without_it_a_bundle_is_proved_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.commands.stream_run.START_S", 0.0)
    words = ("stream", prove_more(known_bundle(tmp_path / "bundle"), 0, 0.5), "--source", LINES)
    for more in ((), ("--record", tmp_path / "raw", "--on-bad-bundle", "refuse")):
        assert_failed(invoke(capsys, *words, "--restored", tmp_path / "made", *more), 1, "golden")
        assert not (tmp_path / "made").exists() and not (tmp_path / "raw").exists()


def test_lines_that_the_bundle_before_restored_are_not_called_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = stored(tmp_path, "1")
    words = ("stream", "--store", store, "--source", f"envi:{tmp_path / 'scene.hdr'}", "--record", tmp_path / "raw")
    write_cube(tmp_path / "scene.hdr", np.arange(3 * 20 * 16, dtype=np.uint16).reshape(3, 20, 16))
    words = (*words, "--restored", tmp_path / "made", "--scale", "4095", "--json")
    assert invoke(capsys, *words).json["lines"]["restored"] == 20
    update = known_bundle(tmp_path / "update")
    reseal(update, lambda content: content.update(serial=7))
    slots.install(update, store)
    done = invoke(capsys, *words)
    assert done.json["lines"]["restored"] == 20 and sorted(f.name for f in (tmp_path / "made").iterdir()) == ["1", "7"]
    assert not any("were not restored by the runs before" in told for told in done.json["warnings"])
    shutil.rmtree(tmp_path / "made/1")
    told = invoke(capsys, *words).json["warnings"]
    assert any("lines 0 to 19 of the record were not restored by the runs before" in one for one in told)


def newly(folder: Path) -> Path:
    slots.install(known_bundle(folder / "new"), folder / "store")
    return folder / "store"


def test_streams_that_end_well_cost_a_new_bundle_no_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = newly(tmp_path)
    words = ("stream", "--store", store, "--source", "sim:bands=3,samples=16,count=20,rate=2000", "--json")
    for _ in range(slots.TRIES + 1):
        done = invoke(capsys, *words)
        assert done.code == 0 and (done.json["slot"], done.json["serial"]) == ("b", 0)
        assert any("slot b is new: good after 3 self-tests and 60 s" in one for one in done.json["warnings"])
        # Nor does a source that is not there.
        assert_failed(invoke(capsys, *words[:3], "--source", "envi:nothing.hdr"), 2, "nothing.hdr")
    assert slots.read_state(store).slots["b"].tries == slots.TRIES


@pytest.mark.parametrize("how", ["hung", "a failed test", "off"])
def test_an_end_that_is_not_clean_costs_a_try(tmp_path: Path, how: str) -> None:
    store = newly(tmp_path)
    flying = Flying(store, opened)
    with flying.open():
        if how == "a failed test":
            flying.look({**snapshot(100), "restoration": {"state": "on", "tests": {"tests": 3, "failed": 1}}})
        elif how == "off":
            flying.look(snapshot(100, "off"))
        if how != "hung":
            flying.close()
    found = slots.read_state(store).slots["b"]
    assert (found.state, found.tries) == (("bad", 0) if how == "off" else ("new", slots.TRIES - 1))


@pytest.mark.parametrize("words", [(), ("good", "--store", "s")])
def test_what_is_missing_is_said_in_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    done = invoke(capsys, "slots", *words)
    assert_failed(done, 2, "Missing", "--help")
    assert "\\n" not in done.err and "\\t" not in done.err


@pytest.mark.parametrize("error", [InputError, MachineError, UntrustedError])
def test_who_is_not_to_blame_gets_the_try_back(tmp_path: Path, error: type[DeployError]) -> None:
    store = tmp_path / "store"
    slots.install(known_bundle(tmp_path / "bundle"), store)

    def load(place: Path, whole: bool) -> Bundle:
        raise error("not today")

    for _ in range(slots.TRIES + 1):
        with pytest.raises(error, match="not today"):
            Flying(store, load).open()
    assert slots.read_state(store).slots["b"].tries == slots.TRIES
