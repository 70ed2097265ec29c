"""The commands are tried with graphs that the exporter wrote once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.bundles import known_bundle


@pytest.fixture(scope="session", autouse=True)
def _graphs_once(graphs_once: None) -> None: ...


@pytest.fixture(scope="session")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that doubles. To be read."""
    return known_bundle(tmp_path_factory.mktemp("doubling") / "bundle", gain=2)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
