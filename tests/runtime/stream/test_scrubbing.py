"""Files of a bundle that flies are looked at again and again."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from runtime.bundle_files import verified_bundle
from runtime.stream import scrubbing
from runtime.stream.scrubbing import Scrubber
from tests.contracts.bundles import known_bundle


@pytest.mark.parametrize("what", ["flipped", "gone"])
def test_a_file_that_changes_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(scrubbing, "PIECE_S", 0.01)
    folder = known_bundle(tmp_path / "bundle")
    found: queue.Queue[tuple[Path, str]] = queue.Queue()
    graph = folder / "graphs/fp32.onnx"
    with Scrubber(folder, verified_bundle(folder).manifest.files, lambda *told: found.put(told)):
        with pytest.raises(queue.Empty):
            found.get(timeout=0.5)
        if what == "gone":
            graph.unlink()
        else:
            data = bytearray(graph.read_bytes())
            data[100] ^= 4
            graph.write_bytes(data)
        assert found.get(timeout=20) == (
            graph, "cannot be read: No such file or directory" if what == "gone" else
            "changed on disk since the bundle was opened",
        )  # fmt: skip
        with pytest.raises(queue.Empty):
            found.get(timeout=0.5)
