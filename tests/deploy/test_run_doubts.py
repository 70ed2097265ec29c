"""`deploy run` says what it read, and doubts a scale or axes that nobody said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.contracts.command import invoke


@pytest.mark.parametrize(
    ("cube", "flags", "warned"),
    [
        (np.full((64, 64, 31), 4000, np.uint16), (), "6.1 % of the bundle's scale 65535"),
        (np.full((64, 64, 31), 4000, np.uint16), ("--scale", 4095), None),
        (np.full((64, 64, 31), 40000, np.uint16), (), None),
        (np.where(np.arange(31) == 4, 9.0, np.full((64, 64, 31), 0.5)).astype(np.float32), (), "values reach 9 "),
        (np.full((64, 64, 31), 0.5, np.float32), (), None),
        (np.full((31, 40, 50), 0.5, np.float32), (), "is --layout right?"),
    ],
)
def test_what_looks_wrong_is_told(
    capsys: pytest.CaptureFixture[str],
    tiny_bundle: Path,
    tmp_path: Path,
    cube: np.ndarray,
    flags: tuple[object, ...],
    warned: str | None,
) -> None:
    np.save(tmp_path / "cube.npy", cube)
    out = tmp_path / "out.npy"
    done = invoke(capsys, "run", tiny_bundle, tmp_path / "cube.npy", "--out", out, "--json", *flags)
    assert done.code == 0 and f"{cube.shape[2]} bands x {cube.shape[0]} lines x {cube.shape[1]} samples" in done.err
    told = [w for w in done.json["warnings"] if "do not fit" not in w]
    assert told == [] if warned is None else len(told) == 1 and warned in told[0]
