"""The bundles that fly."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.manifest import MANIFEST
from tests.conftest import FLIGHT_BUNDLES

NAMES = sorted(path.parent.name for path in FLIGHT_BUNDLES.glob(f"*/{MANIFEST}")) if FLIGHT_BUNDLES else ["tiny"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of `name` runs for every bundle that is there."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", NAMES)


@pytest.fixture
def bundle(name: str, request: pytest.FixtureRequest) -> Path:
    """The bundle of that name."""
    if FLIGHT_BUNDLES is not None:
        return FLIGHT_BUNDLES / name
    built: Path = request.getfixturevalue("tiny_bundle")
    return built


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests measured, of bundles that another computer built."""
    rows = [
        (report.nodeid.partition("::")[2], *measured)
        for report in terminalreporter.stats.get("passed", [])
        for measured in report.user_properties
        if FLIGHT_BUNDLES
    ]
    for test, name, figure in sorted(rows):
        terminalreporter.write_line(f"{test.partition('[')[2].rstrip(']'):18} {name}: {figure}")
