"""`runtime.open_stream`: what does not go together is refused, files are kept, a rerun goes on behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.errors import CubeError, DeployError, InputError, MachineError
from runtime.files import read_cube
from runtime.lines import LineFormat
from runtime.sinks.callback import Callback
from runtime.sinks.contract import Block
from runtime.stream import opening
from runtime.stream.pipeline import NamedSink
from tests.contracts.bundles import known_bundle
from tests.contracts.graphs import SMALL

from .lines import FORMAT, Script

UNSAID = replace(FORMAT, scale=None)
FLOATS = LineFormat(3, 16, np.dtype(np.float32))


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[runtime.Bundle]:
    with runtime.load_bundle(known_bundle(tmp_path / "bundle")) as bundle:
        yield bundle


def test_lines_are_recorded_restored_and_handed_over_and_a_rerun_goes_on(
    bundle: runtime.Bundle, tmp_path: Path
) -> None:
    seen: list[Block] = []
    for run in range(2):
        stream = runtime.open_stream(
            bundle, Script(range(40)), record=tmp_path / "raw", restored=str(tmp_path / "made"), sinks=[seen.append],
            options=runtime.StreamOptions(policy="block"),
        )  # fmt: skip
        result = stream.run()
        assert result.failures == {} and result.count.issued == result.count.restored == 40
        assert seen[-1].sequence[-1] == 40 * (run + 1) - 1
    raw, made = (read_cube(tmp_path / name) for name in ("raw/lines.hdr", "made/restored.hdr"))
    assert raw.cube.shape == made.cube.shape == (3, 80, 16) and raw.cube.dtype == made.cube.dtype


@pytest.mark.parametrize(
    ("lines", "asked", "kind", "words"),
    [
        (replace(FORMAT, bands=2), {}, CubeError, "the source has fewer bands than the network"),
        (FORMAT, {"bands": [0, 1]}, CubeError, "fewer bands than the network has"),
        (FORMAT, {"bands": [0, 1, 3]}, InputError, "the source has no such band"),
        (FORMAT, {"bands": [-1, 0, 1]}, InputError, "the source has no such band"),
        (FORMAT, {"bands": [0, 1, 1]}, InputError, "a band is chosen twice"),
        (UNSAID, {}, CubeError, "a cube of integers needs a scale"),
        (replace(FORMAT, dtype=np.dtype(np.uint32)), {}, InputError, "does not hold every uint32"),
    ],
)
def test_what_does_not_go_together_is_refused(
    bundle: runtime.Bundle,
    tmp_path: Path,
    lines: LineFormat,
    asked: dict[str, Any],
    kind: type[DeployError],
    words: str,
) -> None:
    with pytest.raises(kind, match=words):
        runtime.open_stream(bundle, Script([], lines), record=tmp_path / "raw", **asked)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        (UNSAID, {"scale": 4095}),
        (UNSAID, {"radiometry": {"scale": 4095}}),
        (FLOATS, {}),
        (FORMAT, {"output": "float32"}),
    ],
)
def test_what_goes_together_is_taken(bundle: runtime.Bundle, lines: LineFormat, asked: dict[str, Any]) -> None:
    assert runtime.open_stream(bundle, Script([1, 2], lines), **asked).run().count.issued == 2


def test_a_stream_that_memory_does_not_hold_is_refused(
    bundle: runtime.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "available_memory", lambda: 1 << 10)
    with pytest.raises(MachineError, match="0 are free"):
        runtime.open_stream(bundle, Script([]), record=tmp_path / "raw")


def test_files_are_let_go_where_the_stream_cannot_be_made(bundle: runtime.Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        # The record's lock would still be held at the second try.
        with pytest.raises(DeployError) as refused:
            runtime.open_stream(bundle, Script([]), record=tmp_path / "raw", restored=tmp_path / "file")
        assert "another process" not in str(refused.value)


def test_a_scale_stands_in_the_record_and_sinks_keep_their_names(bundle: runtime.Bundle, tmp_path: Path) -> None:
    sinks = [NamedSink("mine", Callback(lambda block: None), "block"), lambda block: None]
    stream = runtime.open_stream(bundle, Script([1, 2]), record=tmp_path / "raw", scale=5000, sinks=sinks)
    assert {"mine", "sink-2"} <= set(stream.snapshot().queues)
    stream.run()
    assert "5000" in (tmp_path / "raw/lines.hdr").read_text()


@pytest.mark.parametrize(("kind", "bands", "groups"), [("coded", 3, True), ("coded", 6, True), ("rgb", 3, False)])
def test_planes_of_another_kind_come_out_as_wide_as_the_lines(
    bundle: runtime.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, bands: int, groups: bool
) -> None:
    signature = replace(SMALL, measured=replace(SMALL.measured, kind=kind), band_groups=groups)
    monkeypatch.setattr(bundle, "manifest", bundle.manifest.model_copy(update={"signature": signature}))
    source = Script(range(40), replace(FORMAT, bands=bands, samples=40))
    result = runtime.open_stream(bundle, source, restored=tmp_path).run()
    assert result.failures == {} and result.count.restored == 40
    assert read_cube(tmp_path / "restored.hdr").cube.shape == (bands, 40, 40)
