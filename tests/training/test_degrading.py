"""Damages of batches: each is what `calibration.degradations` defines, for every cube of a batch on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration import degradations
from calibration.degradations import DEGRADATIONS, POISSON_PEAK, gaussian_kernel, lost_bands
from runtime.simulation.simulator import simulate_scene
from tests.export.test_devices import OnOneDevice
from training import degrading
from training.degrading import DAMAGES

SHAPE = (8, 31, 70, 65)


class Chosen(np.random.Generator):
    """Gives the severities that a test wants, as long as a damage asks for a range that has them."""

    def __init__(self, *severities: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.severities = np.array(severities)

    def choice(self, options: Any, size: Any = None, **how: Any) -> Any:
        if how:
            return super().choice(options, size, **how)
        assert set(self.severities) <= set(options) and size == len(self.severities)
        return self.severities

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        assert low <= self.severities.min() and self.severities.max() <= high and size == len(self.severities)
        return self.severities


def cubes(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(np.float32))


def flat(level: float, *shape: int) -> Tensor:
    return torch.full(shape, level)


def damaged(
    name: str, clean: Tensor, *, seed: int = 1, field: int = 2, strength: float = 1.0, severities: Sequence[float] = ()
) -> NDArray[np.float32]:
    rng = Chosen(*severities) if severities else np.random.default_rng(seed)
    return DAMAGES[name](clean, rng, torch.Generator().manual_seed(field), strength).numpy()


def test_every_degradation_is_a_damage() -> None:
    # What comes after them is of photographs.
    assert list(DAMAGES) == list(DEGRADATIONS)[: len(DAMAGES)]


# Without chance: number for number


@pytest.mark.parametrize(
    ("name", "key", "severities"),
    [("blur", "size", (9, 15, 9)), ("sr", "factor", (4, 2, 4)), ("motionblur", "angle", (0.0, 37.0, 90.0, 170.5))],
)
@pytest.mark.parametrize("size", [(64, 64), (70, 65)])
def test_damages_without_chance_are_as_defined(
    name: str, key: str, severities: tuple[float, ...], size: tuple[int, int]
) -> None:
    clean = cubes(len(severities), 5, *size)
    found = damaged(name, clean, severities=severities)
    for cube, before, severity in zip(found, clean.numpy(), severities, strict=True):
        expected = getattr(degradations, name)(before, np.random.default_rng(0), **{key: severity})
        # Where bicubic samples lie is float32 in torch.
        np.testing.assert_allclose(cube, expected, atol=1e-5 if name == "sr" else 1e-6)


def test_weak_blurs_are_those_of_small_kernels() -> None:
    clean = cubes(2, 3, 64, 64)
    pairs = zip(damaged("blur", clean, strength=0.5, severities=(9, 15)), clean.numpy(), (5, 7), strict=True)
    for cube, before, size in pairs:
        np.testing.assert_allclose(cube, degradations.blur(before, np.random.default_rng(0), size=size), atol=1e-6)
    short = damaged("motionblur", clean, strength=0.5, severities=(20.0, 110.0))
    for cube, before, angle in zip(short, clean.numpy(), (20.0, 110.0), strict=True):
        expected = degradations.motionblur(before, np.random.default_rng(0), length=8, angle=angle)
        np.testing.assert_allclose(cube, expected, atol=1e-6)
    assert gaussian_kernel(1).tolist() == [1.0]
    for name in ("blur", "motionblur"):
        np.testing.assert_array_equal(damaged(name, clean, strength=0.05), clean.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_astigmatism_is_as_defined(seed: int) -> None:
    clean = cubes(1, 5, 64, 64)
    (found,) = damaged("astigmatism", clean, seed=seed)
    expected = degradations.astigmatism(clean.numpy()[0], np.random.default_rng(seed))
    np.testing.assert_allclose(found, expected, atol=1e-6)


# With chance: severities and statistics


def test_faint_noise_has_the_deviations_that_are_defined() -> None:
    clean = cubes(2, 31, 64, 64)
    added = damaged("faint", clean, strength=0.5, seed=3) - clean.numpy()
    sigmas = np.exp(np.random.default_rng(3).uniform(*np.log(degradations.FAINT_SIGMAS), (2, 31)))
    np.testing.assert_allclose(added.std((2, 3)), sigmas / 2, rtol=0.06)
    assert 30 < sigmas.max() / sigmas.min() <= 40


def test_noise_is_white_of_each_cubes_own_deviation() -> None:
    clean, sigmas = cubes(3, 31, 64, 64), (30 / 255, 50 / 255, 70 / 255)
    added = damaged("noise", clean, severities=sigmas) - clean.numpy()
    np.testing.assert_allclose(added.std((1, 2, 3)), sigmas, rtol=0.02)
    np.testing.assert_allclose(added.mean((1, 2, 3)), 0, atol=0.003)
    unit = added / added.std((1, 2, 3), keepdims=True)
    assert (np.abs(unit) > 1).mean() == pytest.approx(0.3173, abs=0.01)
    neighbours = (unit[:, :, :, 1:] * unit[:, :, :, :-1], unit[:, 1:] * unit[:, :-1], unit[1:] * unit[:-1])
    assert all(abs(product.mean()) < 0.01 for product in neighbours)


def test_inpaint_takes_each_cubes_own_share_and_leaves_the_rest() -> None:
    clean, rates = cubes(4, 31, 64, 64).numpy(), (0.7, 0.8, 0.7, 0.8)
    found = damaged("inpaint", torch.from_numpy(clean), severities=rates)
    gone = found == 0
    np.testing.assert_array_equal(found[~gone], clean[~gone])
    np.testing.assert_allclose(gone.mean((1, 2, 3)), rates, atol=0.005)
    # Each element on its own: cubes and bands do not lose the same ones.
    assert (gone[0] & gone[2]).mean() == pytest.approx(0.49, abs=0.01)
    assert (gone[0, 1:] & gone[0, :-1]).mean() == pytest.approx(0.49, abs=0.01)


def test_bandloss_takes_each_cubes_own_bands() -> None:
    clean = cubes(*SHAPE).numpy()
    found = damaged("bandloss", torch.from_numpy(clean))
    lost = np.stack([lost_bands(cube) for cube in found])
    np.testing.assert_array_equal(found[~lost], clean[~lost])
    assert set(lost.sum(1)) == {round(0.1 * 31), round(0.2 * 31)}
    assert len({row.tobytes() for row in lost}) == len(lost)


def test_one_band_at_least_is_lost() -> None:
    clean = cubes(2, 4, 64, 64)
    for strength in (1.0, 0.01):
        assert [lost_bands(cube).sum() for cube in damaged("bandloss", clean, strength=strength)] == [1, 1]


def test_poisson_counts_photons() -> None:
    levels = torch.tensor([-0.2, 0.0, 0.1, 0.9])[:, None, None, None].expand(4, 31, 64, 64)
    counts = damaged("poisson", levels) * POISSON_PEAK
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-5)
    assert not counts[:2].any()
    for photons, cube in zip((1.0, 9.0), counts[2:], strict=True):
        assert cube.mean() == pytest.approx(photons, rel=0.02) and cube.var() == pytest.approx(photons, rel=0.03)
    assert (np.rint(counts[2]) == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)


def test_stripes_are_a_gain_and_an_offset_of_each_element_of_the_detector() -> None:
    offsets, both = (damaged("stripes", flat(level, 4, 31, 64, 200)) for level in (0.0, 1.0))
    gains = both - 1 - offsets
    for errors, deviation in ((offsets, 0.03), (gains, 0.05)):
        assert not np.ptp(errors, axis=2).any()
        elements = errors[:, :, 0]
        np.testing.assert_allclose(elements.std((1, 2)), deviation, rtol=0.05)
        np.testing.assert_allclose(elements.mean((1, 2)), 0, atol=0.003)
        assert abs(np.corrcoef(elements.reshape(4, -1)) - np.eye(4)).max() < 0.05
    assert abs(np.corrcoef(gains[:, :, 0].ravel(), offsets[:, :, 0].ravel())[0, 1]) < 0.05


def test_dead_columns_are_stuck_in_each_cubes_own_places() -> None:
    clean = cubes(8, 31, 64, 100).numpy()
    found = damaged("deadlines", torch.from_numpy(clean))
    changed = found != clean
    dead = changed.all(2)
    np.testing.assert_array_equal(changed.any(2), dead)
    assert (dead.any(2).sum(1) == round(0.3 * 31)).all()
    assert set(dead.sum(2).ravel()) == {0, round(0.05 * 100)}
    assert len({row.tobytes() for row in dead}) == len(dead)
    assert dead.any((0, 1)).mean() > 0.9 and dead.any((0, 2)).mean() > 0.8
    stuck = found.transpose(0, 1, 3, 2)[dead]
    assert not np.ptp(stuck, axis=1).any()
    values = stuck[:, 0]
    assert (values == 0).mean() == pytest.approx(0.5, abs=0.1)
    assert values.min() >= 0 and values.max() <= 1 and values[values > 0].mean() == pytest.approx(0.5, abs=0.05)


def test_mixed_is_a_worn_sensor() -> None:
    sigmas = np.repeat((10 / 255, 20 / 255, 30 / 255), 2)
    found = damaged("mixed", flat(0.5, 6, 31, 64, 100), severities=tuple(sigmas))
    stuck = np.ptp(found, axis=2) == 0
    lost = np.stack([lost_bands(cube) for cube in found])
    assert (lost.sum(1) == round(0.1 * 31)).all() and len({row.tobytes() for row in lost}) == len(lost)
    dead = stuck & ~lost[:, :, None]
    # A band may have dead columns and be lost.
    assert set(dead.sum(2).ravel()) == {0, round(0.03 * 100)}
    assert all(round(0.2 * 31) - 3 <= count <= round(0.2 * 31) for count in dead.any(2).sum(1))
    for cube, ill, sigma in zip(found.transpose(0, 1, 3, 2), stuck, sigmas, strict=True):
        columns = cube[~ill]
        assert columns.std(1).mean() == pytest.approx(sigma, rel=0.03)
        striped = np.sqrt((0.5 * 0.03) ** 2 + 0.02**2 + sigma**2 / 64)
        assert columns.mean(1).std() == pytest.approx(striped, rel=0.1)


# What all have in common


@pytest.mark.parametrize("name", DAMAGES)
def test_a_batch_follows_from_its_seeds_and_is_new(name: str) -> None:
    clean = cubes(*SHAPE)
    before = clean.clone()
    first = damaged(name, clean)
    assert first.shape == SHAPE and first.dtype == np.float32 and np.isfinite(first).all()
    assert torch.equal(clean, before)
    np.testing.assert_array_equal(damaged(name, clean), first)
    assert not np.array_equal(damaged(name, clean, seed=3, field=4), first)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in ("blur", "sr")])
def test_equal_cubes_are_damaged_differently(name: str) -> None:
    found = damaged(name, cubes(1, 31, 64, 64).expand(4, -1, -1, -1))
    assert len({cube.tobytes() for cube in found}) == 4


@pytest.mark.parametrize("name", DAMAGES)
def test_less_strength_damages_less(name: str) -> None:
    clean = np.stack([simulate_scene(seed, *SHAPE[1:]).truth for seed in range(4)])
    errors = [np.square(damaged(name, torch.from_numpy(clean), strength=s) - clean).mean() for s in (0.2, 0.8, 1.0)]
    assert 0 < errors[0] < errors[1] < errors[2]


# Where it is made


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_makes_no_tensor_on_another_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = cubes(2, 5, 64, 64)
    # What names no device would be made on the default one.
    with torch.device("meta"):
        found = damaged(name, clean)
    np.testing.assert_array_equal(found, damaged(name, clean))
    # `meta` has no generator of its own.
    for field in ("_normal", "_uniform"):
        monkeypatch.setattr(degrading, field, lambda shape, _: torch.empty(tuple(shape), device="meta"))
    with OnOneDevice():
        there = DAMAGES[name](clean.to("meta"), np.random.default_rng(0), torch.Generator(), 1.0)
    assert there.device.type == "meta" and there.shape == clean.shape
