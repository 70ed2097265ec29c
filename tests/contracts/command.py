"""What every `deploy` command line must do: exit codes, one line for people, one object for machines."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import run
from runtime.errors import printable

ROOT = str(Path(__file__).parents[2])
ERROR = "deploy: error: "
PATIENCE = 900
"""Seconds for a process that takes one or two here: an emulated computer is fifty times slower."""


@dataclass(frozen=True)
class Done:
    """A command line that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object of `--json`: the last line of standard output, and nothing else is there."""
        assert self.out.endswith("\n") and self.out.count("\n") == 1, self.out
        content = json.loads(self.out, parse_constant=_never)
        assert isinstance(content, dict)
        return content


def _never(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run a command line in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    done = Done(code, captured.out, captured.err)
    assert_plain(done)
    return done


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "deploy", *map(str, arguments)]


def start(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """Run a command line as a process of its own."""
    done = subprocess.run(
        command_line(*arguments),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ROOT, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def assert_plain(done: Done) -> None:
    """Nothing that a terminal would obey, and no traceback."""
    for text in (done.out, done.err):
        assert not (strange := {c for c in text if not (c.isprintable() or c == "\n")}), strange
        assert "Traceback" not in text


def assert_failed(done: Done, code: int, *parts: str) -> str:
    """It ended with this exit code and one line on standard error that has all the parts; returns that line."""
    lines = [line for line in done.err.splitlines() if line.startswith(ERROR)]
    assert done.code == code, done.err
    assert len(lines) == 1 and done.err.endswith(lines[0] + "\n"), done.err
    for part in parts:
        assert part in lines[0]
    return lines[0].removeprefix(ERROR)


def assert_json_error(done: Done, code: int) -> dict[str, Any]:
    """It failed with an error object that says the same as the line for people; returns the object."""
    line = assert_failed(done, code)
    error = done.json["error"]
    assert {"code", "file", "key", "value", "remedy"} <= set(error) and error["code"] == code
    assert printable(error["message"]) in line and printable(error["remedy"]) in line
    return dict(error)


def assert_finite(content: Any) -> None:
    """All numbers in a JSON value are finite."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            assert_finite(value)
    elif isinstance(content, float):
        assert math.isfinite(content)
