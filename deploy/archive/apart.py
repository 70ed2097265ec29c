"""Functions of strangers' files, called in processes of their own: one that ends its process ends nothing else."""

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from runtime.machine import available_cores

from .limits import bound_memory, close_network

Item = TypeVar("Item")
Made = TypeVar("Made")
WINDOW = 8
"""Items in flight for each process."""
MOST = 8
TRIES = 2
"""Of an item alone in its process: the first end may be somebody else's doing."""


def _begin(memory: int) -> None:
    # The driver hears Ctrl-C, and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    close_network()
    bound_memory(memory)


def each(function: Callable[[Item], Made], items: Sequence[Item], *, memory: int) -> Iterator[tuple[Item, Made | None]]:
    """What `function` makes of each item, in the order in which they end; None of an item that ends its process.

    Args:
        function: of a module, of values that can be pickled; raises nothing.
        memory: bytes that each may take.
    """
    # A process takes a second to begin.
    processes = max(1, min(MOST, available_cores(), len(items) // 4))
    waiting = deque(items)
    again: list[Item] = []
    while True:
        flying: dict[Future[Made], Item] = {}
        pool = _pool(processes, memory)
        try:
            while True:
                while waiting and len(flying) < processes * WINDOW:
                    # Taken off once it is in flight: a pool that broke meanwhile takes nothing.
                    future = pool.submit(function, waiting[0])
                    flying[future] = waiting.popleft()
                if not flying:
                    break
                for ended in wait(flying, return_when=FIRST_COMPLETED).done:
                    made = ended.result()
                    yield flying.pop(ended), made
        except BrokenProcessPool:
            again = list(flying.values())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if not again and not waiting:
            return
        # One of them did it; nobody knows which.
        yield from _alone(function, again, memory)
        again = []


def _alone(function: Callable[[Item], Made], items: list[Item], memory: int) -> Iterator[tuple[Item, Made | None]]:
    pool = _pool(1, memory)
    try:
        for item in items:
            for _ in range(TRIES):
                try:
                    yield item, pool.submit(function, item).result()
                    break
                except BrokenProcessPool:
                    pool.shutdown(wait=True)
                    pool = _pool(1, memory)
            else:
                yield item, None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(processes: int, memory: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, get_context("spawn"), _begin, (memory,))
