"""A sink is one file with `open_sink` and one line in `SINKS`; this file is one, that `deploy stream --sink` finds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from runtime import sinks
from runtime.errors import InputError, MachineError
from runtime.sinks.ccsds import SpacePackets
from runtime.sinks.contract import Block, Sink, SinkOptions, StreamFacts
from runtime.sinks.quicklook import Quicklook
from runtime.sinks.zeromq import Publisher
from tests.contracts.command import assert_failed, invoke
from tests.contracts.sink import FACTS, SinkContract


class Tally(Sink):
    """Counts lines, and writes them down with the last counts that it was told."""

    stays_open = True

    def __init__(self, path: Path, facts: StreamFacts, options: SinkOptions) -> None:
        self.address, self.resumed = f"tally://{path}", f"{path.name} was there" if path.exists() else ""
        self._path, self._closed = path, False
        self._told: dict[str, Any] = {"bands": facts.format.bands, "nm": options.quicklook_nm, "lines": 0}

    def write(self, block: Block) -> None:
        if self._closed:
            raise MachineError("the sink is closed", key="tally")
        self._told["lines"] += len(block.sequence)

    def tell(self, snapshot: Mapping[str, Any]) -> None:
        self._told["last"] = dict(snapshot.get("lines", {}))

    def close(self) -> None:
        self._closed = True
        self._path.write_text(json.dumps(self._told))


def open_sink(target: str, facts: StreamFacts, options: SinkOptions) -> Tally:
    return Tally(Path(target), facts, options)


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(sinks.SINKS, "tally", __name__)


class TestTally(SinkContract):
    @pytest.fixture
    def opened(self, tmp_path: Path, tally: None) -> Callable[[StreamFacts], Sink]:
        return lambda facts: sinks.open_sink(f"tally:{tmp_path / 'out'}", facts)


def test_a_stream_finds_it_by_its_name_and_gives_it_all_that_a_sink_gets(
    tiny_bundle: Path, tmp_path: Path, tally: None, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    two.touch()
    done = invoke(
        capsys, "stream", tiny_bundle, "--source", "sim:samples=64,lines=128,rate=400,count=200", "--record", tmp_path,
        "--sink", f"tally:{one}", "--sink", f"tally:{two}", "--sink", f"quicklook:{tmp_path / 'now.png'}", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    counts = {**done.json["lines"], "pending": 0}
    for path in (one, two):
        told = json.loads(path.read_text())
        assert told["last"] == counts, "its last word is not the final count"
        assert (told["bands"], told["nm"]) == (31, [640, 550, 460])
        assert 0 < told["lines"] <= counts["in"]
    assert f"tally       tally://{one}" in done.err and f"tally-2     tally://{two}" in done.err
    assert [note for note in done.json["warnings"] if "was there" in note] == ["two was there"]
    assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")
    telemetry = [json.loads(row) for row in (tmp_path / "stream.jsonl").read_text().splitlines()]
    assert {"tally", "tally-2", "quicklook"} <= set(telemetry[-1]["queues"])


def test_those_of_the_house_are_there(tmp_path: Path) -> None:
    targets = {"quicklook": tmp_path / "now.png", "publish": 0, "packets": tmp_path / "lines.ccsds"}
    assert targets.keys() <= sinks.SINKS.keys()
    for (name, target), kind in zip(targets.items(), (Quicklook, Publisher, SpacePackets), strict=True):
        with sinks.open_sink(f"{name}:{target}", FACTS) as sink:
            assert isinstance(sink, kind)
            assert bool(sink.address) == sink.stays_open == (name != "quicklook")
    with sinks.open_sink("packets:127.0.0.1:5005", FACTS) as sink:
        assert sink.address == "127.0.0.1:5005"


@pytest.mark.parametrize("spec", ["quicklook", "picture:now.png", ":now.png", "", "/tmp/now.png"])
def test_what_names_none_is_refused_with_those_there_are(spec: str) -> None:
    with pytest.raises(InputError, match=r"--sink: not a sink .*quicklook:TARGET, publish:TARGET, packets:TARGET"):
        sinks.open_sink(spec, FACTS)


def test_pictures_are_not_made_of_spectra(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "stream", tiny_bundle, "--source", "sim:", "--no-self-test", "--sink", f"pictures:{tmp_path}")
    assert_failed(done, 2, "--sink pictures", "31 of uint16", "--restored")


def test_a_sink_does_not_write_into_the_lines(
    tiny_bundle: Path, tmp_path: Path, tally: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in ("tally:out/lines.idx", "packets:out/lines.idx"):
        done = invoke(
            capsys, "stream", tiny_bundle, "--source", "sim:", "--record", "out", "--no-self-test", "--sink", target
        )
        assert done.code == 2 and "--sink" in done.err and "would be written into the lines" in done.err
