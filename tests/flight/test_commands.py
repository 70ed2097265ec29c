"""The command line on a flight computer."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from deploy.cli import COMMANDS
from tests.contracts.command import invoke, start


def test_the_command_helps(tmp_path: Path) -> None:
    done = start("--help", cwd=tmp_path)
    assert done.code == 0, done.err
    assert set(COMMANDS) <= set(done.out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = invoke(capsys, command, "--help")
    assert done.code == 0, done.err
    assert f"Usage: deploy {command} [OPTIONS]" in done.out


def test_doctor_finds_an_engine(tmp_path: Path) -> None:
    done = start("doctor", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    findings = {finding["name"]: finding for finding in done.json["findings"]}
    assert platform.python_version() in findings["damp-deploy"]["text"]
    assert platform.machine() in findings["machine"]["text"]
    assert findings["engine onnxruntime"]["outcome"] == "ok"
