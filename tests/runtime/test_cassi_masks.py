"""Masks of chance: made as they say, and like real ones in what their neighbours share."""

import numpy as np

from runtime.simulation.cassi import checked_mask, random_mask


def shared(mask: np.ndarray, lines: int, samples: int) -> float:
    """How pixels correlate with those so many lines below and samples to the right."""
    here, there = mask[: len(mask) - lines, : mask.shape[1] - samples], mask[lines:, samples:]
    return float(np.corrcoef(here.ravel(), there.ravel())[0, 1])


def test_neighbours_share_what_those_of_a_real_mask_share() -> None:
    mask = random_mask(3)
    assert mask.shape == (256, 256) and mask.dtype == np.float32
    assert (mask.min(), mask.max()) == (np.float32(0.01), 1) and abs(mask.mean() - 0.5) < 0.02
    for lines, samples in ((0, 1), (1, 0)):
        assert abs(shared(mask, lines, samples) - 2 / 3) < 0.02
        assert abs(shared(mask, 2 * lines, 2 * samples) - 1 / 6) < 0.03
        assert abs(shared(mask, 4 * lines, 4 * samples)) < 0.03


def test_each_pixel_is_the_mean_of_four_of_cells() -> None:
    mask = random_mask(5, 8, 12)
    # Where a pixel lies within a cell it is open or shut; all else follows from those.
    cells = np.where(mask[::2, ::2] == 1, 1.0, 0.0)
    assert set(mask[::2, ::2].ravel().tolist()) == {np.float32(0.01).item(), 1.0}
    beside = (cells[:, :-1] + cells[:, 1:]) / 2
    np.testing.assert_allclose(mask[::2, 1:-1:2], np.maximum(beside, 0.01), rtol=1e-6)
    corners = (beside[:-1] + beside[1:]) / 2
    np.testing.assert_allclose(mask[1:-1:2, 1:-1:2], np.maximum(corners, 0.01), rtol=1e-6)


def test_a_seed_is_a_mask() -> None:
    np.testing.assert_array_equal(random_mask(1, 16, 20), random_mask(1, 16, 20))
    assert not np.array_equal(random_mask(1, 16, 20), random_mask(2, 16, 20))
    mask = random_mask(1, 16, 20)
    np.testing.assert_array_equal(checked_mask(mask.astype(np.float64), "random"), mask)
