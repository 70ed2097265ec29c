"""Every command of docs/precision.md runs, on simulated cubes; what its text promises of them is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from runtime.simulation.simulator import simulate_scene
from tests.conftest import ROOT
from tests.contracts.command import invoke

PAGE = (ROOT / "docs" / "precision.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line.strip()
]
FILES = re.findall(r"with `([a-z]+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_commands_and_files() -> None:
    assert len(COMMANDS) >= 6 and {name for name, _ in FILES} == {"strict.yaml", "more.yaml"}
    assert all(command.startswith("deploy ") for command in COMMANDS)


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate(("cubes", "cubes", "cubes", "cubes", "held")):
        cube = simulate_scene(seed, 31, 96, 96).truth
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / f"scene-{seed}.npy", np.moveaxis(cube, 0, -1))
    for name, text in FILES:
        (tmp_path / name).write_text(text)
    for command in COMMANDS:
        done = invoke(capsys, *shlex.split(command)[1:])
        assert done.code == 0, f"{command}: {done.err}"
    page = (tmp_path / "check.html").read_text()
    for part in ("Every variant against PyTorch", "Same experts by layer", "The tiles least like PyTorch"):
        assert part in page
    assert (tmp_path / "sensitivity" / "sensitivity.json").is_file()
