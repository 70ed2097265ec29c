"""The loop that every network is trained by: steps, log, validation, a state that is saved, and how a run is stopped.

What is learned, and from what, is the business of who calls `go`: it gives steps, validations and saves as functions.
"""

import fcntl
import io
import math
import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from runtime.durable import write_bytes
from runtime.errors import ConfigError, InputError, MachineError
from training.console import console
from training.curves import append_row, drop_rows_after
from training.recipe import Optimiser

Errors = tuple[Tensor, tuple[str, ...]]
"""L1 errors [B] of a batch's patches, and the column of the log that each belongs to."""


class Steps(Protocol):
    """Where a run is.

    Attributes:
        steps: in all.
        step: those done.
        seen: errors since the last line of the log.
    """

    steps: int
    step: int
    seen: list[Errors]


class Cadence(Protocol):
    """What a recipe says of its loop.

    Attributes:
        name: of the run.
        log_every, validate_every: steps; the last step is logged and validated as well.
        save_seconds: at most between two saved states.
    """

    @property
    def name(self) -> str: ...
    @property
    def log_every(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def save_seconds(self) -> float: ...


def go(
    run: Steps,
    recipe: Cadence,
    out: Path,
    columns: Sequence[str],
    *,
    step: Callable[[], Errors],
    validate: Callable[[], None],
    save: Callable[[], None],
) -> None:
    """Go on to the last step.

    Args:
        run: its step rises with every call of `step`.
        recipe: when what is due.
        out: the run's folder, with training.csv.
        columns: of the log, beside the step and the mean.
        step: does one and gives its errors.
        validate: writes down how well it goes.
        save: writes the state from which the run goes on.

    Raises:
        KeyboardInterrupt: it was told to stop; the state is saved.
        MachineError: an error is not finite.
    """
    saved = time.monotonic()
    with stopping() as stopped, _progress(recipe, run, columns, out / "training.csv") as moved:
        console.print(f"{'going on' if run.step else 'beginning'} at step {run.step} of {run.steps}")
        while run.step < run.steps:
            errors = step()
            last = run.step == run.steps
            moved(errors, run.step % recipe.log_every == 0 or last)
            validated = run.step % recipe.validate_every == 0 or last
            if validated:
                validate()
            # What validated best must not be forgotten by a run that goes back.
            if validated or stopped or time.monotonic() - saved >= recipe.save_seconds:
                save()
                saved = time.monotonic()
            if stopped:
                raise KeyboardInterrupt


def forget_after(out: Path, step: int) -> None:
    """Leave out of the logs what a run that was stopped wrote after its last saved step."""
    for log in ("training.csv", "validation.csv"):
        drop_rows_after(out / log, step)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder; nobody else trains in it meanwhile. The system lets go of it however this process ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be made: {error.strerror}", file=out, remedy="give another --out") from error
    try:
        lock = (out / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MachineError("another process is at this run", file=out, remedy="stop it, or wait for it") from error
    except OSError as error:
        raise InputError(f"cannot be locked: {error.strerror}", file=out, remedy="give another --out") from error
    with lock:
        yield


@contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that is filled by the first SIGINT or SIGTERM; the second ends the process as usual."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        received.append(number)
        for each, before in previous.items():
            signal.signal(each, before)
        console.print("stopping after this step")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, before in previous.items():
            signal.signal(each, before)


@contextmanager
def _progress(
    recipe: Cadence, run: Steps, labels: Sequence[str], file: Path
) -> Iterator[Callable[[Errors, bool], None]]:  # fmt: skip
    """A bar for people at a terminal, lines in a log, and rows in a file.

    Errors stay on their device until they are logged, so that a GPU is not waited for at every step.
    """
    columns = (TextColumn(recipe.name), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    began, first = time.monotonic(), run.step
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(recipe.name, total=run.steps, completed=first)

        def moved(errors: Errors, log: bool) -> None:
            bar.update(shown, completed=run.step)
            run.seen.append(errors)
            if not log:
                return
            by = defaultdict[str, list[float]](list)
            values = torch.cat([e for e, _ in run.seen]).double().cpu().tolist()
            for name, error in zip((name for _, names in run.seen for name in names), values, strict=True):
                by[name].append(error)
            run.seen.clear()
            if not np.isfinite(values).all():
                raise MachineError(
                    "the training has diverged: an error is not finite", file=file, key="step", value=run.step,
                    remedy="a lower learning rate; the state is of the last save",
                )  # fmt: skip
            mean, pace = float(np.mean(values)), (time.monotonic() - began) / (run.step - first)
            console.print(f"step {run.step}/{run.steps} L1 {mean:.5f} {pace:.2f} s/step")
            each = {name: float(np.mean(by[name])) if by[name] else math.nan for name in labels}
            append_row(file, {"step": run.step, "loss": mean, **each})

        yield moved


def write_state(file: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all."""
    # PyTorch says RuntimeError, without a cause, where a disk is full.
    stream = io.BytesIO()
    torch.save(state, stream)
    write_bytes(file, stream.getvalue())


def read_state(file: Path, keys: Collection[str], digest: str, device: torch.device) -> dict[str, Any]:
    """What `write_state` wrote, with `keys`, of the recipe of this digest.

    Raises:
        InputError: it is no such state.
        ConfigError: another recipe wrote it.
    """
    try:
        state = torch.load(file, weights_only=True, map_location=device)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError("is no state of a run", file=file, remedy="remove it to begin anew") from error
    if not isinstance(state, dict) or set(keys) - set(state):
        raise InputError("is no state of a run", file=file, remedy="remove it to begin anew")
    if state["recipe"] != digest:
        raise ConfigError(
            "another recipe wrote this run's state", file=file, key="recipe", value=state["recipe"],
            remedy="give another --out, or the recipe that the run began with",
        )  # fmt: skip
    return state


def learning_rate(step: int, steps: int, options: Optimiser) -> float:
    """Linear warm-up, a level where the recipe holds one, then a cosine down to the last learning rate."""
    first, last, warmup = options.learning_rate, options.last_learning_rate, options.warmup
    if step < warmup:
        return first * (step + 1) / warmup
    level = warmup + options.hold * max(0, steps - warmup)
    progress = max(0.0, step - level) / max(1, steps - level)
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def average(averaged: list[Tensor], present: list[Tensor], step: int, decay: float) -> None:
    """Move averaged tensors towards the present ones; short memory at the start."""
    torch._foreach_lerp_(averaged, present, 1 - min(decay, (1 + step) / (10 + step)))
