"""A cluster of this computer's own, or a scheduler that somebody runs."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec

import dask
from distributed import Client, LocalCluster
from distributed.security import Security

from runtime.errors import MachineError

SETTINGS = {
    # Two deaths condemn a task; each of ours is tried again alone before it is believed.
    "distributed.scheduler.allowed-failures": 1,
    # No task waits in a worker that another one could do: who ends beside a killer is innocent.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.worker-ttl": "10 minutes",
    "distributed.scheduler.default-task-durations": {"restore": "10s"},
    # Nothing is worth spilling, and spilling hides leaks.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.85,
    "distributed.worker.memory.terminate": 0.95,
    # Libraries of strangers' formats leak.
    "distributed.worker.lifetime.duration": "12 hours",
    "distributed.worker.lifetime.stagger": "1 hour",
    "distributed.worker.lifetime.restart": True,
    # Forked engines hang.
    "distributed.worker.multiprocessing-method": "spawn",
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_TRIM_THRESHOLD_": 65536, "OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1,
    },
    # An engine that is being opened is no fault.
    "distributed.admin.tick.limit": "10 minutes",
    # Pages that every user of this computer could read.
    "distributed.worker.http.routes": [],
}  # fmt: skip
"""Of Dask, for a cluster of this computer's own; docs/archives.md has them for others."""


@dataclass(frozen=True)
class Joined:
    """A scheduler and who works for it.

    Attributes:
        client: of it. address: of it, for people. dashboard: link to its page; None where it has none.
        own: it ends with the driver, and may be started again.
    """

    client: Client
    address: str
    dashboard: str | None
    own: bool


@contextmanager
def own_cluster(workers: int, memory: int, *, dashboard: bool = False) -> Iterator[Joined]:
    """So many processes of this computer, which nobody else can reach; each may take `memory` bytes.

    Where `cryptography` is installed, other users of the computer are kept out by certificates that exist in memory
    only. Raises MachineError.
    """
    security = Security.temporary() if find_spec("cryptography") else Security()
    with ExitStack() as undo:
        scratch = tempfile.mkdtemp(prefix="damp-archive-")
        undo.callback(shutil.rmtree, scratch, ignore_errors=True)
        undo.enter_context(_quiet())
        undo.enter_context(dask.config.set(SETTINGS))
        if not dashboard:
            undo.enter_context(dask.config.set({"distributed.scheduler.http.routes": []}))
        try:
            cluster = undo.enter_context(
                LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True, memory_limit=memory, host="127.0.0.1",
                    dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": dashboard}, security=security,
                    local_directory=scratch, silence_logs=logging.CRITICAL,
                )
            )  # fmt: skip
            client = undo.enter_context(Client(cluster, set_as_default=False))
        except (OSError, RuntimeError) as error:
            raise MachineError(f"workers cannot be started here: {error}", remedy="see `deploy doctor`") from error
        yield Joined(client, cluster.scheduler_address, client.dashboard_link if dashboard else None, own=True)


@contextmanager
def joined(address: str, security: Security, *, timeout: float) -> Iterator[Joined]:
    """The client of a scheduler that somebody runs. Raises MachineError where nobody answers for so many seconds."""
    with ExitStack() as undo:
        undo.enter_context(_quiet())
        try:
            client = undo.enter_context(
                Client(address, security=security, timeout=timeout, set_as_default=False, name="damp-deploy")
            )
        except (OSError, RuntimeError, ValueError) as error:
            # The first says `Timed out trying to connect`, the cause why.
            cause = error.__cause__ or error
            raise MachineError(
                f"the scheduler does not answer: {cause}",
                key="--scheduler",
                value=address,
                remedy="start it, and check address, certificates and firewall",
            ) from error
        link = None
        with suppress(Exception):
            link = client.dashboard_link
        yield Joined(client, address, link, own=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's own words on workers that end are for its developers; the driver has its own."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "bokeh", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
