"""The commands are tried with graphs that the exporter wrote once."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _graphs_once(graphs_once: None) -> None: ...
