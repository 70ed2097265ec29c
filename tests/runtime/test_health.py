"""Heartbeats and the watchdog, heard by a socket that stands for systemd; and the unit that systemd gets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from pathlib import Path

import pytest

from runtime.errors import MachineError
from runtime.stream.health import Health, Notifier, Watchdog

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "damp-deploy-stream.service"
PATIENCE_S = 30.0
USEC = 80_000


class Systemd:
    """A datagram socket as systemd binds it, abstract or in the file system."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.socket.settimeout(PATIENCE_S)
        self.environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(USEC), "WATCHDOG_PID": str(os.getpid())}

    def hear(self) -> list[str]:
        return self.socket.recv(65536).decode().split("\n")

    def until(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        while not wanted(heard := self.hear()):
            pass
        return heard

    def stroke(self) -> None:
        self.until(lambda heard: heard == ["WATCHDOG=1"])

    def drain(self) -> list[list[str]]:
        """What waits now."""
        heard = []
        self.socket.setblocking(False)
        try:
            while True:
                heard.append(self.hear())
        except BlockingIOError:
            pass
        self.socket.settimeout(PATIENCE_S)
        return heard


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    name = f"@damp-deploy-test-{os.getpid()}-{time.monotonic_ns()}" if request.param == "abstract" else "notify"
    fake = Systemd(name if name.startswith("@") else str(tmp_path / name))
    yield fake
    fake.socket.close()


def test_a_stage_is_well_until_its_limit() -> None:
    health = Health()
    quick, patient = health.stage("source", 0.4), health.stage("engine", 3600)
    assert list(health.report()) == ["source", "engine"] and health.hung() == ()
    time.sleep(0.5)
    report = health.report()
    assert not report["source"].ok and report["source"].seconds >= 0.5
    assert report["engine"].ok and report["engine"].limit_s == 3600
    assert health.hung() == ("source",)
    quick.beat()
    assert health.report()["source"].seconds < report["source"].seconds
    patient.beat()


def test_long_work_has_a_limit_of_its_own_and_the_usual_one_comes_back() -> None:
    health = Health()
    stage = health.stage("engine", 0.05)
    with pytest.raises(ZeroDivisionError), stage.busy(3600):
        time.sleep(0.1)
        assert health.hung() == ()
        with stage.busy(7200):
            assert health.report()["engine"].limit_s == 7200
        assert health.report()["engine"].limit_s == 3600
        stage.beat()
        assert health.report()["engine"].limit_s == 3600
        raise ZeroDivisionError
    assert health.report()["engine"].limit_s == 0.05
    time.sleep(0.1)
    assert health.hung() == ("engine",)


def test_a_stage_that_has_finished_is_not_missed() -> None:
    health = Health()
    old = health.stage("sink", 0)
    new = health.stage("sink", 3600)
    health.remove(old)
    assert list(health.report()) == ["sink"]
    health.remove(new)
    health.remove(new)
    assert health.report() == {}


def test_what_the_stream_can_be_without_is_told_apart() -> None:
    health = Health()
    health.stage("record", 0)
    health.stage("quicklook", 0, vital=False)
    health.stage("source", 3600)
    time.sleep(0.01)
    assert health.hung() == ("record", "quicklook")
    assert health.hung(vital=True) == ("record",)
    assert {name: stage.vital for name, stage in health.report().items()} == {
        "record": True, "quicklook": False, "source": True,
    }  # fmt: skip


def test_an_optional_stage_that_hangs_is_named_and_the_strokes_go_on(systemd: Systemd) -> None:
    health = Health()
    preview = health.stage("quicklook", 0.2, vital=False)
    health.stage("record", 3600)
    changes: list[tuple[str, ...]] = []
    with Watchdog(health, Notifier(systemd.environment), changes.append) as watchdog:
        watchdog.ready("12 lines per second")
        systemd.until(lambda heard: heard == ["STATUS=not answering: quicklook; 12 lines per second"])
        systemd.drain()
        for _ in range(3):
            systemd.stroke()
        watchdog.status("still 12")
        systemd.until(lambda heard: heard == ["STATUS=not answering: quicklook; still 12"])
        with preview.busy(3600):
            systemd.until(lambda heard: heard == ["STATUS=still 12"])
    assert changes[:2] == [("quicklook",), ()]


def test_strokes_while_all_beat_none_while_one_hangs_and_again(systemd: Systemd) -> None:
    health = Health()
    hangs, ends = threading.Event(), threading.Event()

    def beats(stage_name: str, limit_s: float) -> None:
        stage = health.stage(stage_name, limit_s)
        while not ends.wait(0.01):
            if stage_name != "engine" or not hangs.is_set():
                stage.beat()

    changes: list[tuple[str, ...]] = []
    threads = [
        threading.Thread(target=beats, args=("source", 60.0)),
        threading.Thread(target=beats, args=("engine", 1.0)),
    ]
    for thread in threads:
        thread.start()
    try:
        with Watchdog(health, Notifier(systemd.environment), changes.append) as watchdog:
            watchdog.ready("12 lines per second")
            assert systemd.until(lambda heard: "READY=1" in heard) == ["READY=1", "STATUS=12 lines per second"]
            for _ in range(3):
                systemd.stroke()
            hangs.set()
            systemd.until(lambda heard: heard == ["STATUS=not answering: engine; 12 lines per second"])
            systemd.drain()
            time.sleep(5 * USEC / 1e6)
            assert ["WATCHDOG=1"] not in systemd.drain()
            watchdog.status("still 12")
            assert systemd.hear() == ["STATUS=not answering: engine; still 12"]
            hangs.clear()
            systemd.until(lambda heard: heard == ["STATUS=still 12"])
            for _ in range(3):
                systemd.stroke()
            watchdog.stopping()
            assert systemd.until(lambda heard: "STOPPING=1" in heard)[1] == "STATUS=stopping"
        systemd.drain()
        time.sleep(3 * USEC / 1e6)
        assert systemd.drain() == []
    finally:
        ends.set()
        for thread in threads:
            thread.join()
    assert changes == [("engine",), ()]


class Timed(Notifier):
    """Knows when it was asked to stroke."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment)
        self.strokes: list[float] = []

    def send(self, *assignments: str) -> bool:
        self.strokes += [time.monotonic()] * (assignments == ("WATCHDOG=1",))
        return super().send(*assignments)


def test_strokes_come_no_sooner_than_at_half_of_the_interval(systemd: Systemd) -> None:
    notifier = Timed(systemd.environment)
    with Watchdog(Health(), notifier):
        for _ in range(6):
            systemd.stroke()
    gaps = [later - earlier for earlier, later in zip(notifier.strokes, notifier.strokes[1:], strict=False)]
    assert len(gaps) >= 5 and min(gaps) >= USEC / 2e6


def test_without_a_watchdog_states_are_told_but_no_strokes(systemd: Systemd) -> None:
    for change in ({"WATCHDOG_USEC": ""}, {"WATCHDOG_PID": str(os.getpid() + 1)}):
        notifier = Notifier({**systemd.environment, **change})
        assert notifier.interval_s is None
        with Watchdog(Health(), notifier) as watchdog:
            watchdog.ready()
            time.sleep(2 * USEC / 1e6)
        assert systemd.drain() == [["READY=1", "STATUS=running"]]


def test_without_systemd_nothing_is_sent_and_changes_are_told() -> None:
    health = Health()
    changed = threading.Event()
    health.stage("source", 0)
    time.sleep(0.01)
    notifier = Notifier({"WATCHDOG_USEC": "1000"})
    with Watchdog(health, notifier, lambda hung: changed.set() if hung == ("source",) else None) as watchdog:
        watchdog.ready()
        assert changed.wait(PATIENCE_S)
    assert notifier.interval_s is None and not notifier.send("READY=1")


def test_a_systemd_that_does_not_listen_is_no_error(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "absent")})
    assert notifier.send("READY=1") is False


def test_a_status_is_one_assignment(systemd: Systemd) -> None:
    with Watchdog(Health(), Notifier({**systemd.environment, "WATCHDOG_USEC": ""})) as watchdog:
        watchdog.status("frame 1\nMAINPID=1 " + "x" * 10_000)
        (said,) = systemd.hear()
    assert said.startswith(r"STATUS=frame 1\nMAINPID=1 xxx") and len(said) < 500


@pytest.mark.parametrize(
    ("key", "value"),
    [("NOTIFY_SOCKET", "vsock:2:1234"), ("NOTIFY_SOCKET", "@"), ("WATCHDOG_USEC", "soon"), ("WATCHDOG_USEC", "0")],
)
def test_what_systemd_never_writes_is_an_error(key: str, value: str) -> None:
    with pytest.raises(MachineError, match=rf"^{key}: not a .*\(found '{value}'\); unset it"):
        Notifier({"NOTIFY_SOCKET": "/run/notify", key: value})


def unit() -> RawConfigParser:
    # Keys may come twice in a unit; none that is asked for here does.
    parser = RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_asks_for_what_the_stream_does() -> None:
    service = unit()["Service"]
    wanted = {
        "Type": "notify",
        "WatchdogSec": "20",
        "Restart": "on-failure",
        "KillSignal": "SIGTERM",
        "TimeoutStopSec": "10",
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
    }
    assert {key: service[key] for key in wanted} == wanted
    assert "RestartPreventExitStatus" not in service
    assert service["ExecStart"].endswith("/deploy stream $ARGUMENTS") and service["EnvironmentFile"].startswith("/etc/")


def test_the_unit_shows_arguments_that_the_command_takes() -> None:
    from deploy.commands.stream import command

    (line,) = (line for line in UNIT.read_text().splitlines() if "ARGUMENTS=" in line)
    # As systemd does: split at blanks, nothing else.
    given = command.make_context("stream", line.partition("ARGUMENTS=")[2].split()).params
    assert {key: str(value) for key, value in given.items() if key in ("bundle", "spec", "record", "restored")} == {
        "bundle": "/opt/bundle",
        "spec": "genicam:",
        "record": "/var/lib/damp-deploy/raw",
        "restored": "/var/lib/damp-deploy/restored",
    }
    assert (given["spool_limit"], str(given["config_file"])) == ("100GiB", "/etc/damp-deploy/flight.yaml")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    command = unit()["Service"]["ExecStart"].split()[0]
    copy.write_text(UNIT.read_text().replace(command, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
