"""The watch in flight: an engine that goes wrong is found, its lines are flagged, and another takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.arrays import Float32
from runtime.errors import BundleError, DeployError
from runtime.lines import Flag, Taken
from runtime.radiometry import load_radiometry
from runtime.record.index import read_index, verify
from runtime.stream import selftest
from runtime.stream.opening import open_stream
from runtime.stream.pipeline import Restoring, Stream, StreamResult
from runtime.stream.selftest import SelfTest
from runtime.stream.snapshot import Snapshot
from tests.contracts.bundles import known_bundle, prove_more, reseal

from .lines import Script
from .test_pipeline import FACTS, FORMAT, same

Wrong = Callable[[Float32], Float32]


@pytest.fixture(autouse=True)
def _at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "SHARE", 1e9)


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[runtime.Bundle]:
    with runtime.load_bundle(known_bundle(tmp_path / "bundle", scale=4095)) as bundle:
        bundle.self_test()
        yield bundle


def goes_wrong(bundle: runtime.Bundle, wrong: Wrong, after: int = 4) -> None:
    """From the run `after` on, all that the engine restores is changed, as a flipped bit of its weights does."""
    plain, runs = bundle.engine.infer_impl, 0

    def infer(*inputs: Float32) -> tuple[Float32, ...]:
        nonlocal runs
        runs += 1
        restored, *side = plain(*inputs)
        return (wrong(restored) if runs > after else restored, *side)

    bundle.engine.infer_impl = infer  # type: ignore[method-assign]


def flown(bundle: runtime.Bundle, folder: Path, lines: int = 160, **options: Any) -> tuple[StreamResult, Snapshot, Any]:
    events: list[tuple[str, dict[str, Any]]] = []
    stream = open_stream(
        bundle, Script(range(lines)), record=folder / "raw", restored=folder / "made",
        options=runtime.StreamOptions(**{"policy": "block", "selftest_seconds": 1e-9, **options}),
        log=lambda kind, **fields: events.append((kind, fields)),
    )  # fmt: skip
    result = stream.run()
    assert verify(folder / "raw", "lines").last == lines - 1, "every line is recorded"
    return result, stream.snapshot(), events


def of_kind(events: Any, kind: str) -> list[dict[str, Any]]:
    return [fields for name, fields in events if name == kind]


def test_an_engine_that_is_right_is_tested_and_left_alone(bundle: runtime.Bundle, tmp_path: Path) -> None:
    result, snapshot, events = flown(bundle, tmp_path)
    assert result.failures == {} and result.count.restored == 160
    found = snapshot.restoration
    assert (found.state, found.suspect_lines, found.tests.failed, found.tests.repairs) == ("on", 0, 0, 0)
    assert found.tests.tests > 10
    assert not of_kind(events, "suspect") and not of_kind(events, "repaired")


@pytest.mark.parametrize(
    "wrong",
    [lambda made: made + np.float32(1e-5), lambda made: made * 2, lambda made: made * np.float32(np.nan)],
    ids=["within the tolerance", "finite", "not finite"],
)
def test_a_wrong_engine_is_found_flagged_and_replaced(bundle: runtime.Bundle, tmp_path: Path, wrong: Wrong) -> None:
    goes_wrong(bundle, wrong)
    result, snapshot, events = flown(bundle, tmp_path)
    assert result.failures == {}
    told = [one["error"] for one in of_kind(events, "selftest") if not one["ok"]]
    assert "opened anew" in told[0] and "do not fly" not in told[0]
    tests = snapshot.restoration.tests
    assert (tests.failed, tests.repairs, snapshot.restoration.state) == (1, 1, "on")
    assert len(of_kind(events, "repaired")) == 1
    suspects = of_kind(events, "suspect")
    index = read_index(tmp_path / "made/restored.idx")
    values = runtime.files.read_cube(tmp_path / "made/restored.hdr").cube
    raw = runtime.files.read_cube(tmp_path / "raw/lines.hdr").cube
    flagged = {n for one in suspects for n in range(one["sequence"], one["last"] + 1)}
    for place, sequence in enumerate(index["sequence"].tolist()):
        if sequence not in flagged:
            assert np.abs(values[:, place].astype(int) - raw[:, sequence]).max() <= 1
    # Few are lost, and behind them restoration goes on.
    assert result.count.dropped <= 8 and index["sequence"][-1] == 159


@pytest.mark.parametrize("by", ["source", "signal"])
def test_what_was_restored_last_is_tested_at_the_end(bundle: runtime.Bundle, tmp_path: Path, by: str) -> None:
    goes_wrong(bundle, lambda made: made + np.float32(1e-5), after=10)
    events: list[tuple[str, dict[str, Any]]] = []
    stream = open_stream(
        bundle, Script(range(160)), restored=tmp_path / "made",
        options=runtime.StreamOptions(policy="block", selftest_seconds=1000),
        log=lambda kind, **fields: events.append((kind, fields)),
    )  # fmt: skip
    result = stream.run(lambda: stream.stop() if by == "signal" and stream.snapshot().lines.restored > 100 else None)
    assert result.failures == {} and result.ended_by in ("source", by)
    (suspect,), last = of_kind(events, "suspect"), read_index(tmp_path / "made/restored.idx")["sequence"][-1]
    assert (suspect["sequence"], suspect["last"]) == (0, last) and "does not give the bits" in suspect["why"]
    found = stream.snapshot().restoration
    assert found.suspect_lines == suspect["lines"] == result.count.restored
    assert (found.state, found.tests.failed, found.tests.repairs, found.untested) == ("on", 1, 0, 0)


def test_what_the_end_leaves_no_time_to_test_is_told(
    bundle: runtime.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "_left", lambda self: 0.0)
    result, snapshot, events = flown(bundle, tmp_path, selftest_seconds=1000)
    told = {"sequence": 0, "last": 159, "lines": 160}
    assert of_kind(events, "untested") == [{**of_kind(events, "untested")[0], **told}]
    assert snapshot.restoration.untested == result.count.restored == 160
    assert not of_kind(events, "selftest")
    # Where nobody wants tests, none is missed.
    assert flown(bundle, tmp_path / "without", selftest_seconds=0)[1].restoration.untested == 0


def test_what_does_not_look_like_a_restoration_is_flagged_line_by_line_and_tested_at_once(
    bundle: runtime.Bundle, tmp_path: Path
) -> None:
    goes_wrong(bundle, np.zeros_like)
    result, snapshot, events = flown(bundle, tmp_path, selftest_seconds=1000)
    assert snapshot.restoration.tests.repairs == 1
    flags = read_index(tmp_path / "made/restored.idx")["flags"]
    assert 0 < int(np.count_nonzero(flags & Flag.SUSPECT)) <= 16
    assert "flat" in of_kind(events, "suspect")[0]["why"]
    assert result.count.restored == 160


def test_a_bundle_that_is_damaged_on_disk_ends_restoration_and_not_the_record(
    bundle: runtime.Bundle, tmp_path: Path
) -> None:
    graph = tmp_path / "bundle/graphs/fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    goes_wrong(bundle, lambda made: made * 2)
    result, snapshot, _ = flown(bundle, tmp_path)
    told = result.failures["restore"].one_line()
    assert "restoration is off" in told and "fp32.onnx" in told
    assert result.failures["restore"].exit_code == 3
    assert snapshot.restoration.state == "off"
    assert result.count.recorded == 160 and 0 < result.count.restored < 160


def test_another_bundle_at_the_same_place_takes_no_ones(bundle: runtime.Bundle, tmp_path: Path) -> None:
    reseal(tmp_path / "bundle", lambda content: content.update(overlap=2))
    with pytest.raises(BundleError, match="another bundle lies there now"):
        SelfTest(bundle, bundle.again).renew(repair=True)


def test_three_repairs_in_ten_minutes_are_enough(bundle: runtime.Bundle, tmp_path: Path) -> None:
    again = bundle.again

    def worse() -> runtime.Bundle:
        fresh = again()
        goes_wrong(fresh, lambda made: made * 2, after=2)
        return fresh

    bundle.again = worse
    goes_wrong(bundle, lambda made: made * 2)
    result, snapshot, events = flown(bundle, tmp_path)
    assert len(of_kind(events, "repaired")) == 3
    assert "opened anew 3 times" in result.failures["restore"].one_line()
    assert snapshot.restoration.state == "off" and result.count.recorded == 160


def test_an_engine_that_never_repeats_itself_is_held_to_its_tolerance(bundle: runtime.Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    goes_wrong(bundle, lambda made: made + rng.normal(0, 1e-6, made.shape).astype(np.float32), after=0)
    _, snapshot, _ = flown(bundle, tmp_path)
    assert snapshot.restoration.tests.failed == 0 and snapshot.restoration.suspect_lines == 0


def test_an_engine_that_repeats_itself_after_an_opening_only_is_held_to_its_tolerance(bundle: runtime.Bundle) -> None:
    watch = SelfTest(bundle, bundle.again)
    goes_wrong(bundle, lambda made: made + np.float32(1e-6), after=0)
    assert watch.test() is not None
    again = bundle.again

    def otherwise() -> runtime.Bundle:
        fresh = again()
        goes_wrong(fresh, lambda made: made + np.float32(1e-6), after=0)
        return fresh

    watch._again = otherwise
    fresh = watch.renew(repair=True)
    goes_wrong(fresh, lambda made: made + np.float32(1e-6), after=0)
    assert watch.test() is None, "the fresh one had other bits, too, so bits prove nothing here"


def test_the_engine_is_opened_anew_when_it_is_time(bundle: runtime.Bundle, tmp_path: Path) -> None:
    result, snapshot, events = flown(bundle, tmp_path, selftest_seconds=1000, refresh_seconds=1e-9)
    assert len(of_kind(events, "refreshed")) > 3
    assert result.count.restored == 160 and snapshot.restoration.tests.repairs == 0


def test_a_refresh_that_fails_is_a_problem_until_one_works(bundle: runtime.Bundle, tmp_path: Path) -> None:
    plain, tries = bundle.again, 0

    def again() -> runtime.Bundle:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BundleError("a file is damaged", file="graphs/fp32.onnx")
        return plain()

    bundle.again = again
    seen = list[Snapshot]()

    def told(kind: str, **fields: Any) -> None:
        if kind in ("failed", "refreshed"):
            seen.append(stream.snapshot())

    stream = open_stream(
        bundle, Script(range(80)), restored=tmp_path / "made", log=told,
        options=runtime.StreamOptions(policy="block", selftest_seconds=1000, refresh_seconds=1e-9),
    )  # fmt: skip
    result = stream.run()
    assert result.failures == {} and result.ended_by == "source" and result.count.restored == 80
    told_of = "the engine could not be opened anew, the one before goes on: graphs/fp32.onnx: a file is damaged"
    assert [one.problems for one in seen[:3]] == [[told_of], [told_of], []]
    assert all(one.restoration.state == "on" for one in seen)


def test_a_rerun_doubts_no_line_of_the_run_before(bundle: runtime.Bundle, tmp_path: Path) -> None:
    assert flown(bundle, tmp_path, lines=40)[0].failures == {}
    goes_wrong(bundle, lambda made: made * 2, after=2)
    events: list[tuple[str, dict[str, Any]]] = []
    stream = open_stream(
        bundle, Script(range(40)), record=tmp_path / "raw", restored=tmp_path / "made",
        options=runtime.StreamOptions(policy="block", selftest_seconds=1e-9),
        log=lambda kind, **fields: events.append((kind, fields)),
    )  # fmt: skip
    assert stream.run().failures == {}
    suspects = of_kind(events, "suspect")
    assert suspects and all(one["sequence"] >= 40 and one["lines"] <= 16 for one in suspects)


@pytest.mark.parametrize("repair", [True, False])
def test_whatever_the_opening_of_another_engine_raises_the_record_goes_on(
    bundle: runtime.Bundle, tmp_path: Path, repair: bool
) -> None:
    def fails() -> runtime.Bundle:
        raise MemoryError

    bundle.again = fails
    if repair:
        goes_wrong(bundle, lambda made: made * 2)
    result, snapshot, _ = flown(
        bundle, tmp_path, **({} if repair else {"selftest_seconds": 0, "refresh_seconds": 1e-9})
    )
    assert result.count.recorded == 160
    assert snapshot.restoration.state == ("off" if repair else "on")
    assert ("MemoryError" in result.failures["restore"].one_line()) if repair else result.count.restored == 160


def test_lines_that_a_wrong_frame_was_blended_into_are_flagged_and_listed(
    bundle: runtime.Bundle, tmp_path: Path
) -> None:
    plain, runs = bundle.engine.infer_impl, 0

    def once(*inputs: Float32) -> tuple[Float32, ...]:
        nonlocal runs
        runs += 1
        restored, *side = plain(*inputs)
        return (np.zeros_like(restored) if runs == 2 else restored, *side)

    bundle.engine.infer_impl = once  # type: ignore[method-assign]
    _, _, events = flown(bundle, tmp_path, selftest_seconds=1000)
    flags = read_index(tmp_path / "made/restored.idx")["flags"]
    assert np.flatnonzero(flags & Flag.SUSPECT).tolist() == list(range(4, 12)), "frames of 8, which share 4"
    assert of_kind(events, "suspect") == [{**of_kind(events, "suspect")[0], "sequence": 4, "last": 11, "lines": 8}]


def test_tests_take_no_more_than_their_share(bundle: runtime.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "SHARE", 0.02)
    now = [0.0]
    monkeypatch.setattr(selftest.time, "monotonic", lambda: now[0])
    watch = SelfTest(bundle, bundle.again, seconds=10)
    plain = bundle.prove

    def slow(proof: int) -> Any:
        now[0] += 3
        return plain(proof)

    bundle.prove = slow  # type: ignore[method-assign]
    assert not watch.due(idle=False) and not watch.due(idle=True)
    now[0] = 2
    assert watch.due(idle=True) and not watch.due(idle=False)
    assert watch.test() is None
    assert not watch.due(idle=True), "three seconds of a test, and 150 until the next"
    watch.alarm()
    assert watch.due(idle=False), "an alarm is looked into at once"
    assert watch.test() is None
    watch.alarm()
    assert not watch.due(idle=False), "but not all the time"
    now[0] = 8 + 150
    assert watch.due(idle=False)


def test_golden_frames_that_the_start_left_are_the_next_tests(tmp_path: Path) -> None:
    with runtime.load_bundle(prove_more(known_bundle(tmp_path / "bundle"), 0, 0, 0)) as bundle:
        bundle.self_test(0)
        assert len(bundle.answers) == 1
        watch = SelfTest(bundle, bundle.again)
        for _ in range(3):
            assert watch.due(idle=True) and watch.due(idle=False) and watch.test() is None
        assert not watch.due(idle=True) and not watch.due(idle=False)
        assert not SelfTest(bundle, bundle.again, seconds=0).due(idle=True)
        bundle.self_test()
        assert len(bundle.answers) == 4 and not SelfTest(bundle, bundle.again).due(idle=True)


def test_what_one_of_those_finds_is_of_all_lines_since_the_start(tmp_path: Path) -> None:
    with runtime.load_bundle(prove_more(known_bundle(tmp_path / "bundle", scale=4095), 0, 0.5)) as bundle:
        bundle.self_test(0)
        result, snapshot, events = flown(bundle, tmp_path, selftest_seconds=1000)
    (suspect,) = of_kind(events, "suspect")
    assert suspect["sequence"] == 0 and "golden" in suspect["why"]
    assert suspect["lines"] == result.count.restored == snapshot.restoration.suspect_lines > 0
    assert snapshot.restoration.state == "off" and "restoration is off" in result.failures["restore"].one_line()


def test_golden_frames_that_change_in_memory_are_found(bundle: runtime.Bundle) -> None:
    name = bundle.manifest.golden.arrays["restored"]
    data = bytearray(bundle.contents.files[name])
    data[-1] ^= 1
    bundle.contents.files[name] = bytes(data)
    found = SelfTest(bundle, bundle.again).test()
    assert isinstance(found, DeployError) and "changed in memory" in found.one_line()


def test_tables_of_the_radiometry_that_change_in_memory_are_put_back(bundle: runtime.Bundle, tmp_path: Path) -> None:
    options: dict[str, Any] = {"policy": "block", "selftest_seconds": 1e-9}
    events: list[tuple[str, dict[str, Any]]] = []
    stream = open_stream(
        bundle, Script(range(80)), restored=tmp_path / "made", radiometry={"dark": 64},
        options=runtime.StreamOptions(**options), log=lambda kind, **fields: events.append((kind, fields)),
    )  # fmt: skip
    assert stream._restoration is not None
    tables = stream._restoration._restorer.preparer.tables
    dark = next(table for table in tables._arrays if table.dtype == np.float32)
    dark.view(np.uint32)[0, 5] ^= 1 << 20
    result = stream.run()
    assert result.failures == {} and (dark == 64).all()
    assert "tables changed in memory" in of_kind(events, "suspect")[0]["why"]
    tables._copies[0].view(np.uint8).reshape(-1)[0] ^= 1
    tables._arrays[0].view(np.uint8).reshape(-1)[0] ^= 2
    with pytest.raises(DeployError, match="and their copies too"):
        tables.mend()


def test_a_clock_that_is_set_is_told() -> None:
    class Stepped(Script):
        def read(self, line: Any, timeout: float) -> Any:
            event = super().read(line, timeout)
            if isinstance(event, Taken):
                step = 7_000_000_000 if event.frame_id >= 30 else 0
                event = replace(event, utc_ns=time.time_ns() + step)
            return event

    events: list[tuple[str, dict[str, Any]]] = []
    restoring = Restoring(FACTS, same, load_radiometry({}, FORMAT), FORMAT)
    Stream(Stepped(range(60), live=True), restoring, None, [], log=lambda kind, **f: events.append((kind, f))).run()
    assert [round(one["seconds"]) for one in of_kind(events, "clock")] == [7]


def test_a_bundle_with_fewer_golden_frames_takes_the_place_of_one_with_more(tmp_path: Path) -> None:
    fewer = known_bundle(tmp_path / "fewer")
    with runtime.load_bundle(prove_more(known_bundle(tmp_path / "bundle"), 0, 0)) as bundle:
        bundle.self_test()
        with SelfTest(bundle, lambda: runtime.load_bundle(fewer)) as watch:
            assert len(watch.renew(repair=False).answers) == 1 and watch.test() is None
