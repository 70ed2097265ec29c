"""`benchmarks.gpu`: no step stops another, what a step found outlives it, and without a GPU the whole is rehearsed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.__main__ import STEPS
from benchmarks.gpu.commands import library_path
from benchmarks.gpu.run import ROOT, Found, Step, errors, report, run_steps, well
from tests.contracts.command import assert_finite

FOUND = """
import os, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu.run import Found
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
found = Found(Path(given["--found"]), float(given["--seconds"]))
with found.line("first") as row:
    row["seconds"] = float(given["--seconds"])
"""
"""A step that has one line, and then does what is added."""


def step(name: str, then: str = "", weight: float = 1.0) -> Step:
    return Step(name, [sys.executable, "-c", FOUND + then], weight)


@pytest.fixture
def alarm() -> Iterator[None]:
    """The handler of alarms is put back."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
def test_steps_that_fail_or_hang_stop_no_other(tmp_path: Path) -> None:
    hang = """
with found.line("second") as row:
    row["child"] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
    found.lines["kept"] = {"of": "half a line"}
with found.line("third") as row:
    import signal; signal.setitimer(signal.ITIMER_REAL, 0); time.sleep(600)
"""
    steps = [
        step("fails", "sys.exit(3)"),
        step("raises", "raise ValueError('nothing here')"),
        step("dies", "os.kill(os.getpid(), 9)"),
        step("hangs", hang, 0.05),
        step("ends"),
    ]
    results = dict(run_steps(steps, tmp_path, 400))
    assert list(results) == ["fails", "raises", "dies", "hangs", "ends"]
    states = {name: result["state"] for name, result in results.items()}
    assert states["fails"] == "failed with exit code 3" and states["raises"] == "failed with exit code 1"
    assert states["dies"] == "failed with exit code -9" and states["ends"] == "ended"
    assert states["hangs"].startswith("stopped after ")
    assert all("first" in result["lines"] for result in results.values())
    assert set(results["hangs"]["lines"]) == {"first", "second", "kept"}
    assert [name for name, result in results.items() if well(result)] == ["ends"]
    assert "ValueError: nothing here" in (tmp_path / "raises.log").read_text()
    assert gone(results["hangs"]["lines"]["second"]["child"])


def gone(process: int) -> bool:
    """A process ends within a minute: what is killed takes a moment."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_time_that_a_step_leaves_goes_to_those_after_it(tmp_path: Path) -> None:
    results = dict(run_steps([step("one", weight=1), step("two", weight=2), step("three", weight=1)], tmp_path, 40_000))
    seconds = [result["lines"]["first"]["seconds"] for result in results.values()]
    assert seconds[0] == pytest.approx(10_000, abs=1)
    # Hardly any of the forty thousand seconds was used.
    assert seconds[1] > 25_000 and seconds[2] > 35_000


def test_a_line_that_fails_or_is_late_ends_alone(tmp_path: Path, alarm: None) -> None:
    file = tmp_path / "step.json"
    found = Found(file, 1000)
    with found.line("fails") as row:
        row["before"] = 1
        raise ValueError("it went wrong")
    assert json.loads(file.read_bytes())["fails"]["before"] == 1
    with found.line("late", 1e-4):
        time.sleep(60)
    with found.line("right") as row:
        row["figure"] = 2.5
    step = {"state": "ended", "took_s": 1, "lines": json.loads(file.read_bytes())}
    assert step["lines"]["fails"]["error"] == "ValueError: it went wrong"
    assert step["lines"]["late"]["error"].startswith("TimeoutError")
    assert step["lines"]["right"]["figure"] == 2.5
    assert errors(step) == ["fails", "late"] and not well(step)


def test_lines_of_the_same_figures_share_a_table() -> None:
    lines = {
        "a": {"ms": {"p50": 1.23456789, "p99": 2.0}, "took_s": 1},
        "wrong": {"error": "x | y\nz", "took_s": 1},
        "b": {"ms": {"p50": 3.0, "p99": 4.0}, "took_s": 1},
    }
    text = report({"latency": {"state": "ended", "took_s": 3, "lines": lines}})
    assert "| latency | ended | 3 | 3 | 1 |" in text
    assert "|  | ms.p50 | ms.p99 | took_s |\n|---|---|---|---|\n| a | 1.2346 | 2 | 1 |\n| b | 3 | 4 | 1 |" in text
    assert "| wrong | x / y z | 1 |" in text


def test_libraries_of_wheels_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia" / "cublas" / "lib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    places = library_path().split(os.pathsep)
    assert str(tmp_path / "nvidia" / "cublas" / "lib") in places and places[-1] == "/elsewhere"


def run(*arguments: object, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path: Path) -> None:
    done = run("--out", tmp_path / "out", seconds=120)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "no GPU" in done.stdout and "--cpu" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_step_without_time_is_told(tmp_path: Path) -> None:
    kept = {"parity": {"state": "ended", "took_s": 1.0, "lines": {"one": {"took_s": 1.0}}}}
    (tmp_path / "gpu.json").write_text(json.dumps(kept))
    done = run("--cpu", "--seconds", 0.1, "--steps", "environment", "--out", tmp_path, seconds=120)
    assert done.returncode == 1 and "stopped after 0 s" in done.stdout
    # What another call found stays.
    told = json.loads((tmp_path / "gpu.json").read_bytes())
    assert told["parity"] == kept["parity"] and told["environment"]["state"] == "stopped after 0 s"
    assert "| parity | ended |" in (tmp_path / "gpu.md").read_text()
    assert run("--cpu", "--steps", "nonsense", seconds=120).returncode == 2


def assert_timed(row: dict[str, Any], *places: str) -> None:
    for place in places:
        assert 0 < row[f"{place} ms"]["median"] <= row[f"{place} ms"]["p99"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_rehearsal_has_every_figure(tmp_path: Path) -> None:
    done = run("--cpu", "--seconds", 5000, "--out", tmp_path, seconds=5400)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "gpu.json").read_bytes())
    assert list(told) == list(STEPS) and all(map(well, told.values()))
    assert_finite(told)
    lines: dict[str, dict[str, Any]] = {name: each["lines"] for name, each in told.items()}
    assert lines["environment"]["ceilings"]["bf16 product TFLOP/s"] > 0
    assert sum(row["passed"] for row in lines["contracts"].values()) > 50
    assert len(lines["bundles"]) == 2
    assert all(row["same experts"] for row in lines["parity"].values()) and len(lines["parity"]) == 3
    for precision, row in lines["engines"].items():
        assert row["golden frame off by"] <= row["of at most"] and row["tiled cube off by"] == 0, precision
    assert all("psnr_drop_db" in row for row in lines["check"].values()) and len(lines["check"]) == 2
    for line in ("fp32", "int8, the rest fp32", "int8, the rest fp16"):
        assert_timed(lines["int8"][line], "host")
    assert all(row["times PyTorch"] > 0 for row in lines["bench"].values()) and len(lines["bench"]) == 2
    assert all(row["steps a second"] > 0 for way, row in lines["training"].items() if way != "batches alone")
    forms = [f"PyTorch, {form}" for form in ("reference, fp32", "deployment, bf16", "compiled, fp32")]
    for way in ("onnxruntime, fp32", "onnxruntime, fp16", *forms):
        assert_timed(lines["latency"][way], "host", "device")
    tables = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name}\n" in tables for name in STEPS)
    assert all((tmp_path / f"{name}.log").exists() for name in STEPS)
