"""Real cubes without truth: which bands a model is given, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import real
from deploy.checking.evaluation import opened
from runtime.simulation.simulator import simulate_scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scene as noisy as a satellite's, with a band that holds nothing, under the name of a real one."""
    (tmp_path / "noisy").mkdir()
    truth = simulate_scene(0, 34, 40, 40).truth
    cube = truth + 0.02 * np.random.default_rng(0).standard_normal(truth.shape)
    cube[3] = np.nan
    centres = np.concatenate([np.arange(390, 710, 10), [800, 900]]).astype(float)
    np.savez(tmp_path / "noisy" / "salton_sea_roi.npz", cube=cube.transpose(1, 2, 0), wavelength_nm=centres)
    return tmp_path


def test_models_stand_beside_what_was_given_of_their_bands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "out"
    models = ("damp-base-rs", "damp-nano")
    arguments = ["real", "--models", *models, "--cubes", "salton", "--data", str(folder), "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    assert real.main() == 0
    assert "real cubes, no truth" in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (out / "real.md").read_text().splitlines()[4:]]
    assert [row[:2] for row in rows] == [
        ["AVIRIS, Salton Sea, 33 bands", "input"],
        ["", "non-local means"],
        ["", "damp-base-rs"],
        ["AVIRIS, Salton Sea, 31 bands", "input"],
        ["", "non-local means"],
        ["", "damp-nano"],
    ]
    assert all(float(row[2]) <= float(row[3]) for row in rows if row[1] == "input")
    assert all(row[5].startswith("noise ") == (row[1] == "input") for row in rows)
    pages = sorted(path.name for path in out.glob("*.html"))
    assert pages == ["aviris-salton-sea-31-bands.html", "aviris-salton-sea-33-bands.html"]
    # Colour, and a noisy and a clean band with what was changed of each; then the curve.
    assert (out / pages[0]).read_text().count("data:image/png;base64") == 3 + 2 * (3 + 2) + 1
    assert Image.open(out / "real.png").mode == "P"


def test_a_model_is_given_the_bands_nearest_to_its_own_or_none() -> None:
    with opened("damp-nano", {}) as model, opened("damp-base-rs", {}) as any_bands:
        assert model.wavelengths is not None
        centres = np.asarray(model.wavelengths)
        sensor = np.concatenate([[300.0], centres[::-1] + 3.0, [900.0]])
        assert real.bands_for(model, 33, sensor) == tuple(range(31, 0, -1))
        assert real.bands_for(model, 33, sensor + 40) is None
        assert real.bands_for(model, 33, None) is None
        assert real.bands_for(model, 20, centres[:20]) is None
        assert real.bands_for(any_bands, 33, None) == tuple(range(33))
        assert real.bands_for(any_bands, 30, None) is None


def test_without_the_cubes_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DAMP_DATA", raising=False)
    monkeypatch.setattr("sys.argv", ["real"])
    assert real.main() == 0 and "DAMP_DATA" in capsys.readouterr().out
