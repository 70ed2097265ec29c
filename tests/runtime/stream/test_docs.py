"""The program of docs/streaming.md runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_example_runs(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build/bundle").symlink_to(tiny_bundle)
    program = re.search(r"```python\n(.*?)```", (ROOT / "docs/streaming.md").read_text(), re.DOTALL)
    assert program
    done = subprocess.run(
        [sys.executable, "-c", program[1]], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "issued=300" in done.stdout.splitlines()[-1]
    assert done.stdout.count("\n") > 2
