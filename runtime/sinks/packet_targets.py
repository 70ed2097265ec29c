"""Where CCSDS space packets go: into a file or out as UDP datagrams.

Of a packet they know its primary header (CCSDS 133.0-B-2, 4.1.3) and the checksum at its end; the rest is made in
`runtime.sinks.ccsds`.
"""

import errno
import fcntl
import itertools
import os
import socket
import time
from abc import ABC, abstractmethod
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.durable import sync_folder
from runtime.errors import InputError, MachineError, plain

PRIMARY_BYTES = 6
"""Of the primary header."""
COUNTS = 1 << 14
"""Sequence counts of an APID; then they begin at 0 again."""
AWAY = {
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN),
    *(errno.ECONNREFUSED, errno.ENOBUFS, errno.EAGAIN),
}
"""A network that may come back."""
SYNC_S = 1.0


class PacketTarget(ABC):
    """Where packets go.

    Attributes:
        lost: packets that were not taken.
        resumed: what was found of an unclean end and done about it, for the log; empty after a clean one.
    """

    lost: int = 0
    resumed: str = ""

    @abstractmethod
    def counts(self) -> Mapping[int, int]:
        """By APID, the sequence count that comes next, where it goes on from an earlier run."""

    @abstractmethod
    def send(self, packets: Sequence[bytes]) -> None:
        """Give away whole packets, all of one line; raises DeployError."""

    @abstractmethod
    def close(self) -> None:
        """May be called twice."""


class PacketFile(PacketTarget):
    """Packets one behind the other in a file; goes on where an earlier run ended and cuts off what is torn there.

    A file of ours that is damaged before its end is renamed to NAME.damaged, NAME.damaged-1, ... and a new one begun,
    with the sequence counts that follow the last whole packet before the damage. `resumed` tells either.

    Args:
        path: of the file; made where there is none.
        apids: that may be in it.

    Raises:
        InputError: it cannot be opened, is in use, or holds something else than packets of these APIDs.
    """

    def __init__(self, path: Path, apids: Sequence[int]) -> None:
        self._path = path
        self._next: dict[int, int] = {}
        self._synced = time.monotonic()
        self._file = -1
        try:
            self._open(0)
            self._size = self._resume(frozenset(apids))
            os.ftruncate(self._file, self._size)
        except OSError as error:
            self.close()
            raise self._refused(error) from error
        except InputError:
            self.close()
            raise

    def counts(self) -> Mapping[int, int]:
        return self._next

    def send(self, packets: Sequence[bytes]) -> None:
        data = memoryview(b"".join(packets))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._size + done)
            self._size += len(data)
            if time.monotonic() - self._synced >= SYNC_S:
                os.fdatasync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise self._refused(error) from error

    def close(self) -> None:
        if self._file >= 0:
            with suppress(OSError):
                os.fdatasync(self._file)
            os.close(self._file)
            self._file = -1

    def _open(self, flags: int) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _resume(self, apids: frozenset[int]) -> int:
        """Size of the whole packets; each that is found sets the count behind it."""
        size, position, last = os.fstat(self._file).st_size, 0, 0
        before: dict[int, int] = {}
        while position < size:
            head = os.pread(self._file, PRIMARY_BYTES, position)
            if position and len(head) < PRIMARY_BYTES:
                break
            identity, control, length = (int.from_bytes(head[i : i + 2], "big") for i in (0, 2, 4))
            if len(head) < PRIMARY_BYTES or identity & 0xF800 != 0x0800 or identity & 0x7FF not in apids:
                if not self._zeros(position, size):
                    if not self._right(last, size):  # the damage may begin within its header
                        self._next = before
                    self._set_aside(position, size, last)
                    return 0
                break
            end = position + PRIMARY_BYTES + length + 1
            if end > size:
                if not self._right_within(position + 1, size, apids):
                    break
                # Not torn: its length is damaged, and whole packets lie behind it.
                self._set_aside(position, size, last)
                return 0
            before = {**self._next}
            self._next[identity & 0x7FF] = (control + 1) % COUNTS
            position, last = end, position
        # Where the last packet was not yet whole on the disk, whoever has read it knows its count as a bad one.
        left = position if position == last or self._right(last, size) else last
        if left < size:
            self.resumed = f"{self._path.name}: not closed cleanly: {size - left} bytes of no whole packet are cut off"
        return left

    def _zeros(self, position: int, size: int) -> bool:
        """Whether the rest, behind packets of ours, is the zeros that a power cut leaves at an end."""
        while position and position < size:
            piece = os.pread(self._file, 1 << 20, position)
            if any(piece):
                return False
            position += len(piece)
        return position > 0

    def _right(self, position: int, size: int) -> bool:
        """Whether a whole packet of any APID is there, with the right checksum."""
        head = os.pread(self._file, PRIMARY_BYTES, position)
        count = PRIMARY_BYTES + int.from_bytes(head[4:6], "big") + 1
        if len(head) < PRIMARY_BYTES or head[0] & 0xF8 != 0x08 or position + count > size:
            return False
        return crc_hqx(os.pread(self._file, count, position), 0xFFFF) == 0

    def _right_within(self, position: int, size: int, apids: frozenset[int]) -> bool:
        """Whether a whole packet of ours, with the right checksum, begins anywhere in the rest, which is short."""
        rest = os.pread(self._file, size - position, position)
        for place in range(len(rest) - PRIMARY_BYTES):
            identity = int.from_bytes(rest[place : place + 2], "big")
            ours = identity & 0xF800 == 0x0800 and identity & 0x7FF in apids
            if ours and self._right(position + place, size):
                return True
        return False

    def _set_aside(self, position: int, size: int, last: int) -> None:
        """Keep a file of ours that is damaged at `position`, behind the packet at `last`, and begin a new one.

        Raises:
            InputError: it is not a file of ours: it begins otherwise, or has packets of other APIDs.
        """
        ours = position > 0 and (self._right(0, size) or self._right(last, size))
        if not ours or self._right(position, size):
            raise InputError(
                f"byte {position} begins no packet of this stream",
                file=self._path,
                remedy="name another file, or give the APIDs with which it was begun",
            )
        aside = self._path.with_name(f"{self._path.name}.damaged")
        for number in itertools.count(1):
            if not os.path.lexists(aside):
                break
            aside = self._path.with_name(f"{self._path.name}.damaged-{number}")
        self._path.rename(aside)
        damaged, self._file = self._file, -1
        try:
            self._open(os.O_EXCL)
            sync_folder(self._path.parent)
        finally:
            # Until now, so that nobody else takes the name in between.
            os.close(damaged)
        self.resumed = f"{self._path.name}: damaged at byte {position} of {size}: kept as {aside.name}, a new one begun"

    def _refused(self, error: OSError) -> InputError:
        why = "another program writes to it" if error.errno == errno.EWOULDBLOCK else error.strerror or str(error)
        return InputError(
            f"packets cannot be written: {why}", file=self._path, remedy="check folder, permissions and free space"
        )


class PacketDatagrams(PacketTarget):
    """One packet per UDP datagram. A network that is away is waited for: what it does not take is counted in `lost`.

    Raises:
        MachineError: there is no such address.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            self._address: Any = address
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        except (OSError, OverflowError, UnicodeError) as error:
            raise MachineError(
                f"no such address: {plain(error)}", key="ccsds", value=f"{host}:{port}", remedy="check host and port"
            ) from error

    def counts(self) -> Mapping[int, int]:
        return {}

    def send(self, packets: Sequence[bytes]) -> None:
        for packet in packets:
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        try:
            self._socket.sendto(packet, self._address)
        except OSError as error:
            if error.errno not in AWAY:
                raise MachineError(
                    f"a packet cannot be sent: {error.strerror or error}",
                    key="ccsds",
                    value=f"{len(packet)} bytes",
                    remedy="give a smaller packet size" if error.errno == errno.EMSGSIZE else "check the address",
                ) from error
            self.lost += 1

    def close(self) -> None:
        self._socket.close()
