"""Archives on a scheduler of somebody's, over TLS; and kills: of drivers, of workers, of that scheduler."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("distributed")
pytest.importorskip("cryptography")

from deploy.archive.driver import Pace
from deploy.archive.run import Means, run_archive
from deploy.archive.security import Tls, tls_of
from runtime.errors import MachineError
from tests.deploy.archive_craft import begun, craft, jobs, order
from tests.deploy.test_archive_driver import driver

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Certificates as docs/archives.md makes them."""
    folder = tmp_path_factory.mktemp("tls")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    (folder / "me.ext").write_text("authorityKeyIdentifier=keyid\n")
    for line in (
        ("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650", "-subj", "/CN=archives",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        ("req", *curve, "-keyout", "me.key", "-out", "me.csr", "-subj", "/CN=me"),
        ("x509", "-req", "-in", "me.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "825",
         "-out", "me.pem", "-extfile", "me.ext"),
    ):  # fmt: skip
        subprocess.run(["openssl", *line], cwd=folder, check=True, capture_output=True)
    found = tls_of(folder / "ca.pem", folder / "me.pem", folder / "me.key")
    assert found is not None
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def dask(kind: str, *arguments: str, tls: Tls) -> Iterator[subprocess.Popen[bytes]]:
    files = ("--tls-ca-file", str(tls.ca), "--tls-cert", str(tls.cert), "--tls-key", str(tls.key))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, *files, "--no-dashboard"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def workers(address: str, tls: Tls) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return dask("worker", address, "--nworkers", "2", "--nthreads", "1", "--death-timeout", "10", tls=tls)


def test_a_scheduler_that_is_killed_and_comes_back(tmp_path: Path, tls: Tls) -> None:
    inputs, out = jobs(tmp_path / "in", **{f"a{n}": "write 0.3" for n in range(60)}), tmp_path / "out"
    port = free_port()
    address = f"tls://127.0.0.1:{port}"
    at = ("--host", address)
    means = Means(scheduler=address, tls=tls, patience=90)
    with dask("scheduler", *at, tls=tls) as first, workers(address, tls), driver(inputs, out, means) as one:
        until = time.monotonic() + 60
        while len(begun(inputs)) < 10:
            assert time.monotonic() < until and one.poll() is None
            time.sleep(0.05)
        first.kill()
        first.wait()
        with dask("scheduler", *at, tls=tls), workers(address, tls):
            said = one.communicate(timeout=120)[0]
    assert one.returncode == 0, said
    assert len(list(out.glob("*.npz"))) == 60
    assert max(begun(inputs).values()) <= 2


def test_a_scheduler_that_stays_away_ends_it_within_bounds(tmp_path: Path, tls: Tls) -> None:
    inputs = jobs(tmp_path / "in", **{f"a{n}": "write 0.3" for n in range(60)})
    address = f"tls://127.0.0.1:{free_port()}"
    with dask("scheduler", "--host", address, tls=tls) as scheduler, workers(address, tls):
        with driver(inputs, tmp_path / "out", Means(scheduler=address, tls=tls, patience=5)) as one:
            until = time.monotonic() + 60
            while len(begun(inputs)) < 5:
                assert time.monotonic() < until and one.poll() is None
                time.sleep(0.05)
            scheduler.kill()
            said = one.communicate(timeout=90)[0]
        assert one.returncode == MachineError.exit_code and "was lost, and is not back after 5 s" in said


def test_nobody_gets_in_without_a_certificate(tmp_path: Path, tls: Tls) -> None:
    inputs = jobs(tmp_path / "in", a="write 0")
    port = free_port()
    with dask("scheduler", "--host", f"tls://127.0.0.1:{port}", tls=tls):
        time.sleep(5)
        with pytest.raises(MachineError):
            run_archive(
                order(inputs), tmp_path / "out", Means(scheduler=f"tcp://127.0.0.1:{port}"), craft=craft(),
                pace=Pace(workerless=5),
            )  # fmt: skip
    assert begun(inputs) == {}


def test_killed_drivers_and_workers_leave_whole_outputs_or_none(tmp_path: Path) -> None:
    inputs, out = jobs(tmp_path / "in", **{f"a{n}": "write 0.2" for n in range(60)}), tmp_path / "out"
    chance = random.Random(0)
    kills = 0
    for _ in range(4):
        with driver(inputs, out) as one:
            until = time.monotonic() + chance.uniform(8, 14)
            while time.monotonic() < until and one.poll() is None:
                time.sleep(0.5)
                workers = children(one.pid)
                if workers and chance.random() < 0.2:
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
    counted = run_archive(order(inputs), out, Means(workers=2, memory=1 << 29), craft=craft())["products"]
    assert counted["done"] + counted["present"] == 60
    for path in out.glob("*.npz"):
        assert path.read_text() == f"restored {path.stem}.job\n"
    assert not list(out.rglob(".*.part"))
    assert sum(begun(inputs).values()) <= 60 + 2 * kills + 4 * 5


def children(pid: int) -> list[int]:
    """Processes of workers: what was spawned, but for Python's own tracker of resources."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text().rpartition(")")[2].split()
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == pid and b"spawn_main" in line:
            found.append(int(process.name))
    return found
