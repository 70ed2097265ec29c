"""Restored lines for other programs, by ZeroMQ: a publisher that never waits for anybody.

A subscriber that is too slow loses whole messages; the stream does not feel it. docs/stream-messages.md says what is in
the messages and holds a subscriber to start from.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError, MachineError
from runtime.plain_json import plain_json

from .contract import Block, Sink, SinkOptions, StreamFacts

VERSION = 1
"""Of the messages; it changes when a subscriber must."""
PORT = 5556
HIGH_WATER = 16
"""Messages that wait for a subscriber before it loses some."""
LINGER_MS = 500
HANDSHAKE_MS = 10_000
SUBSCRIPTION_BYTES = 4096
SUBSCRIBERS = 16
"""Connections at a time; who comes when there are so many is hung up on."""


def header(block: Block) -> dict[str, Any]:
    """The header of a block, as docs/stream-messages.md says; made for JSON."""
    order = block.values.dtype.byteorder
    return {
        "version": VERSION,
        "shape": list(block.values.shape),
        "dtype": block.values.dtype.newbyteorder("=").name,
        "byte_order": {"<": "little", ">": "big"}.get(order, sys.byteorder),
        "sequence": numbers(block.sequence),
        "frame_id": numbers(block.frame_id),
        "utc_ns": block.utc_ns.tolist(),
        "flags": block.flags.tolist(),
        "frame": int(block.frame),
        "metrics": plain_json(block.metrics),
        "experts": plain_json(block.experts),
        "latency_s": plain_json(block.latency_s),
    }


def numbers(counts: NDArray[np.uint64]) -> dict[str, int] | list[int]:
    """`{"first": ..., "count": ...}` where each number is one more than that before, else all of them."""
    listed: list[int] = counts.tolist()
    if listed and listed == list(range(listed[0], listed[0] + len(listed))):
        return {"first": listed[0], "count": len(listed)}
    return listed


def open_sink(target: str, facts: StreamFacts, options: SinkOptions) -> Publisher:
    """A publisher at `target`, a port of this machine or a ZeroMQ address. Raises DeployError."""
    if target.isascii() and target.isdigit():
        return Publisher(facts, port=int(target))
    if "://" not in target:
        remedy = "for example 5556, or tcp://127.0.0.1:5556"
        raise InputError("neither a port nor an address", key="--publish", value=target, remedy=remedy)
    return Publisher(facts, address=target)


class Publisher(Sink):
    """A PUB socket with the topics `restored`, `facts` (every second) and `telemetry`.

    Args:
        facts: of the stream.
        port: TCP port of 127.0.0.1; 0 takes a free one, see `address`.
        address: another ZeroMQ address to bind, for those who mean it: everybody who reaches it can read.
        high_water: messages that wait for each subscriber before it loses some.
        facts_every_s: seconds between two `facts`.

    Attributes:
        address: where the socket is bound.

    Raises:
        InputError: there is no such TCP port.
        MachineError: pyzmq is not installed, or the address cannot be bound.
    """

    stays_open = True

    def __init__(
        self,
        facts: StreamFacts,
        *,
        port: int = PORT,
        address: str | None = None,
        high_water: int = HIGH_WATER,
        facts_every_s: float = 1.0,
    ) -> None:
        try:
            import zmq
        except ImportError as error:
            raise MachineError(
                "pyzmq is not installed", key="zeromq", remedy='pip install "damp-deploy[stream]"'
            ) from error
        wanted = address or f"tcp://127.0.0.1:{port}"
        _check_address(wanted)
        self._zmq: Any = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, high_water)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        # Subscribers send subscriptions, nothing larger.
        self._socket.setsockopt(zmq.MAXMSGSIZE, SUBSCRIPTION_BYTES)
        self._socket.setsockopt(zmq.IPV6, int("[" in wanted))
        self._socket.setsockopt(zmq.BACKLOG, SUBSCRIBERS)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        door = self._socket.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED)
        # A socket in the file system is for this user alone; other permissions are his to give.
        before = os.umask(0o177)
        try:
            self._socket.bind(wanted)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise MachineError(
                f"cannot publish there: {error}",
                key="zeromq",
                value=wanted,
                remedy="another program may have the port; choose another one",
            ) from error
        finally:
            os.umask(before)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._facts = json.dumps(_facts(facts)).encode()
        self._lock = Lock()
        self._sent = 0
        self._stop = Event()
        self._doorkeeper = Thread(target=_keep_door, args=(zmq, door), name="zeromq door", daemon=True)
        self._doorkeeper.start()
        self._thread = Thread(target=self._repeat_facts, args=(facts_every_s,), name="zeromq facts", daemon=True)
        self._thread.start()

    def write(self, block: Block) -> None:
        """Publish the lines.

        Raises:
            MachineError: ZeroMQ failed, or the sink is closed.
        """
        said = {**header(block), "message": self._sent}
        self._send(b"restored", json.dumps(said).encode(), block.values.tobytes())
        self._sent += 1

    def tell(self, snapshot: Mapping[str, Any]) -> None:
        """Publish the counts, as the log has them; from any thread.

        Raises:
            MachineError: as `write`.
        """
        self._send(b"telemetry", json.dumps({"version": VERSION, **plain_json(snapshot)}).encode())

    def close(self) -> None:
        """Give what waits half a second to leave, then let go of the port."""
        self._stop.set()
        self._thread.join(timeout=1)
        with self._lock:
            if not self._socket.closed:
                self._socket.disable_monitor()
                self._doorkeeper.join(timeout=1)
                self._context.destroy(linger=LINGER_MS)

    def _send(self, *parts: bytes) -> None:
        with self._lock:
            if self._socket.closed:
                raise MachineError("the sink is closed", key="zeromq", value=self.address, remedy="open it again")
            try:
                self._socket.send_multipart(parts, flags=self._zmq.DONTWAIT, copy=False)
            except self._zmq.ZMQError as error:
                raise MachineError(
                    f"ZeroMQ failed: {error}", key="zeromq", value=self.address, remedy="free memory and start again"
                ) from error

    def _repeat_facts(self, every_s: float) -> None:
        # What is broken shows itself in `write`, where somebody can be told.
        with suppress(MachineError):
            while True:
                self._send(b"facts", self._facts)
                if self._stop.wait(every_s):
                    return


def _keep_door(zmq: Any, door: Any) -> None:
    """Hang up on whoever connects while `SUBSCRIBERS` are there: libzmq takes everybody, until no file can be opened.

    It tells the descriptor of every connection that it took or lost; what it finds closed it forgets.
    """
    from zmq.utils.monitor import recv_monitor_message

    there = set[int]()
    with suppress(zmq.ZMQError), door:
        while (event := recv_monitor_message(door))["event"] != zmq.EVENT_MONITOR_STOPPED:
            if event["event"] == zmq.EVENT_DISCONNECTED:
                there.discard(event["value"])
            elif len(there) < SUBSCRIBERS:
                there.add(event["value"])
            else:
                _hang_up(event["value"])


def _hang_up(descriptor: int) -> None:
    # What is no connection any more is none of ours.
    with suppress(OSError):
        connection = socket.socket(fileno=descriptor)
        try:
            connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()


def _check_address(address: str) -> None:
    """libzmq takes 99999 for 34463, and `5x` for 5, and deletes what lies at an ipc address, without a word."""
    scheme, _, place = address.partition("://")
    if scheme == "ipc" and os.path.lexists(place) and not Path(place).is_socket():
        raise InputError("there is a file at this address", key="zeromq", value=address, remedy="choose another one")
    port = place.rpartition(":")[2]
    number = port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536
    if scheme == "tcp" and port != "*" and not number:
        raise InputError("no such port", key="zeromq", value=address, remedy="0 to 65535; 0 takes a free one")


def _facts(facts: StreamFacts) -> dict[str, Any]:
    known = facts.format
    return {
        "version": VERSION,
        "bands": known.bands,
        "samples": known.samples,
        "dtype": known.dtype.newbyteorder("=").name,
        "scale": plain_json(known.scale),
        "saturation": plain_json(known.saturation),
        "wavelengths_nm": plain_json(known.wavelengths),
        "ignore_value": plain_json(known.ignore_value),
        "description": facts.description,
        "extra": {},
    }
