"""The program of docs/python.md runs as it stands, `import deploy` is light, and types reach whoever imports us."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import deploy
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_example_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "damp-nano").symlink_to(tiny_checkpoint)
    program = re.search(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    assert program
    done = python(program[1], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^noise -?\d+\.\d\d dB, PyTorch -?\d+\.\d\d dB$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1].startswith("(31, 80, 100) ")


def test_nothing_is_imported_before_it_is_used(tmp_path: Path) -> None:
    code = "import sys, deploy\n{}print(*(m for m in sys.modules if m.split('.')[0] in {}))"
    ours = ("deploy", "torch", "export", "calibration", "runtime")
    assert python(code.format("", ours), tmp_path).stdout.split() == ["deploy"]
    flying = python(code.format("import runtime\n", ours), tmp_path).stdout.split()
    assert flying == ["deploy", "runtime"]


def test_the_names_are_those_that_are_told() -> None:
    assert all(getattr(deploy, name).__module__.startswith("deploy.") for name in deploy.__all__)
    with pytest.raises(AttributeError, match="no attribute 'demolish'"):
        _ = deploy.demolish


@pytest.mark.slow
def test_a_program_of_ours_is_typed(tmp_path: Path) -> None:
    """mypy reads our types where it finds `py.typed` beside them, as in an installed package."""
    for package in ("calibration", "deploy", "export", "runtime", "training"):
        assert (ROOT / package / "py.typed").is_file()
    (tmp_path / "program.py").write_text(
        "import deploy, runtime\n"
        "reveal_type(deploy.load_config)\n"
        "reveal_type(runtime.load_bundle('bundle').restore)\n"
        "runtime.load_bundle(3)\n"
    )
    found = python("from mypy.main import main; main()", tmp_path, "--strict", "program.py")
    assert "deploy.config.sections.Config" in found.stdout and "runtime.restore.Restored" in found.stdout
    assert re.findall(r"^program.py:(\d+): error", found.stdout, re.MULTILINE) == ["4"], found.stdout


def python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program as a user runs it, outside this tree."""
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)
