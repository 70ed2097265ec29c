"""`make train-background`: started once, found again, stopped and gone on with."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = "damp-nano"


def waited(for_: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not for_():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flock") is None, reason="this system has no flock")
def test_a_run_in_the_background_is_started_once_and_goes_on_where_it_was(tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "runs" / RECIPE
    scenes.mkdir()
    for seed, name in enumerate(("one", *load_recipe(ROOT / f"training/recipes/{RECIPE}.yaml").data.validation)):
        cube = np.random.default_rng(seed).integers(0, 60000, (64, 64, 31), np.uint16)
        np.savez(scenes / f"{name}.npz", cube=cube)

    def started() -> subprocess.CompletedProcess[str]:
        # The environment of the tests is as it has to be: nothing is installed anew.
        arguments = [f"RECIPE={RECIPE}", f"SCENES={scenes}", f"RUNS={out.parent}", f"VENV={sys.prefix}"]
        command = ["make", "-s", "-o", f"{sys.prefix}/.installed", "train-background", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    first = started()
    assert first.returncode == 0, first.stderr
    process = int(re.findall(r"process (\d+)", first.stdout)[0])
    try:
        second = started()
        assert second.returncode != 0 and "trains here already" in second.stderr
        waited(lambda: "beginning at step 0" in (out / "log").read_text())
        assert os.getpriority(os.PRIO_PROCESS, process) == 19
    finally:
        os.kill(process, signal.SIGTERM)
    waited(lambda: (out / "state.pt").exists() and not Path(f"/proc/{process}").exists())
    done = torch.load(out / "state.pt", weights_only=True)["step"]
    assert done >= 1
    third = started()
    assert third.returncode == 0, third.stderr
    again = int(re.findall(r"process (\d+)", third.stdout)[0])
    try:
        waited(lambda: f"going on at step {done}" in (out / "log").read_text())
    finally:
        os.kill(again, signal.SIGKILL)
