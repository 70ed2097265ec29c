"""What every test finds: the folder of real cubes, a calm PyTorch, and a word on tests left out for want of data."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("DAMP_DATA") or ROOT.parent / "shared" / "data").resolve()
LEFT_OUT = "set DAMP_DATA to the folder of the real cubes"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real cubes; a test that asks for it is left out where there is none."""
    if not DATA.is_dir():
        pytest.skip(LEFT_OUT)
    return DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests marked `data` where there are no real cubes."""
    if DATA.is_dir():
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT))


def pytest_collection_finish() -> None:
    """Two threads are what the tests were measured with; tests that need PyTorch have imported it by now.

    The first `torch.sqrt` of a process was seen to be inexact in one of two threads, so a small one goes first.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
        torch.sqrt(torch.rand(1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line on the tests that were left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("DAMP_DATA" in report.longreprtext for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} data tests left out: set DAMP_DATA")
