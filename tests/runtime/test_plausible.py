"""What no restoration looks like is told, and what restorations look like is not."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.arrays import Float32
from runtime.plausible import ENOUGH, Jumps, implausible

RNG = np.random.default_rng(0)
y, x = np.mgrid[0:32, 0:32]
SCENE = (0.5 + 0.4 * np.sin(x / 5) * np.cos(y / 7) * np.linspace(0.5, 1, 6)[:, None, None]).astype(np.float32)


def noisy(sigma: float) -> Float32:
    return SCENE + RNG.normal(0, sigma, SCENE.shape).astype(np.float32)


@pytest.mark.parametrize(
    ("given", "restored"),
    [
        (SCENE, SCENE),
        (noisy(0.3), SCENE),
        (SCENE * 0.1, SCENE),
        (np.full_like(SCENE, 0.3), np.full_like(SCENE, 0.3)),
        (np.zeros_like(SCENE), np.zeros_like(SCENE)),
        (np.where(SCENE > 0.7, 2.5, SCENE).astype(np.float32), SCENE * 2),
        (np.concatenate([SCENE[:4], np.zeros_like(SCENE[:2])]), SCENE),
    ],
    ids=["same", "noise", "low light", "flat", "dark", "glints", "bands lost"],
)
def test_restorations_are_not_suspected(given: Float32, restored: Float32) -> None:
    assert implausible(given, restored, alike=True) == ""


@pytest.mark.parametrize(
    ("restored", "words"),
    [
        (np.zeros_like(SCENE), "flat"),
        (np.broadcast_to(SCENE.mean(axis=(1, 2), keepdims=True), SCENE.shape).copy(), "flat"),
        (np.concatenate([SCENE[:2], np.full_like(SCENE[2:], 0.4)]), "flat"),
        (SCENE * 1000, "beyond the range"),
        (np.where(x % 10 == 0, -3, SCENE).astype(np.float32), "beyond the range"),
        (RNG.random(SCENE.shape).astype(np.float32), "nothing in common"),
        (1 - SCENE, "nothing in common"),
    ],
    ids=["zeros", "means", "some bands", "large", "stripes", "noise", "negative"],
)
def test_what_no_restoration_looks_like(restored: Float32, words: str) -> None:
    assert words in implausible(noisy(0.02), restored, alike=True)


def test_other_planes_are_held_to_what_the_network_is_known_to_give() -> None:
    measured = SCENE.sum(axis=0, keepdims=True)
    assert implausible(measured, SCENE, alike=False, known=(0.0, 1.0)) == ""
    assert "flat" in implausible(measured, np.zeros_like(SCENE), alike=False)
    assert "beyond" in implausible(measured, SCENE * 9, alike=False, known=(0.0, 1.0))
    assert implausible(measured, SCENE * 9, alike=False, known=(0.0, 8.0)) == ""


def test_a_jump_is_told_once_enough_frames_are_known() -> None:
    jumps = Jumps()
    changed = [SCENE + np.float32(0.01 + 0.001 * (n % 5)) for n in range(ENOUGH)]
    assert not any(jumps.look(SCENE, one) for one in [SCENE + np.float32(0.5), *changed])
    calm = Jumps()
    assert not any(calm.look(SCENE, one) for one in changed)
    assert "changed by 0.3" in calm.look(SCENE, SCENE + np.float32(0.3))
