"""How far two restorations are apart: by elements, or by quality where rounding may move single ones."""

import math

import numpy as np

from runtime.parity import QUALITY_DB, apart

TRUTH = np.random.default_rng(0).random((1, 5, 16, 16), np.float32)
ERRORS = 0.1 * np.random.default_rng(1).standard_normal(TRUTH.shape).astype(np.float32)


def test_elements_are_a_share_of_the_range() -> None:
    made = TRUTH.copy()
    made[0, 1, 2, 3] += 0.25
    assert math.isclose(apart(made, TRUTH), 0.25 / float(np.ptp(TRUTH)), rel_tol=1e-6)


def test_quality_alone_lets_single_elements_move() -> None:
    made = TRUTH + ERRORS
    made[0, 0, 0, 0] += 0.25
    assert apart(made, TRUTH + ERRORS) > 0.1
    assert 0 < apart(made, TRUTH + ERRORS, TRUTH) < QUALITY_DB
    worse = TRUTH + 1.05 * ERRORS
    assert QUALITY_DB < apart(worse, TRUTH + ERRORS, TRUTH) < 1


def test_what_is_as_good_and_another_picture_is_not_alike() -> None:
    assert apart(TRUTH - ERRORS, TRUTH + ERRORS, TRUTH) == math.inf
    assert apart(np.roll(TRUTH + ERRORS, 5, -1), TRUTH + ERRORS, TRUTH) == math.inf


def test_quality_is_that_of_clipped_values() -> None:
    dark = np.zeros_like(TRUTH)
    assert apart(dark - 0.02, dark - 0.01, dark) == 0
