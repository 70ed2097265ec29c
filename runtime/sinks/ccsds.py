"""Restored lines and counts as CCSDS space packets, to a file or as UDP datagrams.

Space Packet Protocol, CCSDS 133.0-B-2; times in CCSDS day segmented code, CCSDS 301.0-B-4, 3.3; checksum as the packet
error control of ECSS-E-ST-70-41C, annex B. docs/stream-messages.md lists the fields.
"""

import time
from binascii import crc_hqx
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from struct import Struct
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, MachineError
from runtime.files.envi_header import CODE_OF_TYPE

from .contract import Block, Sink, SinkOptions, StreamFacts
from .packet_targets import COUNTS, PRIMARY_BYTES, PacketDatagrams, PacketFile, PacketTarget

VERSION, HOUSEKEEPING_VERSION = 1, 2
"""Of the fields behind the primary header."""
APID, HOUSEKEEPING_APID = 100, 101
HIGHEST_APID = 2046
"""2047 is for idle packets."""
PACKET_BYTES = 65507
"""The largest datagram of UDP over IPv4; a packet may have 65542."""
LARGEST_PACKET, CHECK_BYTES = 65542, 2

TIME = Struct(">BHII")
P_FIELD = 0b0_100_0_0_10
"""Day segmented, epoch 1958, days of 16 bits, picoseconds of the millisecond."""
DAYS_TO_1970, DAY_NS = 4383, 86_400_000_000_000
LINE = Struct(">BQQIIHHBBHHHH")
"""Version, sequence number, frame id, flags, frame, bands, samples, data type, spare, first band, first sample, bands
and samples that are here."""
LINE_BYTES = PRIMARY_BYTES + TIME.size + LINE.size + CHECK_BYTES
HOUSEKEEPING = Struct(">B8Q6fB4Q")
"""Version, the counts of COUNTED, packets that the network did not take, the figures of MEASURED, whether lines are
restored, the counts of TESTED."""
COUNTED = ("in", "recorded", "restored", "passed", "dropped", "incomplete", "pending")
MEASURED = (
    ("rates", "in"),
    ("rates", "restored"),
    ("latency_s", "p50"),
    ("latency_s", "p95"),
    ("latency_s", "p99"),
    ("source", "temperature_c"),
)
STATES = {"off": 0, "on": 1}
TESTED = ("tests", "failed", "repairs")
UNKNOWN = (1 << 64) - 1
"""A count that is not known; a figure that is not known is NaN."""


class SpacePackets(Sink):
    """Every restored line as one packet, or as first, continuing and last segment where it is larger than a packet.

    Args:
        facts: of the stream.
        target: a file, or port (and host) for UDP; a bare port is one of 127.0.0.1.
        apid: of the lines.
        housekeeping_apid: of the counts.
        packet_bytes: limit of a whole packet of lines; 1472 keeps a datagram unfragmented on Ethernet.

    Raises:
        InputError: an APID, the limit, or the size or type of the lines does not fit; see `PacketFile`.
        MachineError: spacepackets is not installed; see `PacketDatagrams`.
    """

    stays_open = True

    def __init__(
        self,
        facts: StreamFacts,
        target: Path | int | tuple[int, str],
        *,
        apid: int = APID,
        housekeeping_apid: int = HOUSEKEEPING_APID,
        packet_bytes: int = PACKET_BYTES,
    ) -> None:
        try:
            from spacepackets.ccsds.spacepacket import PacketType, SequenceFlags, SpacePacketHeader
        except ImportError as error:
            raise MachineError(
                "spacepackets is not installed", key="ccsds", remedy='pip install "damp-deploy[stream]"'
            ) from error
        known = facts.format
        for one in (apid, housekeeping_apid):
            if not 0 <= one <= HIGHEST_APID or apid == housekeeping_apid:
                raise InputError("not two APIDs", key="apid", value=one, remedy=f"0 to {HIGHEST_APID}, two of them")
        least = LINE_BYTES + known.dtype.itemsize
        most = LARGEST_PACKET if isinstance(target, Path) else PACKET_BYTES
        if not least <= packet_bytes <= most:
            remedy = f"give {least} to {most}"
            raise InputError("not a size of packets", key="packet bytes", value=packet_bytes, remedy=remedy)
        code = CODE_OF_TYPE.get(f"{known.dtype.kind}{known.dtype.itemsize}")
        if max(known.shape) > 0xFFFF or code is None:
            what = f"{known.bands} bands x {known.samples} samples of {known.dtype.name}"
            raise InputError("lines that do not fit into packets", key="format", value=what, remedy="use another sink")
        self._header, self._flags, self._type = SpacePacketHeader, SequenceFlags, PacketType.TM
        self._apid, self._housekeeping_apid = apid, housekeeping_apid
        self._code = code
        self._pieces = list(_pieces(known.bands, known.samples, (packet_bytes - LINE_BYTES) // known.dtype.itemsize))
        if isinstance(target, Path):
            self._outlet: PacketTarget = PacketFile(target, (apid, housekeeping_apid))
        else:
            self._outlet = PacketDatagrams(*(target if isinstance(target, tuple) else (target,)))
        self.resumed = self._outlet.resumed
        self._counts = {apid: 0, housekeeping_apid: 0, **self._outlet.counts()}
        self._lock = Lock()
        self._closed = False

    @property
    def lost(self) -> int:
        """Packets that the network did not take."""
        return self._outlet.lost

    def write(self, block: Block) -> None:
        """Send the lines.

        Raises:
            InputError: the file cannot be written; it ends with a whole line.
            MachineError: a packet cannot be sent, a time is beyond the year 2137, or the sink is closed.
        """
        self._require_open()
        for index in range(len(block.sequence)):
            # Line by line, so that counts from another thread need not wait for a whole block.
            with self._lock:
                self._outlet.send([self._line(block, index, piece) for piece in range(len(self._pieces))])

    def tell(self, snapshot: Mapping[str, Any], utc_ns: int | None = None) -> None:
        """Send the counts as housekeeping, from any thread; keys of `snapshot` may be missing.

        Raises:
            as `write`.
        """
        counts = _counts(snapshot.get("lines", {}), COUNTED)
        restoration = snapshot.get("restoration", {})
        watch = [*_counts(restoration, ("suspect_lines",)), *_counts(restoration.get("tests", {}), TESTED)]
        state = STATES.get(restoration.get("state"), 255)
        figures = [snapshot.get(part, {}).get(name) for part, name in MEASURED]
        with self._lock:
            self._require_open()
            known = (np.nan if f is None else f for f in figures)
            data = HOUSEKEEPING.pack(HOUSEKEEPING_VERSION, *counts, self.lost, *known, state, *watch)
            stamp = _time(time.time_ns() if utc_ns is None else utc_ns)
            self._outlet.send([self._packet(self._housekeeping_apid, self._flags.UNSEGMENTED, stamp + data)])

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._outlet.close()

    def _require_open(self) -> None:
        if self._closed:
            raise MachineError("the sink is closed", key="ccsds", remedy="open it again")

    def _line(self, block: Block, index: int, piece: int) -> bytes:
        bands, samples = block.values.shape[1:]
        first_band, first_sample, here, wide = self._pieces[piece]
        fields = LINE.pack(
            VERSION,
            int(block.sequence[index]),
            int(block.frame_id[index]),
            int(block.flags[index]),
            block.frame & 0xFFFFFFFF,
            *(bands, samples, self._code, 0, first_band, first_sample, here, wide),
        )
        values = block.values[index, first_band : first_band + here, first_sample : first_sample + wide]
        flags = self._flags.UNSEGMENTED
        if len(self._pieces) > 1:
            ends = {0: self._flags.FIRST_SEGMENT, len(self._pieces) - 1: self._flags.LAST_SEGMENT}
            flags = ends.get(piece, self._flags.CONTINUATION_SEGMENT)
        return self._packet(self._apid, flags, _time(int(block.utc_ns[index])) + fields + _big_endian(values))

    def _packet(self, apid: int, flags: Any, data: bytes) -> bytes:
        count = self._counts[apid]
        self._counts[apid] = (count + 1) % COUNTS
        # The length field holds one less than the bytes behind the primary header.
        length = len(data) + CHECK_BYTES - 1
        packet = bytes(self._header(self._type, apid, count, length, True, flags).pack()) + data
        return packet + crc_hqx(packet, 0xFFFF).to_bytes(CHECK_BYTES, "big")


def _counts(found: Mapping[str, Any], names: Sequence[str]) -> list[int]:
    return [UNKNOWN if found.get(name) is None else int(found[name]) for name in names]


def _time(utc_ns: int) -> bytes:
    days, rest = divmod(utc_ns, DAY_NS)
    if days + DAYS_TO_1970 > 0xFFFF:
        raise MachineError("a time beyond the year 2137", key="utc_ns", value=utc_ns, remedy="set the clock")
    return TIME.pack(P_FIELD, days + DAYS_TO_1970, rest // 1_000_000, rest % 1_000_000 * 1000)


def _pieces(bands: int, samples: int, values: int) -> Iterator[tuple[int, int, int, int]]:
    """First band, first sample, bands and samples of packets with at most `values` values: whole bands if they fit."""
    if samples <= values:
        step = values // samples
        for band in range(0, bands, step):
            yield band, 0, min(step, bands - band), samples
        return
    for band in range(bands):
        for sample in range(0, samples, values):
            yield band, sample, 1, min(values, samples - sample)


def _big_endian(values: NDArray[np.generic]) -> bytes:
    return values.astype(values.dtype.newbyteorder(">"), copy=False).tobytes()


def open_sink(target: str, facts: StreamFacts, options: SinkOptions) -> SpacePackets:
    """Packets to `target`, a file or `HOST:PORT`. Raises DeployError."""
    host, colon, port = target.rpartition(":")
    digits = port.isascii() and port.isdigit()
    if digits and not colon:
        remedy = f"127.0.0.1:{target}"
        raise InputError("neither a file nor HOST:PORT", key="--packets", value=target, remedy=remedy)
    by_network = digits and "/" not in target
    if by_network and not 0 < int(port) < 65536:
        raise InputError("no such port", key="--packets", value=target, remedy="HOST:PORT, 1 to 65535")
    sink = SpacePackets(facts, (int(port), host.strip("[]") or "127.0.0.1") if by_network else Path(target))
    sink.address = target
    return sink
