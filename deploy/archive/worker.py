"""A Dask worker: it opens the bundle once, restores what it is given, and tells where it is."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from dataclasses import dataclass

from distributed import Worker, WorkerPlugin, get_worker

from runtime.bundle import Bundle, load_bundle
from runtime.by_lines.provenance import seal_of
from runtime.engines import CPU_ENGINES
from runtime.errors import BundleError, DeployError

from . import work
from .limits import bound_memory, close_network
from .work import Record, Task

PLUGIN, TOPIC = "damp-archive", "damp-archive"
TELL_S = 1.0


class _Here:
    """What this process has open."""

    bundle: Bundle | None = None
    error: DeployError | None = None
    seal = ""


@dataclass
class OpenBundle(WorkerPlugin):
    """Opens a bundle in every worker, verified byte by byte and proved; also in those that come later.

    Attributes:
        path, seal, engine, prompt: of the bundle. threads: of its engine; None for the bundle's own.
        memory: bytes that a product may take there; None for no limit of ours.
    """

    path: str
    seal: str
    engine: str | None
    prompt: str | None
    threads: int | None
    memory: int | None

    name = PLUGIN

    def setup(self, worker: Worker) -> None:
        """Raises DeployError, which is told to whoever registers the plugin; a later worker's tasks tell it."""
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches every process of a terminal; the driver decides what becomes of tasks.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        _Here.error = None
        try:
            bundle = load_bundle(self.path, threads=self.threads, engine=self.engine, prompt=self.prompt)
            _Here.bundle, _Here.seal = bundle, seal_of(bundle.contents)
            if _Here.seal != self.seal:
                raise BundleError(
                    "is another bundle here than the driver's", file=self.path, value=platform.node(),
                    remedy="copy the same one to every computer",
                )  # fmt: skip
            bundle.self_test()
        except DeployError as error:
            _Here.error = error
            raise
        # A GPU's driver reserves address space without end.
        if self.memory is not None and (self.engine or bundle.manifest.target.engine) in CPU_ENGINES:
            bound_memory(self.memory)

    def teardown(self, worker: Worker) -> None:
        """Give the engine back."""
        bundle, _Here.bundle = _Here.bundle, None
        if bundle is not None:
            bundle.close()


def job(task: Task) -> Record:
    """Do a task with the bundle that is open here; never raises but for what ends a process."""
    worker = get_worker()
    name = f"{platform.node()}:{os.getpid()}"
    close_network()
    told = 0.0

    def tell(done: int, lines: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= TELL_S:
            told = now
            worker.log_event(TOPIC, {"path": task.path, "done": done, "lines": lines, "worker": name})

    bundle = _Here.bundle
    if bundle is None or _Here.error is not None or _Here.seal != task.order.seal:
        error = _Here.error or BundleError(
            "is not open in this worker", file=task.order.bundle, remedy="start it again"
        )
        return {"state": "unfit", "worker": name, "error": error.as_json(), "line": error.one_line()}
    return {"worker": name, **work.do(task, bundle, tell)}
