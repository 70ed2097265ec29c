"""What keeps an archive from strangers, from two writers and from a lost ledger: each part alone."""

from __future__ import annotations

import errno
import math
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from deploy.archive.apart import each
from deploy.archive.ledger import Ledger, Row, on_network_disk
from deploy.archive.limits import close_network
from deploy.archive.lock import alone, sweep
from deploy.archive.order import FOLDER, Order, asked_of, keep, kept
from deploy.archive.plan import LEAST, fitting, room_for
from deploy.archive.security import security_of, tls_of
from deploy.archive.work import of_error
from runtime.durable import part_of
from runtime.errors import CubeFileError, InputError, MachineError
from tests.deploy.archive_probe import dying, tried


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("tcp://10.0.0.1:8786", "whoever reaches this scheduler runs code on every worker"),
        ("head:8786", "whoever reaches this scheduler runs code on every worker"),
        ("tls://10.0.0.1:8786", "asks for certificates"),
        ("ucx://127.0.0.1:8786", "is no address of a scheduler"),
        ("tcp://127.0.0.1", "is no address of a scheduler"),
        ("tcp://127.0.0.1:99999999", "is no address of a scheduler"),
        ("127.0.0.1.evil.example:8786", "whoever reaches this scheduler"),
    ],
)
def test_schedulers_that_anybody_could_use_are_refused(address: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        security_of(address, None, insecure=False)
    assert caught.value.key == "--scheduler" and caught.value.remedy


def test_this_computer_and_who_means_it_are_not() -> None:
    for address in ("tcp://127.0.0.1:8786", "localhost:8786", "tcp://[::1]:8786"):
        security_of(address, None, insecure=False)
    security_of("tcp://10.0.0.1:8786", None, insecure=True)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "me.pem", "me.key"))
    for path in (ca, cert, key):
        path.write_text("-")
    key.chmod(0o640)
    with pytest.raises(InputError, match="others may read this key") as caught:
        tls_of(ca, cert, key)
    assert caught.value.remedy == f"chmod 600 {key}"
    key.chmod(0o600)
    found = tls_of(ca, cert, key)
    assert found is not None
    security = security_of("tls://10.0.0.1:8786", found, insecure=False)
    assert security.require_encryption and security.tls_client_key == str(key)
    with pytest.raises(InputError, match="TLS asks for three files"):
        tls_of(ca, None, key)


def test_strangers_files_are_opened_apart_without_network_within_memory() -> None:
    asked = ["network", "memory", "die", "network"] + ["memory"] * 30
    told = list(each(tried, asked, memory=512 << 20))
    assert sorted(told) == sorted((what, {"network": "EACCES", "memory": "MemoryError"}.get(what)) for what in asked)


def test_the_network_is_closed_for_one_thread_alone() -> None:
    told: list[bool | str] = []

    def closed() -> None:
        told.extend((close_network(), tried("network")))

    thread = threading.Thread(target=closed)
    thread.start()
    thread.join()
    assert told == [True, "EACCES"]
    socket.socket().close()


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    with alone(tmp_path):
        with pytest.raises(InputError, match="another driver") as caught, alone(tmp_path):
            pass
        assert caught.value.value is not None and str(os.getpid()) in str(caught.value.value)
    with alone(tmp_path):
        pass


def test_what_dead_writers_left_goes_and_what_the_living_write_stays(tmp_path: Path) -> None:
    dead, folder = tmp_path / ".a.nc.0123456789ab.part", tmp_path / "deeper" / ".b.zarr.0123456789ab.part"
    dead.write_text("half")
    folder.mkdir(parents=True)
    (folder / "c0").write_text("half")
    gone, going = tmp_path / f".c.nc.{'0' * 16}.parts", tmp_path / f".d.nc.{'1' * 16}.parts"
    gone.mkdir()
    going.mkdir()
    others = tmp_path / ".notes.part"
    others.write_text("somebody's")
    with part_of(tmp_path / "living.nc") as part:
        assert sweep(tmp_path, shared=True, keys=["0" * 64, "1" * 64]) == 0
        assert sweep(tmp_path, shared=False, keys=["1" * 64]) == 3
        assert part.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [going.name, ".notes.part", "deeper"]


def test_a_ledger_keeps_what_the_disk_did_not_take(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.begin([Row("/in/a", asked="1", stamp=(("/in/a", 3, 4),), shape=(1, 2, 3))])
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        ledger._base.execute("pragma busy_timeout=1")
        other.execute("begin immediate")
        ledger.mark("/in/a", state="running")
        other.execute("rollback")
        ledger.mark("/in/a", attempts=2, result={"frames": 4})
        other.close()
        (row,) = ledger.rows()
    assert (row.state, row.attempts, row.result, row.shape) == ("running", 2, {"frames": 4}, (1, 2, 3))
    assert row.stamp == (("/in/a", 3, 4),)
    with Ledger(tmp_path) as ledger:
        ledger.begin([Row("/in/b")])
        assert [one.path for one in ledger.rows(current=True)] == ["/in/b"] and len(ledger.rows()) == 2


def test_a_ledger_of_another_version_is_left_alone(tmp_path: Path) -> None:
    base = sqlite3.connect(tmp_path / "ledger.sqlite")
    base.execute("pragma user_version=99")
    base.close()
    with pytest.raises(InputError, match="of another version"):
        Ledger(tmp_path)


def test_disks_of_the_network_are_known(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/sda / ext4 rw 0 0\nserver:/x /share nfs4 rw 0 0\n/dev/sdb /share/local ext4 rw 0 0\n")
    told = [on_network_disk(Path(path), mounts) for path in ("/home/a", "/share/a", "/share/local/a", "/shared/a")]
    assert told == [False, True, False, False]


def test_refused_is_not_failed_and_what_passes_istried_again(tmp_path: Path) -> None:
    there = tmp_path / "a.nc"
    there.write_text("-")

    def told(error: Exception, path: Path = there) -> tuple[str, bool]:
        record = of_error(error, path)
        return record["state"], record["retry"]

    def behind(cause: Exception) -> CubeFileError:
        error = CubeFileError("cannot be written", remedy="check the disk")
        error.__cause__ = cause
        return error

    assert told(CubeFileError("is no cube")) == ("refused", False)
    assert told(behind(OSError("Unable to open file (truncated file)"))) == ("refused", False)
    assert told(behind(OSError(errno.ENOSPC, "No space left on device"))) == ("failed", True)
    assert told(behind(OSError("write failed (errno = 28, error message = 'No space left on device')"))) == (
        "failed", True,
    )  # fmt: skip
    assert told(behind(PermissionError(errno.EACCES, "Permission denied"))) == ("failed", False)
    assert told(CubeFileError("no such file or folder"), tmp_path / "gone.nc") == ("failed", False)
    assert told(behind(FileNotFoundError(errno.ENOENT, "METADATA.XML"))) == ("refused", False)
    assert told(MachineError("restoring takes 3 MiB", key="memory")) == ("failed", True)
    assert told(MemoryError()) == ("failed", False)
    line = of_error(ZeroDivisionError(), there)["line"]
    assert line.startswith(f"{there}: a bug of ours: ZeroDivisionError")


def test_room_is_what_there_is() -> None:
    assert room_for([1 << 20] * 9, 1, None).memory == LEAST
    assert room_for([1 << 20], None, None).workers == 1
    with pytest.raises(MachineError, match="take more memory than there is"):
        room_for([1 << 20] * 9, 1000, 1 << 40)
    assert fitting([], 1 << 30, "") == ([], [])


def test_an_order_is_read_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for marks in ((math.nan, -9999.0, math.inf), (0.1,), (), None):
        given = Order(bundle="/b", seal="0", inputs=("/in",), marks=marks)
        keep(given, tmp_path)
        read = kept(tmp_path)
        assert str(read) == str(given) and asked_of(read) == asked_of(given)


def test_a_folder_that_is_no_archive_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no archive"):
        kept(tmp_path)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "archive.json").write_text('{"version": 1, "bundle": 3}')
    with pytest.raises(InputError, match="is damaged") as caught:
        kept(tmp_path)
    assert caught.value.key == "bundle"


def test_a_process_that_ends_while_nobody_listens_takes_no_item_with_it() -> None:
    told = []
    for item in each(dying, range(40), memory=2 << 30):
        told.append(item)
        time.sleep(0.02)
    assert sorted(told) == [(number, None if number == 6 else number) for number in range(40)]
