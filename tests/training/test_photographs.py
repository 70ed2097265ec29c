"""Photographs as scenes: reflectances of sRGB's primaries, light instead of code values, a light of their own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linprog

from runtime.errors import InputError
from tests.training.test_training import BANDS, made
from training.data import Draws, lifted, load_scenes
from training.photographs import COARSEST, D65, FINEST, STEP, linear, read_photograph, spectra
from training.recipe import Photographs, Recipe

GRID = np.arange(FINEST, COARSEST + 1, STEP)
MEASURED = (
    (0.001368, 0.000039, 0.006450), (0.014310, 0.000396, 0.067850), (0.134380, 0.004000, 0.645600),
    (0.348280, 0.023000, 1.747060), (0.290800, 0.060000, 1.669200), (0.095640, 0.139020, 0.812950),
    (0.004900, 0.323000, 0.272000), (0.063270, 0.710000, 0.078250), (0.290400, 0.954000, 0.020300),
    (0.594500, 0.995000, 0.003900), (0.916300, 0.870000, 0.001650), (1.062200, 0.631000, 0.000800),
    (0.854450, 0.381000, 0.000190), (0.447900, 0.175000, 0.000020), (0.164900, 0.061000, 0.000000),
    (0.046770, 0.017000, 0.000000), (0.011359, 0.004102, 0.000000), (0.002899, 0.001047, 0.000000),
)  # fmt: skip
"""CIE 1931 colour matching functions as they were measured, 380 to 720 nm in steps of 20 (ISO/CIE 11664-1)."""
PRIMARIES = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""Linear sRGB to XYZ, IEC 61966-2-1."""


def gaussians(nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The eye of Wyman, Sloan and Shirley (2013), row by row from their table: height, centre, 1 / widths."""
    rows = (
        ((1.056, 599.8, 0.0264, 0.0323), (0.362, 442.0, 0.0624, 0.0374), (-0.065, 501.1, 0.0490, 0.0382)),
        ((0.821, 568.8, 0.0213, 0.0247), (0.286, 530.9, 0.0613, 0.0322)),
        ((1.217, 437.0, 0.0845, 0.0278), (0.681, 459.0, 0.0385, 0.0725)),
    )
    eye = []
    for lobes in rows:
        parts = [h * np.exp(-0.5 * ((nm - c) * np.where(nm < c, low, high)) ** 2) for h, c, low, high in lobes]
        eye.append(np.sum(parts, axis=0))
    return np.array(eye)


def colours(basis: NDArray[np.float32], eye: NDArray[np.float64], light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear sRGB [3, colours] of reflectances [n, colours], white balanced."""
    to_rgb = np.linalg.inv(PRIMARIES) @ (eye * light) / (eye[1] @ light)
    return (to_rgb @ basis) / to_rgb.sum(1, keepdims=True)


# Spectra


def test_spectra_are_reflectances_that_sum_to_white() -> None:
    for wavelengths in (GRID, np.linspace(400, 700, 31), np.linspace(300, 1000, 50)):
        basis = spectra(tuple(wavelengths))
        assert basis.shape == (len(wavelengths), 3) and basis.dtype == np.float32
        assert basis.min() >= 0 and basis.max() <= 1
        np.testing.assert_allclose(basis.sum(1), 1, atol=1e-6)
    ends = spectra((300, FINEST, COARSEST, 2500))
    np.testing.assert_array_equal(ends[[0, 3]], ends[[1, 2]])


def test_their_colours_are_red_green_and_blue() -> None:
    basis = spectra(tuple(GRID))
    np.testing.assert_allclose(colours(basis, gaussians(GRID), np.array(D65)), np.eye(3), atol=2e-3)
    # To the eye that was measured, but for the error of the approximation.
    measured = colours(basis[::2], np.array(MEASURED).T, np.array(D65)[::2])
    np.testing.assert_allclose(measured, np.eye(3), atol=0.01)


def test_white_light_is_white() -> None:
    seen = np.array(MEASURED).T @ np.array(D65)[::2]
    np.testing.assert_allclose(seen / seen[1], (0.9505, 1, 1.0890), atol=0.01)


def test_red_is_long_green_in_the_middle_and_blue_short() -> None:
    red, green, blue = spectra((440, 500, 540, 560, 620, 650, 700)).T
    assert red[4:].min() > 0.95 and red[1:4].max() < 0.05
    assert green[2:4].min() > 0.95 and max(green[0], *green[4:]) < 0.05
    assert blue[0] > 0.95 and blue[2:].max() < 0.1


def test_no_smoother_spectra_have_these_colours() -> None:
    basis = spectra(tuple(GRID)).T.astype(np.float64)
    count = len(GRID)
    steps = np.diff(basis, axis=1)
    cost = (steps**2).sum()
    assert np.abs(steps).max() < 0.3
    slope = 2 * (np.pad(steps, ((0, 0), (1, 0))) - np.pad(steps, ((0, 0), (0, 1))))
    # Least squares are convex: no spectra of the same colours and sum are better by more than this descent.
    eye = gaussians(GRID) * np.array(D65)
    same = np.vstack([np.kron(np.eye(3), eye), np.tile(np.eye(count), 3)])
    best = linprog(slope.ravel(), A_eq=same, b_eq=same @ basis.ravel(), bounds=(0, 1))
    assert best.success and slope.ravel() @ basis.ravel() - best.fun < 0.002 * cost


# Files


def photograph(path: Path, encoded: NDArray[np.uint8]) -> Path:
    Image.fromarray(encoded).save(path)
    return path


@pytest.mark.parametrize(
    ("encoded", "light"),
    [(0, 0), (1, 1 / 255 / 12.92), (10, 10 / 255 / 12.92), (128, 0.21586), (188, 0.50289), (255, 1)],
)
def test_code_values_are_those_of_srgb(encoded: int, light: float, tmp_path: Path) -> None:
    read = read_photograph(photograph(tmp_path / "p.png", np.full((6, 8, 3), encoded, np.uint8)))
    assert read.shape == (3, 3, 4) and read.dtype == np.uint8
    # Half a step of the square root.
    assert abs(np.sqrt(linear(read)) - np.sqrt(light)).max() <= 0.5 / 255 + 1e-6


def test_halving_averages_light_not_code_values(tmp_path: Path) -> None:
    board = np.zeros((8, 8, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    np.testing.assert_allclose(linear(read_photograph(photograph(tmp_path / "p.png", board))), 0.5, atol=0.003)


def test_a_photograph_is_red_green_and_blue_by_lines_and_samples(tmp_path: Path) -> None:
    coloured = np.zeros((5, 7, 3), np.uint8)
    coloured[2:4, :2] = (255, 0, 0)
    coloured[2:4, 4:6] = (0, 0, 255)
    expected = np.zeros((3, 2, 3), np.uint8)
    expected[0, 1, 0] = expected[2, 1, 2] = 255
    np.testing.assert_array_equal(read_photograph(photograph(tmp_path / "p.png", coloured)), expected)
    grey = read_photograph(photograph(tmp_path / "g.png", np.full((4, 4), 188, np.uint8)))
    assert grey.shape == (3, 2, 2) and (grey == grey[0, 0, 0]).all()


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def png_of_a_chunk_without_name() -> bytes:
    """Pillow says SyntaxError of it."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[second : second + 4] = b"\xff\x00\xff\x00"
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("half.jpg", jpeg()[:2000]),
        ("text.jpg", b"no photograph"),
        ("empty.jpeg", b""),
        ("broken.png", png_of_a_chunk_without_name()),
    ],
)
def test_a_broken_photograph_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    photograph(tmp_path / "whole.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="is no photograph") as caught:
        load_scenes(tmp_path, with_photographs().data)
    assert caught.value.file == str(tmp_path / name) and caught.value.exit_code == 2


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "P", "LA", "1"])
def test_a_photograph_that_would_be_misread_is_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "odd.png")
    with pytest.raises(InputError, match="8 bits a colour") as caught:
        load_scenes(tmp_path, with_photographs().data)
    assert mode in str(caught.value.value)


def test_a_photograph_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    Image.new("L", (10_000, 6_401)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="64 megapixels"):
        load_scenes(tmp_path, with_photographs().data)


@pytest.mark.data
def test_real_photographs_are_read(data_dir: Path) -> None:
    found = load_scenes(data_dir / "rgb" / "bsds-train", with_photographs().data)
    assert len(found.photographs) == 200 and not found.cubes
    for name, values in found.photographs.items():
        assert sorted(values.shape) == [3, 160, 240], name
        assert values.dtype == np.uint8 and np.ptp(values) > 100 and 0.01 < linear(values).mean() < 0.9, name


# Scenes


def with_photographs(share: float = 1.0, tint: float = 0.0) -> Recipe:
    recipe = made()
    photographs = Photographs(share=share, tint=tint)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"photographs": photographs})})


def random_photograph() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).random((3, 16, 16), np.float32))


def test_without_a_tint_a_scene_is_its_three_reflectances() -> None:
    rgb, basis = random_photograph(), torch.from_numpy(spectra(tuple(range(400, 701, 10))))
    found = lifted(rgb, basis, 0.0, np.random.default_rng(0))
    torch.testing.assert_close(found, torch.einsum("bc,chw->bhw", basis, rgb))
    white = lifted(torch.ones(3, 4, 4), basis, 0.0, np.random.default_rng(0))
    torch.testing.assert_close(white, torch.ones(31, 4, 4))


@pytest.mark.parametrize("tint", [0.5, 3.0])
def test_a_tint_is_one_smooth_light_for_the_whole_scene(tint: float) -> None:
    rgb, basis = random_photograph(), torch.from_numpy(spectra(tuple(range(400, 701, 10))))
    plain, lights = lifted(rgb, basis, 0.0, np.random.default_rng(0)), []
    for seed in range(50):
        ratio = (lifted(rgb, basis, tint, np.random.default_rng(seed)) / plain).reshape(31, -1)
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)
        lights.append(ratio[:, 0].double().numpy())
    gains = np.array(lights)
    assert gains.min() > 0 and gains.max() <= 1 + 1e-6
    np.testing.assert_allclose(gains.max(1), 1, atol=1e-6)
    # Its logarithm is three cosines and a constant, the first of the tint's deviation.
    waves = np.cos(np.pi * np.outer(np.linspace(0, 1, 31), range(4)))
    weights, residue, *_ = np.linalg.lstsq(waves, np.log(gains).T)
    assert residue.max() < 1e-8
    np.testing.assert_allclose(weights[1:].std(1), tint / np.array([1, 2, 4]), rtol=0.3)


def test_patches_are_of_photographs_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photograph(tmp_path / "photograph.png", rng.integers(0, 256, (140, 150, 3), np.uint8))
    np.savez(tmp_path / "cube.npz", cube=rng.integers(0, 60000, (70, 80, BANDS), np.uint16))
    basis = spectra(tuple(np.linspace(400, 700, BANDS)))
    shares = {}
    for share, batches in ((1.0, 4), (0.5, 20)):
        recipe = with_photographs(share)
        draws = Draws(recipe, load_scenes(tmp_path, recipe.data), torch.device("cpu"))
        patches = torch.cat([draws.batch(at).clean for at in range(batches)]).numpy()
        lines = [np.linalg.lstsq(basis, patch.reshape(BANDS, -1))[1].max() < 1e-6 for patch in patches]
        shares[share] = np.mean(lines)
    assert shares[1.0] == 1 and 0.25 < shares[0.5] < 0.75
    assert not load_scenes(tmp_path, made().data).photographs
