"""The publisher, heard by real subscribers, one of them the one of the documentation."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import zmq

from runtime.errors import InputError, MachineError
from runtime.lines import LineFormat
from runtime.sinks.contract import Block, Sink, StreamFacts
from runtime.sinks.zeromq import SUBSCRIBERS, Publisher
from tests.contracts.sink import FACTS, SinkContract, block_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "stream-messages.md"
PATIENCE_MS = 30_000
FDS = Path("/proc/self/fd")


class TestPublisher(SinkContract):
    @pytest.fixture
    def opened(self) -> Callable[[StreamFacts], Sink]:
        return lambda facts: Publisher(facts, port=0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher(FACTS, port=0, facts_every_s=0.05) as sink:
        yield sink


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Any]]:
    """A subscriber that has heard `facts`, so that nothing of what comes is missed."""
    context = zmq.Context()

    def subscribed(address: str, *topics: bytes, high_water: int = 1000) -> Any:
        heard = context.socket(zmq.SUB)
        heard.setsockopt(zmq.RCVHWM, high_water)
        heard.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        # Subscriptions arrive in order: with the last one, those before are there.
        for topic in (*topics, b"facts"):
            heard.setsockopt(zmq.SUBSCRIBE, topic)
        heard.connect(address)
        assert heard.recv_multipart()[0] == b"facts"
        return heard

    yield subscribed
    context.destroy(linger=0)


def next_of(heard: Any, topic: bytes) -> list[bytes]:
    while True:
        parts: list[bytes] = heard.recv_multipart()
        if parts[0] == topic:
            return parts


def test_lines_arrive_as_they_are(publisher: Publisher, subscribe: Callable[..., Any]) -> None:
    heard = subscribe(publisher.address, b"restored")
    block = block_of(40, 6)
    block.frame_id[3] += np.uint64(5)
    publisher.write(block)
    publisher.write(block_of(46, 1))
    _, header, payload = next_of(heard, b"restored")
    said = json.loads(header)
    values = np.frombuffer(payload, np.dtype(said["dtype"]).newbyteorder(said["byte_order"])).reshape(said["shape"])
    np.testing.assert_array_equal(values, block.values)
    assert said == {
        "version": 1,
        "message": 0,
        "shape": [6, 5, 12],
        "dtype": "uint16",
        "byte_order": sys.byteorder,
        "sequence": {"first": 40, "count": 6},
        "frame_id": block.frame_id.tolist(),
        "utc_ns": block.utc_ns.tolist(),
        "flags": [256] * 6,
        "frame": 40,
        "metrics": {"noise": 0.25, "blur": None},
        "experts": [0.75, 0.25],
        "latency_s": 0.125,
    }
    assert json.loads(next_of(heard, b"restored")[1])["message"] == 1


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i2", "u1", "<u8"])
def test_byte_order_is_told(dtype: str, subscribe: Callable[..., Any]) -> None:
    facts = StreamFacts(LineFormat(2, 3, np.dtype(dtype)))
    with Publisher(facts, port=0, facts_every_s=0.05) as publisher:
        heard = subscribe(publisher.address, b"restored")
        block = block_of(0, 2, facts)
        publisher.write(block)
        _, header, payload = next_of(heard, b"restored")
    said = json.loads(header)
    assert said["dtype"] == np.dtype(dtype).newbyteorder("=").name
    values = np.frombuffer(payload, np.dtype(said["dtype"]).newbyteorder(said["byte_order"]))
    np.testing.assert_array_equal(values.reshape(said["shape"]), block.values)


def test_facts_tell_what_the_lines_are(publisher: Publisher, subscribe: Callable[..., Any]) -> None:
    said = json.loads(next_of(subscribe(publisher.address), b"facts")[1])
    assert said["wavelengths_nm"] == [450, 500, 550, 600, 650]
    assert (said["bands"], said["samples"], said["dtype"], said["scale"]) == (5, 12, "uint16", 4095)
    assert said["saturation"] is None and said["description"] == "a test"


def test_telemetry_from_several_threads_while_lines_go_out(publisher: Publisher, subscribe: Callable[..., Any]) -> None:
    heard = subscribe(publisher.address, b"telemetry")
    snapshot = {"lines": {"in": np.int64(7)}, "latency_s": {"p50": float("nan")}, "experts": (np.float32(0.5),)}
    threads = [threading.Thread(target=publisher.tell, args=({**snapshot, "who": who},)) for who in range(10)]
    for thread in threads:
        thread.start()
    for number in range(20):
        publisher.write(block_of(number, 1))
    for thread in threads:
        thread.join()
    said = [json.loads(next_of(heard, b"telemetry")[1]) for _ in range(10)]
    assert sorted(one.pop("who") for one in said) == list(range(10))
    assert said == [{"version": 1, "lines": {"in": 7}, "latency_s": {"p50": None}, "experts": [0.5]}] * 10


def test_a_slow_subscriber_loses_whole_messages_and_nobody_waits(subscribe: Callable[..., Any]) -> None:
    facts = StreamFacts(LineFormat(64, 2048, np.dtype(np.uint16)))
    blocks = 200
    with Publisher(facts, port=0, high_water=2, facts_every_s=0.05) as publisher:
        heard = subscribe(publisher.address, b"restored", high_water=1)
        block = block_of(0, 4, facts)
        # 200 MB that nobody reads: a publisher that waited would wait for ever.
        for number in range(blocks):
            block.values[:] = number
            publisher.write(block)
        seen, in_a_row = [], 0
        # Facts and nothing but facts: all that waited has come.
        while in_a_row < 5:
            topic, *parts = heard.recv_multipart()
            in_a_row = in_a_row + 1 if topic == b"facts" else 0
            if topic == b"restored":
                values = np.frombuffer(parts[1], np.uint16)
                assert values.size == block.values.size
                seen.append(json.loads(parts[0])["message"])
                assert (values == seen[-1]).all()
    assert 0 < len(seen) < blocks
    assert seen == sorted(set(seen))


def test_the_subscriber_of_the_documentation_works(publisher: Publisher, tmp_path: Path) -> None:
    codes = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (code,) = [code for code in codes if "zmq.SUB" in code]
    script = tmp_path / "subscriber.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script, publisher.address], stdout=subprocess.PIPE, text=True)
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append(process.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    try:
        # Nobody knows when it is connected: lines are sent until it has printed some.
        for _ in range(300):
            publisher.write(block_of(50, 3))
            reader.join(timeout=0.1)
            if not reader.is_alive():
                break
    finally:
        process.kill()
        process.wait()
        reader.join()
    (line,) = heard
    mean = block_of(50, 3).values.mean()
    assert re.fullmatch(rf"\d+ {{'first': 50, 'count': 3}} \(3, 5, 12\) {mean}\n", line)


def test_it_listens_on_this_machine_only() -> None:
    with Publisher(FACTS, port=0) as publisher:
        assert publisher.address.startswith("tcp://127.0.0.1:")
    with Publisher(FACTS, address="tcp://[::1]:*") as publisher:
        assert publisher.address.startswith("tcp://[::1]:")


@pytest.mark.parametrize(
    "place", ["127.0.0.1:65536", "127.0.0.1:-5", "127.0.0.1:5x", "127.0.0.1", "*:", "[::1]:070000"]
)
def test_a_port_that_zeromq_would_take_for_another_is_refused(place: str) -> None:
    with pytest.raises(InputError, match=rf"zeromq: no such port \(found 'tcp://{re.escape(place)}'\); 0 to 65535"):
        Publisher(FACTS, address=f"tcp://{place}")


def test_a_taken_port_is_told_and_given_back_at_the_end() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MachineError, match=rf"zeromq: cannot publish there: Address already .*127.0.0.1:{port}"):
            Publisher(FACTS, port=port)
    publisher = Publisher(FACTS, port=0)
    publisher.close()
    Publisher(FACTS, address=publisher.address).close()


def test_telemetry_after_the_end_is_refused() -> None:
    publisher = Publisher(FACTS, port=0)
    publisher.close()
    with pytest.raises(MachineError, match="the sink is closed"):
        publisher.tell({})


def test_numbers_with_gaps_are_listed(publisher: Publisher, subscribe: Callable[..., Any]) -> None:
    heard = subscribe(publisher.address, b"restored")
    block = block_of(0, 3)
    block.sequence[:] = (1, 2, (1 << 64) - 1)
    publisher.write(block)
    publisher.write(Block(block.values[:0], *([block.sequence[:0]] * 3), flags=block.flags[:0]))
    assert json.loads(next_of(heard, b"restored")[1])["sequence"] == [1, 2, (1 << 64) - 1]
    said = json.loads(next_of(heard, b"restored")[1])
    assert (said["sequence"], said["shape"]) == ([], [0, 5, 12])


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(MachineError, match=r'pyzmq is not installed; pip install "damp-deploy\[stream\]"'):
        Publisher(FACTS, port=0)


def test_so_many_subscribers_and_no_more(publisher: Publisher, subscribe: Callable[..., Any]) -> None:
    place = urlsplit(publisher.address)
    first = subscribe(publisher.address)
    before = len(list(FDS.iterdir()))
    strangers = [socket.create_connection((place.hostname, place.port)) for _ in range(5 * SUBSCRIBERS)]
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while len(gone := [one for one in strangers if _hung_up(one)]) < 4 * SUBSCRIBERS + 1:
        assert time.monotonic() < deadline, f"{len(gone)} of {len(strangers)} were hung up on"
    # Both ends are in this process: the test's own, and those that were let in.
    assert len(list(FDS.iterdir())) <= before + len(strangers) + SUBSCRIBERS
    assert next_of(first, b"facts")
    for one in strangers:
        one.close()
    # As the door was shut, it opens again.
    assert next_of(subscribe(publisher.address), b"facts")


def _hung_up(connection: socket.socket) -> bool:
    try:
        while connection.recv(1024, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_a_socket_in_the_file_system_is_for_its_user(tmp_path: Path, subscribe: Callable[..., Any]) -> None:
    with Publisher(FACTS, address=f"ipc://{tmp_path}/lines", facts_every_s=0.05) as sink:
        assert (tmp_path / "lines").stat().st_mode & 0o777 == 0o600
        assert next_of(subscribe(sink.address), b"facts")


def test_nothing_is_deleted_for_an_address(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InputError, match="there is a file"):
        Publisher(FACTS, address=f"ipc://{tmp_path}/notes")
    assert (tmp_path / "notes").read_text() == "mine"
