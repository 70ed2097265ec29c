"""Steps that fail and hang alone: each a process with a share of the time; what it found is kept line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.durable import write_bytes

ROOT = Path(__file__).parents[2]
ENDED = "ended"


@dataclass(frozen=True)
class Setting:
    """What a step is told: the folder of all results, whether the CPU stands for the GPU, network and frame.

    `model` is a packaged one or a checkpoint, `size` the lines and samples of a frame.
    """

    out: Path
    cpu: bool
    model: str
    size: int

    @property
    def device(self) -> str:
        """PyTorch's name of it."""
        return "cpu" if self.cpu else "cuda"

    @property
    def engine(self) -> str:
        return "onnxruntime" if self.cpu else "onnxruntime-cuda"

    @property
    def half(self) -> str:
        """What PyTorch computes in beside an FP16 graph: a CPU takes seconds for a frame in fp16."""
        return "bf16" if self.cpu else "fp16"

    @property
    def turns(self) -> int:
        """Frames that every way is timed with, where the time suffices."""
        return 20 if self.cpu else 200

    def bundle(self, precision: str) -> Path:
        return self.out / "bundles" / f"{Path(self.model).stem}-{self.size}-{precision}"


class Found:
    """What a step found, {line: figures}, in a file that is written after every line; the step has `seconds` for it."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.lines: dict[str, dict[str, Any]] = {}
        self._file, self._ends = file, time.monotonic() + seconds
        signal.signal(signal.SIGALRM, _late)

    @property
    def left(self) -> float:
        """Seconds that are left of the step."""
        return max(0.1, self._ends - time.monotonic())

    @contextmanager
    def line(self, name: str, share: float = 0.5) -> Iterator[dict[str, Any]]:
        """Figures to fill; an error ends the line, not the step, and so does more than a share of the time left.

        What hangs inside a library ends with its step.
        """
        figures = self.lines[name] = {}
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, share * self.left)
        try:
            yield figures
        except Exception as error:
            traceback.print_exc()
            figures["error"] = f"{type(error).__name__}: {str(error).strip()[:500]}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            figures["took_s"] = round(time.monotonic() - began, 2)
            write_bytes(self._file, json.dumps(self.lines, indent=1, default=str).encode())
            print(name, figures, flush=True)


def _late(*_: object) -> None:
    raise TimeoutError("it had no more time")


@dataclass(frozen=True)
class Step:
    """A command that writes the file of a `Found`; it is told file and time by `--found` and `--seconds`.

    `weight` is its part of the whole time; what a step leaves goes to those after it.
    """

    name: str
    command: Sequence[str]
    weight: float


def run_steps(steps: Sequence[Step], out: Path, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run one after the other; (name, {state, took_s, lines}) of each as soon as it is over. Logs go to `out`."""
    ends = time.monotonic() + seconds
    for index, step in enumerate(steps):
        part = step.weight / sum(each.weight for each in steps[index:])
        yield step.name, _ran(step, out, part * max(0.0, ends - time.monotonic()))


def _ran(step: Step, out: Path, seconds: float) -> dict[str, Any]:
    file, began = out / f"{step.name}.json", time.monotonic()
    file.unlink(missing_ok=True)
    command = [*step.command, "--found", str(file), "--seconds", str(seconds)]
    with (out / f"{step.name}.log").open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
        try:
            code = child.wait(seconds)
            state = f"failed with exit code {code}" if code else ENDED
        except subprocess.TimeoutExpired:
            state = f"stopped after {seconds:.0f} s"
        finally:
            # With all that it started and left behind.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    lines = json.loads(file.read_bytes()) if file.exists() else {}
    return {"state": state, "took_s": round(time.monotonic() - began, 1), "lines": lines}


def errors(step: Mapping[str, Any]) -> list[str]:
    """Lines of a step that ended with an error."""
    return [name for name, figures in step["lines"].items() if "error" in figures]


def well(step: Mapping[str, Any]) -> bool:
    """Whether a step ended, and all of its lines did."""
    return step["state"] == ENDED and not errors(step)


def report(steps: Mapping[str, Mapping[str, Any]], cpu: bool = False) -> str:
    """Markdown: a table of the steps, then for each its lines, those of the same figures in one table."""
    summary = [
        [name, step["state"], step["took_s"], len(step["lines"]), len(errors(step))] for name, step in steps.items()
    ]
    parts = [
        "# A rehearsal on the CPU" if cpu else "# damp-deploy on a GPU",
        _table(["step", "state", "s", "lines", "errors"], summary),
    ]
    for name, step in steps.items():
        tables: dict[tuple[str, ...], list[list[Any]]] = {}
        for line, figures in step["lines"].items():
            flat = dict(_flat(figures))
            tables.setdefault(tuple(flat), []).append([line, *flat.values()])
        parts += [f"## {name}", *(_table(["", *columns], rows) for columns, rows in tables.items())]
    return "\n\n".join(parts) + "\n"


def _flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def shown(row: Sequence[Any]) -> str:
        cells = (f"{cell:.5g}" if isinstance(cell, float) else str(cell) for cell in row)
        return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([shown(columns), "|" + "---|" * len(columns), *map(shown, rows)])
