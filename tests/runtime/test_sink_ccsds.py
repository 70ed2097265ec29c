"""Space packets, read back by an independent reader (ccsdspy) with the fields that the documentation lists."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from binascii import crc_hqx
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import ccsdspy
import numpy as np
import pytest
from ccsdspy import PacketArray, PacketField
from ccsdspy.utils import iter_packet_bytes, split_by_apid
from numpy.typing import NDArray

from runtime.errors import InputError, MachineError
from runtime.lines import Flag, LineFormat
from runtime.sinks.ccsds import SpacePackets
from runtime.sinks.contract import Sink, StreamFacts
from runtime.sinks.packet_targets import PacketFile
from tests.contracts.sink import FACTS, SinkContract, block_of

TIME = [
    PacketField("P_FIELD", "uint", 8),
    PacketField("DAYS", "uint", 16),
    PacketField("MS", "uint", 32),
    PacketField("PS", "uint", 32),
    PacketField("VERSION", "uint", 8),
]
PLACE = [
    PacketField(name, "uint", 8 * size)
    for name, size in (
        *(("SEQUENCE", 8), ("FRAME_ID", 8), ("FLAGS", 4), ("FRAME", 4)),
        *(("BANDS", 2), ("SAMPLES", 2), ("TYPE", 1), ("SPARE", 1)),
        *(("FIRST_BAND", 2), ("FIRST_SAMPLE", 2), ("BANDS_HERE", 2), ("SAMPLES_HERE", 2)),
    )
]
CRC = PacketField("CRC", "uint", 16)
COUNTS = ("IN", "RECORDED", "RESTORED", "PASSED", "DROPPED", "INCOMPLETE", "PENDING", "LOST")
WATCH = ("SUSPECT", "TESTS", "FAILED", "REPAIRS")
FIGURES = ("RATE_IN", "RATE_RESTORED", "P50", "P95", "P99", "TEMPERATURE")
UNKNOWN = (1 << 64) - 1
TYPES = {1: "u1", 2: "i2", 3: "i4", 4: "f4", 5: "f8", 12: "u2", 13: "u4", 14: "i8", 15: "u8"}


class TestFile(SinkContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[StreamFacts], Sink]:
        return lambda facts: SpacePackets(facts, tmp_path / "lines.ccsds")


class TestDatagrams(SinkContract):
    @pytest.fixture
    def opened(self) -> Callable[[StreamFacts], Sink]:
        return lambda facts: SpacePackets(facts, 47_123)


def packets_of(data: bytes) -> dict[str, NDArray[Any]]:
    """Line packets by ccsdspy; values as bytes."""
    values = PacketArray(name="VALUES", data_type="uint", bit_length=8, array_shape="expand")
    layout = ccsdspy.VariableLength([*TIME, *PLACE, values, CRC])
    read: dict[str, NDArray[Any]] = layout.load(BytesIO(data), include_primary_header=True)
    return read


def counts_of(data: bytes) -> dict[str, NDArray[Any]]:
    fields = [PacketField(name, "uint", 64) for name in COUNTS] + [PacketField(name, "float", 32) for name in FIGURES]
    fields += [PacketField("ON", "uint", 8), *(PacketField(name, "uint", 64) for name in WATCH)]
    read: dict[str, NDArray[Any]] = ccsdspy.FixedLength([*TIME, *fields, CRC]).load(
        BytesIO(data), include_primary_header=True
    )
    return read


def lines_of(data: bytes) -> tuple[dict[int, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Lines by sequence number, put together by the places in the packets; every value must come once."""
    read = packets_of(data)
    lines: dict[int, NDArray[Any]] = {}
    filled: dict[int, NDArray[Any]] = {}
    for i, number in enumerate(read["SEQUENCE"]):
        dtype = np.dtype(TYPES[int(read["TYPE"][i])])
        shape = (int(read["BANDS"][i]), int(read["SAMPLES"][i]))
        line = lines.setdefault(int(number), np.zeros(shape, dtype))
        seen = filled.setdefault(int(number), np.zeros(shape, int))
        first, start = int(read["FIRST_BAND"][i]), int(read["FIRST_SAMPLE"][i])
        here, wide = int(read["BANDS_HERE"][i]), int(read["SAMPLES_HERE"][i])
        place = (slice(first, first + here), slice(start, start + wide))
        raw = np.asarray(read["VALUES"][i], np.uint8).tobytes()
        line[place] = np.frombuffer(raw, dtype.newbyteorder(">")).reshape(here, wide)
        seen[place] += 1
    assert all((seen == 1).all() for seen in filled.values())
    return lines, read


@pytest.mark.parametrize("packet_bytes", [65542, 120, 108])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "u8"])
def test_lines_come_back_equal(tmp_path: Path, dtype: str, packet_bytes: int) -> None:
    facts = StreamFacts(LineFormat(5, 12, np.dtype(dtype)))
    path = tmp_path / "lines.ccsds"
    block = block_of(3, 4, facts, Flag.RESTORED | Flag.GAP)
    with SpacePackets(facts, path, packet_bytes=packet_bytes) as sink:
        sink.write(block)
    assert max(map(len, iter_packet_bytes(str(path)))) <= packet_bytes
    lines, read = lines_of(path.read_bytes())
    for i in range(4):
        np.testing.assert_array_equal(lines[3 + i], block.values[i])
    assert set(read["FRAME_ID"]) == set(block.frame_id) and set(read["FLAGS"]) == {258}
    assert set(read["CCSDS_APID"]) == {100} and set(read["CCSDS_SECONDARY_FLAG"]) == {1}
    assert set(read["FRAME"]) == {3} and set(read["VERSION"]) == {1} and set(read["SPARE"]) == {0}
    np.testing.assert_array_equal(read["CCSDS_SEQUENCE_COUNT"], np.arange(len(read["SEQUENCE"])))
    assert all(crc_hqx(packet, 0xFFFF) == 0 for packet in iter_packet_bytes(str(path)))


def test_segments_are_marked_first_continuing_and_last(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path, packet_bytes=58 + 2 * 12 * 2 + 3) as sink:
        sink.write(block_of(0, 2))
    with SpacePackets(FACTS, path, packet_bytes=65542) as sink:
        sink.write(block_of(2, 1))
    read = packets_of(path.read_bytes())
    assert read["CCSDS_SEQUENCE_FLAG"].tolist() == [1, 0, 2, 1, 0, 2, 3]
    assert read["FIRST_BAND"].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert read["BANDS_HERE"].tolist() == [2, 2, 1, 2, 2, 1, 5]


def test_a_band_larger_than_a_packet_is_cut_within(tmp_path: Path) -> None:
    facts = StreamFacts(LineFormat(2, 100, np.dtype(np.uint16)))
    path = tmp_path / "lines.ccsds"
    block = block_of(0, 2, facts)
    with SpacePackets(facts, path, packet_bytes=58 + 2 * 40) as sink:
        sink.write(block)
    lines, read = lines_of(path.read_bytes())
    assert read["FIRST_SAMPLE"].tolist() == [0, 40, 80] * 4
    assert read["SAMPLES_HERE"].tolist() == [40, 40, 20] * 4
    for i in range(2):
        np.testing.assert_array_equal(lines[i], block.values[i])


def test_the_time_is_kept_to_the_nanosecond(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    block = block_of(0, 3)
    block.utc_ns[:] = (0, 86_399_999_999_999, 1_790_000_000_123_456_789)
    with SpacePackets(FACTS, path) as sink:
        sink.write(block)
    read = packets_of(path.read_bytes())
    ns = (
        (read["DAYS"].astype(object) - 4383) * 86_400_000_000_000
        + read["MS"].astype(object) * 1_000_000
        + read["PS"].astype(object) // 1000
    )
    assert ns.tolist() == block.utc_ns.tolist()
    assert set(read["P_FIELD"]) == {0x42}
    # The first day of 1970 counted from 1958, by the calendar.
    assert np.datetime64("1958-01-01") + int(read["DAYS"][0]) == np.datetime64("1970-01-01")


def test_a_time_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    block = block_of(0, 1)
    block.utc_ns[0] = (1 << 64) - 1
    with SpacePackets(FACTS, tmp_path / "lines.ccsds") as sink, pytest.raises(MachineError, match="beyond the year"):
        sink.write(block)


def test_the_count_wraps_and_a_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    facts = StreamFacts(LineFormat(1, 1, np.dtype(np.uint8)))
    path = tmp_path / "lines.ccsds"
    with SpacePackets(facts, path) as sink:
        sink.write(block_of(0, 16_383, facts))
        sink.tell({})
    with SpacePackets(facts, path) as sink:
        sink.write(block_of(16_383, 3, facts))
        sink.tell({})
    with path.open("rb") as file:
        parts = split_by_apid(file)
    read = packets_of(parts[100].read())
    assert read["CCSDS_SEQUENCE_COUNT"][-4:].tolist() == [16_382, 16_383, 0, 1]
    np.testing.assert_array_equal(read["SEQUENCE"], np.arange(16_386))
    assert counts_of(parts[101].read())["CCSDS_SEQUENCE_COUNT"].tolist() == [0, 1]


def test_counts_are_fixed_fields(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    lines = {"in": 1 << 40, "recorded": 2, "restored": 3, "passed": 4, "dropped": 5, "incomplete": 6, "pending": 7}
    full = {
        "lines": lines,
        "rates": {"in": 330.5, "restored": 329.25},
        "latency_s": {"p50": 0.25, "p95": 0.5, "p99": 1.5},
        "source": {"temperature_c": -12.5, "underruns": 3},
        "restoration": {"state": "off", "suspect_lines": 7, "tests": {"tests": 9, "failed": 2, "repairs": 1}},
    }
    with SpacePackets(FACTS, path) as sink:
        sink.tell(full, utc_ns=4000 * 86_400_000_000_000 + 1_000_000)
        sink.write(block_of(0, 2))
        sink.tell({})
    with path.open("rb") as file:
        data = split_by_apid(file)[101].read()
    assert len(data) == 2 * 141
    read = counts_of(data)
    assert [int(read[name][0]) for name in COUNTS] == [1 << 40, 2, 3, 4, 5, 6, 7, 0]
    assert [float(read[name][0]) for name in FIGURES] == [330.5, 329.25, 0.25, 0.5, 1.5, -12.5]
    assert (int(read["DAYS"][0]), int(read["MS"][0]), int(read["PS"][0])) == (8383, 1, 0)
    assert [int(read[name][1]) for name in COUNTS] == [UNKNOWN] * 7 + [0]
    assert np.isnan([float(read[name][1]) for name in FIGURES]).all()
    assert read["ON"].tolist() == [0, 255]
    assert [[int(read[name][row]) for name in WATCH] for row in (0, 1)] == [[7, 9, 2, 1], [UNKNOWN] * 4]
    assert set(read["CCSDS_APID"]) == {101}


def test_the_documentation_names_these_places() -> None:
    text = (Path(__file__).parents[2] / "docs" / "stream-messages.md").read_text()
    offset = 6
    for field in TIME:
        assert f"\n| {offset} | {field._bit_length // 8} |" in text
        offset += field._bit_length // 8
    for field in PLACE:
        assert f"\n| {offset} | {field._bit_length // 8} |" in text
        offset += field._bit_length // 8
    assert f"\n| {offset} | | values" in text


@pytest.mark.parametrize("torn", [1, 5, 6, 7, 60, 177, "zeros", "zeroed packet", "bad packet"])
def test_what_a_crash_tore_is_cut_off(tmp_path: Path, torn: int | str) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(0, 3))
    whole = path.read_bytes()
    one = len(whole) // 3
    assert one == 178
    spoilt = bytearray(whole)
    left = 3
    if torn == "zeros":
        spoilt += bytes(200_000)
    elif torn == "zeroed packet":
        spoilt[-40:] = bytes(40)
        left = 2
    elif torn == "bad packet":
        spoilt[-30] ^= 4
        left = 2
    else:
        spoilt += whole[:torn]
    path.write_bytes(spoilt)
    cut = len(spoilt) - left * one
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / path.name).write_bytes(spoilt)
    file = PacketFile(tmp_path / "copy" / path.name, (100, 101))
    assert file.resumed == f"lines.ccsds: not closed cleanly: {cut} bytes of no whole packet are cut off"
    file.close()
    with SpacePackets(FACTS, path) as sink:
        assert path.read_bytes() == whole[: left * one]
        sink.write(block_of(3, 1))
    lines, read = lines_of(path.read_bytes())
    assert sorted(lines) == [*range(left), 3]
    assert read["CCSDS_SEQUENCE_COUNT"].tolist() == [*range(left), 3]


@pytest.mark.parametrize("content", [b"n", b"notes", b"notes of somebody", bytes(10), bytes(100_000)])
def test_another_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"notes\.txt: byte 0 begins no packet of this stream; name another"):
        SpacePackets(FACTS, path)
    assert path.read_bytes() == content


def test_packets_of_other_apids_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path, apid=7, housekeeping_apid=8) as sink:
        sink.write(block_of(0, 2))
    whole = path.read_bytes()
    with pytest.raises(InputError, match="give the APIDs with which it was begun"):
        SpacePackets(FACTS, path)
    with SpacePackets(FACTS, path, apid=7, housekeeping_apid=8) as sink:
        sink.tell({})
        sink.write(block_of(2, 1))
    whole = path.read_bytes()
    with pytest.raises(InputError, match="byte 356 begins no packet of this stream"):
        SpacePackets(FACTS, path, apid=7, housekeeping_apid=9)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("position", "good"), [(5 * 178, 5), (2 * 178 + 2, 2), (3 * 178 + 10, None)])
def test_a_file_damaged_before_its_end_is_kept_and_a_new_one_goes_on(
    tmp_path: Path, position: int, good: int | None
) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(0, 10))
    spoilt = bytearray(path.read_bytes())
    spoilt[position : position + 100] = bytes(100)
    path.write_bytes(spoilt)
    (tmp_path / "lines.ccsds.damaged").write_text("of an earlier day")
    file = PacketFile(path, (100, 101))
    aside = tmp_path / "lines.ccsds.damaged-1"
    if good is None:
        assert not file.resumed and not aside.exists(), "within a packet: its checksum tells"
    else:
        assert file.resumed.startswith("lines.ccsds: damaged at byte ")
        assert file.resumed.endswith("of 1780: kept as lines.ccsds.damaged-1, a new one begun")
        assert aside.read_bytes() == spoilt and path.read_bytes() == b"" and file.counts() == {100: good}
    with pytest.raises(InputError, match="another program writes to it"):
        PacketFile(path, (100, 101))
    file.close()
    assert (tmp_path / "lines.ccsds.damaged").read_text() == "of an earlier day"


def test_lines_go_on_in_the_new_file_with_the_counts_of_the_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(0, 10))
    spoilt = path.read_bytes()
    path.write_bytes(spoilt[: 5 * 178] + b"x" * 300 + spoilt[7 * 178 :])
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(10, 2))
    lines, read = lines_of(path.read_bytes())
    assert sorted(lines) == [10, 11] and read["CCSDS_SEQUENCE_COUNT"].tolist() == [5, 6]


def test_whole_packets_behind_a_damaged_length_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(0, 10))
    spoilt = bytearray(path.read_bytes())
    spoilt[5 * 178 + 4] ^= 0x40
    path.write_bytes(spoilt)
    with SpacePackets(FACTS, path) as sink:
        assert sink.resumed.startswith("lines.ccsds: damaged at byte 890 of 1780: kept as")
    assert (tmp_path / "lines.ccsds.damaged").read_bytes() == spoilt


def test_a_file_is_ours_by_any_of_two_packets(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(0, 3))
    spoilt = bytearray(path.read_bytes())
    spoilt[40] ^= 1
    path.write_bytes(bytes(spoilt) + b"and something else")
    PacketFile(path, (100, 101)).close()
    assert (tmp_path / "lines.ccsds.damaged").read_bytes() == bytes(spoilt) + b"and something else"


def test_a_file_of_which_no_packet_is_right_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path) as sink:
        sink.write(block_of(0, 3))
    spoilt = bytearray(path.read_bytes())
    spoilt[40] ^= 1
    spoilt[2 * 178 + 40] ^= 1
    path.write_bytes(bytes(spoilt) + b"and something else")
    with pytest.raises(InputError, match="byte 534 begins no packet of this stream; name another"):
        PacketFile(path, (100, 101))
    assert path.read_bytes() == bytes(spoilt) + b"and something else" and list(tmp_path.iterdir()) == [path]


def test_two_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    with SpacePackets(FACTS, path), pytest.raises(InputError, match="another program writes to it"):
        SpacePackets(FACTS, path)
    SpacePackets(FACTS, path).close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.ccsds"
    code = f"""
import resource, signal
from pathlib import Path
from runtime.errors import InputError
from runtime.sinks.ccsds import SpacePackets
from tests.contracts.sink import FACTS, block_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    SpacePackets(FACTS, Path({str(path)!r}), packet_bytes=110).write(block_of(0, 20))
except InputError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert "packets cannot be written: File too large; check folder" in done.stdout, done.stderr
    lines, read = lines_of(path.read_bytes())
    assert len(lines) > 0 and read["CCSDS_SEQUENCE_FLAG"][-1] == 2
    for number, line in lines.items():
        np.testing.assert_array_equal(line, block_of(0, 20).values[number])


def test_datagrams_hold_one_packet_each() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ground:
        ground.bind(("127.0.0.1", 0))
        ground.settimeout(30)
        block = block_of(0, 3)
        with SpacePackets(FACTS, ground.getsockname()[1], packet_bytes=58 + 2 * 12 * 2 + 3) as sink:
            sink.write(block)
            sink.tell({"lines": {"in": 3}})
        packets = [ground.recv(65536) for _ in range(10)]
    lines, _ = lines_of(b"".join(packets[:9]))
    for i in range(3):
        np.testing.assert_array_equal(lines[i], block.values[i])
    assert int(counts_of(packets[9])["IN"][0]) == 3


def test_nobody_listening_stops_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with SpacePackets(FACTS, port) as sink:
        for number in range(20):
            sink.write(block_of(number, 1))


def test_a_network_that_is_away_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with SpacePackets(FACTS, 47_123) as sink:

        class Away:
            def sendto(self, data: bytes, address: object) -> None:
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

        monkeypatch.setattr(sink._outlet, "_socket", Away())
        sink.write(block_of(0, 4))
        assert sink.lost == 4
        monkeypatch.undo()


def test_a_packet_larger_than_a_datagram_is_refused() -> None:
    facts = StreamFacts(LineFormat(1, 40_000, np.dtype(np.uint16)))
    with pytest.raises(InputError, match=r"packet bytes: .*\(found 65508\); give 60 to 65507"):
        SpacePackets(facts, 47_123, packet_bytes=65_508)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ground:
        ground.bind(("127.0.0.1", 0))
        ground.settimeout(30)
        block = block_of(0, 1, facts)
        with SpacePackets(facts, ground.getsockname()[1]) as sink:
            sink.write(block)
        packets = [ground.recv(65536) for _ in range(2)]
    assert len(packets[0]) == 65_506
    np.testing.assert_array_equal(lines_of(b"".join(packets))[0][0], block.values[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"apid": 2047}, r"apid: not two APIDs \(found 2047\); 0 to 2046"),
        ({"apid": -1}, r"apid: not two APIDs \(found -1\)"),
        ({"apid": 5, "housekeeping_apid": 5}, r"apid: not two APIDs \(found 5\)"),
        ({"packet_bytes": 59}, r"packet bytes: not a size of packets \(found 59\); give 60 to 65542"),
        ({"packet_bytes": 65543}, r"packet bytes: not a size of packets \(found 65543\); give 60 to 65542"),
    ],
)
def test_mistakes_are_told_at_the_start(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SpacePackets(FACTS, tmp_path / "lines.ccsds", **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 70_000, "u2"), (3, 3, "f2")])
def test_lines_that_do_not_fit_are_refused(tmp_path: Path, shape: tuple[int, int, str]) -> None:
    facts = StreamFacts(LineFormat(shape[0], shape[1], np.dtype(shape[2])))
    with pytest.raises(InputError, match="lines that do not fit into packets"):
        SpacePackets(facts, tmp_path / "lines.ccsds")


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(MachineError, match=r"ccsds: no such address: .*300\.300\.300\.300\.invalid:5"):
        SpacePackets(FACTS, (5, "300.300.300.300.invalid"))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "spacepackets.ccsds.spacepacket", None)
    with pytest.raises(MachineError, match=r'spacepackets is not installed; pip install "damp-deploy\[stream\]"'):
        SpacePackets(FACTS, tmp_path / "lines.ccsds")
