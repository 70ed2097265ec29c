"""Degradations: what each does to a cube, against torch and scipy, their statistics, and what is refused."""

import numpy as np
import pytest
from scipy.ndimage import convolve

from calibration import degradations
from calibration.degradations import (
    DEGRADATIONS,
    LOSE,
    PHOTOGRAPHS,
    TRAINING,
    UNSEEN,
    degrade,
    lost,
    lost_bands,
    motion_kernel,
)
from runtime.errors import CubeError, InputError

SHAPE = (31, 40, 48)


def rng(seed=1):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def clean():
    return rng(0).uniform(0.1, 0.9, SHAPE).astype(np.float32)


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(31, 20, 24), (1, 1, 1), (2, 1, 7), (5, 9, 3)])
def test_every_degradation_keeps_shape_type_and_input_and_repeats(name, shape):
    cube = rng(0).uniform(0.1, 0.9, shape).astype(np.float32)
    before = cube.copy()
    first, second = (DEGRADATIONS[name](cube, rng(7)) for _ in range(2))
    assert first.shape == shape and first.dtype == np.float32 and np.isfinite(first).all()
    assert not np.shares_memory(first, cube)
    assert np.array_equal(cube, before)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name not in ("blur", "sr")])
def test_another_seed_gives_another_cube(name, clean):
    assert not np.array_equal(DEGRADATIONS[name](clean, rng(1)), DEGRADATIONS[name](clean, rng(2)))


def test_float64_input_gives_the_same_as_float32(clean):
    for name, degradation in DEGRADATIONS.items():
        wide = degradation(clean.astype(np.float64), rng())
        assert wide.dtype == np.float32 and np.array_equal(wide, degradation(clean, rng())), name


def test_noise_is_white_gaussian_of_the_asked_sigma_and_not_clipped(clean):
    added = degradations.noise(clean, rng(), sigma=0.2) - clean
    assert abs(added.mean()) < 0.003
    assert added.std() == pytest.approx(0.2, rel=0.02)
    assert (np.abs(added) > 0.2).mean() == pytest.approx(0.3173, abs=0.01)
    assert abs((added[:, :, 1:] * added[:, :, :-1]).mean()) < 0.002
    assert (clean + added).min() < 0 and (clean + added).max() > 1


def test_drawn_noise_covers_30_to_70_of_255():
    cube = np.zeros((1, 64, 64), np.float32)
    generator = rng()
    sigmas = np.array([degradations.noise(cube, generator).std() * 255 for _ in range(200)])
    assert 29 < sigmas.min() < 33 and 67 < sigmas.max() < 72
    assert sigmas.mean() == pytest.approx(50, abs=2.5)


@pytest.mark.parametrize(("size", "sigma"), [(9, 1.7), (15, 2.6)])
def test_blur_is_torchs_reflect_padded_gaussian_convolution(size, sigma, clean):
    torch = pytest.importorskip("torch")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    taps = torch.exp(-(axis**2) / (2 * sigma**2))
    kernel = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    padded = torch.nn.functional.pad(torch.tensor(clean).double()[:, None], [size // 2] * 4, mode="reflect")
    expected = torch.nn.functional.conv2d(padded, kernel)[:, 0].numpy()
    assert np.abs(degradations.blur(clean, rng(), size=size) - expected).max() < 1e-6


def test_drawn_blur_is_one_of_the_two_kernels(clean):
    results = {degradations.blur(clean, rng(seed)).tobytes() for seed in range(12)}
    assert results == {degradations.blur(clean, rng(), size=size).tobytes() for size in (9, 15)}


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("shape", [(40, 48), (64, 64), (41, 47), (9, 5)])
def test_sr_is_torchs_bicubic_with_aligned_corners_then_nearest(factor, shape):
    torch = pytest.importorskip("torch")
    cube = rng(0).random((3, *shape), dtype=np.float32)
    interpolate = torch.nn.functional.interpolate
    small = interpolate(torch.tensor(cube).double()[None], scale_factor=1 / factor, mode="bicubic", align_corners=True)
    expected = interpolate(small, size=shape, mode="nearest")[0].numpy()
    degraded = degradations.sr(cube, rng(), factor=factor)
    assert np.abs(degraded - expected).max() < 1e-6
    if shape == (64, 64):
        repeated = small[0].numpy().repeat(factor, axis=1).repeat(factor, axis=2)
        assert np.abs(degraded - repeated).max() < 1e-6


def test_sr_makes_flat_blocks_and_draws_both_factors(clean):
    blocks = degradations.sr(clean, rng(), factor=4).reshape(31, 10, 4, 12, 4)
    assert np.array_equal(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape))
    results = {degradations.sr(clean, rng(seed)).tobytes() for seed in range(12)}
    assert results == {degradations.sr(clean, rng(), factor=factor).tobytes() for factor in (2, 4)}


def test_sr_of_an_image_smaller_than_the_factor_is_flat():
    cube = rng(0).random((2, 3, 1), dtype=np.float32)
    assert np.array_equal(degradations.sr(cube, rng(), factor=4), np.broadcast_to(cube[:, :1], cube.shape))


def test_inpaint_zeroes_the_asked_share_and_leaves_the_rest(clean):
    degraded = degradations.inpaint(clean, rng(), rate=0.7)
    kept = degraded != 0
    assert kept.mean() == pytest.approx(0.3, abs=0.01)
    assert np.array_equal(degraded[kept], clean[kept])
    # Element by element, not pixel by pixel: 0.3 squared where two bands are both kept.
    assert (kept[0] & kept[1]).mean() == pytest.approx(0.09, abs=0.03)
    drawn = {round(float((degradations.inpaint(clean, rng(seed)) == 0).mean()), 1) for seed in range(12)}
    assert drawn == {0.7, 0.8}


@pytest.mark.parametrize(("bands", "rate", "lost"), [(31, 0.1, 3), (31, 0.2, 6), (4, 0.1, 1), (1, 0.2, 1), (10, 1, 10)])
def test_bandloss_zeroes_whole_bands_and_lost_bands_finds_them(bands, rate, lost):
    cube = rng(0).uniform(0.1, 1, (bands, 5, 6)).astype(np.float32)
    degraded = degradations.bandloss(cube, rng(), rate=rate)
    found = lost_bands(degraded)
    assert found.shape == (bands,) and found.dtype == bool and found.sum() == lost
    assert np.array_equal(degraded[~found], cube[~found])


def test_poisson_has_the_variance_of_counted_photons():
    cube = np.stack([np.full((200, 200), level, np.float32) for level in (0.0, 0.2, 0.8)])
    degraded = degradations.poisson(cube, rng(), peak=50)
    assert not degraded[0].any()
    assert degraded.mean(axis=(1, 2)) == pytest.approx([0, 0.2, 0.8], abs=0.003)
    assert degraded.var(axis=(1, 2)) == pytest.approx([0, 0.2 / 50, 0.8 / 50], rel=0.05)
    assert degraded * 50 == pytest.approx(np.round(degraded * 50), abs=1e-4)


def test_poisson_counts_nothing_where_the_cube_is_negative():
    assert not degradations.poisson(np.full((1, 3, 3), -0.2, np.float32), rng()).any()


def test_motion_kernel_along_an_axis_is_an_even_row_or_column():
    for angle, row in (
        (0, motion_kernel(15, 0)[7]),
        (90, motion_kernel(15, 90)[:, 7]),
        (180, motion_kernel(15, 180)[7]),
    ):
        assert row == pytest.approx(np.full(15, 1 / 15)), angle
    assert np.count_nonzero(motion_kernel(15, 90)) == 15


@pytest.mark.parametrize("angle", [0, 17.5, 45, 90, 133, -30])
@pytest.mark.parametrize("length", [1, 2, 8, 15])
def test_motion_kernel_is_normalised_centred_and_as_long_and_steep_as_asked(length, angle):
    kernel = motion_kernel(length, angle).astype(np.float64)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-6)
    assert kernel == pytest.approx(kernel[::-1, ::-1], abs=1e-7)
    spread_rows = (kernel.sum(axis=1) * offset**2).sum()
    spread_columns = (kernel.sum(axis=0) * offset**2).sum()
    # Variance of `length` even points, plus at most a quarter pixel squared an axis from sharing between pixels.
    assert spread_rows + spread_columns == pytest.approx((length**2 - 1) / 12 + 0.25, abs=0.2501)
    if length >= 8:
        cross = (kernel * np.outer(offset, offset)).sum()
        found = np.degrees(0.5 * np.arctan2(2 * cross, spread_columns - spread_rows))
        assert abs((found - angle + 90) % 180 - 90) < 2


def test_motionblur_is_convolution_with_its_kernel(clean):
    expected = convolve(clean[3].astype(np.float64), motion_kernel(15, 30).astype(np.float64), mode="mirror")
    assert np.abs(degradations.motionblur(clean, rng(), length=15, angle=30)[3] - expected).max() < 1e-6


def test_stripes_are_one_gain_and_offset_per_detector_element(clean):
    degraded = degradations.stripes(np.zeros_like(clean), rng(), gain=0.1, offset=0.05)
    assert np.array_equal(degraded, np.broadcast_to(degraded[:, :1], degraded.shape))
    assert degraded[:, 0].std() == pytest.approx(0.05, rel=0.1)
    gains = degradations.stripes(clean, rng(), gain=0.1, offset=0) / clean
    assert gains.std(axis=1).max() < 1e-6
    assert gains[:, 0].std() == pytest.approx(0.1, rel=0.1)
    assert gains.mean() == pytest.approx(1, abs=0.01)


def test_deadlines_read_one_value_along_all_lines_in_some_bands(clean):
    degraded = degradations.deadlines(clean, rng(), bands=0.3, samples=0.1)
    dead = (degraded != clean).all(axis=1)
    assert np.array_equal(
        degraded[np.broadcast_to(~dead[:, None], SHAPE)], clean[np.broadcast_to(~dead[:, None], SHAPE)]
    )
    assert dead.any(axis=1).sum() == 9 and set(dead.sum(axis=1)) == {0, 5}
    values = degraded.transpose(0, 2, 1)[dead]
    assert (values == values[:, :1]).all()
    assert 0.25 < (values[:, 0] == 0).mean() < 0.75
    assert values.min() >= 0 and values.max() < 1


def test_mixed_has_every_fault(clean):
    flat = np.full_like(clean, 0.5)
    degraded = degradations.mixed(flat, rng())
    lost = lost_bands(degraded)
    assert lost.sum() == 3
    seen = degraded[~lost]
    assert (np.ptp(seen, axis=1) == 0).any(), "dead columns"
    assert 0.03 < np.median(seen.std(axis=1)) < 0.13, "noise"
    assert np.median(np.abs(seen.mean(axis=1) - 0.5)) > 0.008, "stripes"


@pytest.mark.parametrize(("angle", "along"), [(0, 2), (90, 1)])
def test_astigmatism_is_wider_along_its_angle(angle, along):
    point = np.zeros((2, 41, 41), np.float32)
    point[:, 20, 20] = 1
    seen = degradations.astigmatism(point, rng(), long=6, short=2, angle=angle)
    place = np.arange(41) - 20
    spread = {axis: np.sqrt((seen.sum(axis=3 - axis)[0] * place**2).sum()) for axis in (1, 2)}
    # An even ellipse of half axis a deviates by a / 2, and its points are shared by the pixels beside them.
    assert abs(spread[along] - np.sqrt(9 + 1 / 6)) < 0.05 and abs(spread[3 - along] - np.sqrt(1 + 1 / 6)) < 0.05
    assert abs(seen[0].sum() - 1) < 1e-5


def test_faint_noise_is_white_and_of_another_strength_in_each_band(clean):
    flat = np.full((64, 64, 64), 0.5, np.float32)
    added = degradations.faint(flat, rng(), least=0.001, most=0.01) - flat
    deviations = added.std(axis=(1, 2))
    assert 0.00095 < deviations.min() < 0.0015 and 0.0065 < deviations.max() < 0.0105
    assert abs(np.log(deviations).mean() - np.log(0.001 * 0.01) / 2) < 0.3
    whitened = added / deviations[:, None, None]
    assert abs((whitened[:, 1:] * whitened[:, :-1]).mean()) < 0.01 > abs((whitened[1:] * whitened[:-1]).mean())


def test_what_is_known_to_be_lost_is_what_is_zero_of_what_loses(clean):
    for name in ("inpaint", "bandloss"):
        degraded = degrade(clean, name, rng())
        assert np.array_equal(lost(name, degraded), degraded == 0)
    assert lost("poisson", degrade(clean, "poisson", rng())) is None


def test_the_registry_is_what_training_and_gates_count_on():
    assert TRAINING == ("noise", "blur", "sr", "inpaint", "bandloss")
    assert UNSEEN == ("motionblur", "poisson")
    assert set(DEGRADATIONS) == {
        *TRAINING,
        *UNSEEN,
        *PHOTOGRAPHS,
        "stripes",
        "deadlines",
        "mixed",
        "astigmatism",
        "faint",
    }
    assert set(LOSE) < set(DEGRADATIONS)


def test_degrade_applies_a_list_in_order(clean):
    generator = rng()
    expected = degradations.bandloss(degradations.noise(clean, generator), generator)
    for names in ("noise, bandloss", ["noise", "bandloss"], ("noise", "bandloss")):
        assert np.array_equal(degrade(clean, names, rng()), expected)
    assert lost_bands(expected).any() and not lost_bands(degrade(clean, "bandloss,noise", rng())).any()


@pytest.mark.parametrize(
    ("names", "hint"),
    [("nois", "did you mean noise?"), ("noise,Band_loss", "did you mean bandloss?"), ("fog", "choose")],
)
def test_an_unknown_name_is_refused_with_the_nearest_right_one(names, hint, clean):
    with pytest.raises(InputError, match="unknown degradation") as failure:
        degrade(clean, names, rng())
    assert hint in failure.value.remedy and failure.value.value == names.split(",")[-1]
    assert all(name in failure.value.remedy for name in DEGRADATIONS)


@pytest.mark.parametrize("names", ["", " , noise", []])
def test_an_empty_name_is_refused(names, clean):
    with pytest.raises(InputError):
        degrade(clean, names, rng())


@pytest.mark.parametrize(
    ("cube", "key"),
    [
        (np.zeros((4, 4), np.float32), "shape"),
        (np.zeros((4, 0, 4), np.float32), "shape"),
        (np.zeros((4, 4, 4), np.uint16), "dtype"),
        (np.full((1, 2, 2), np.nan, np.float32), "cube"),
        (np.full((1, 2, 2), -np.inf, np.float32), "cube"),
        (np.full((1, 2, 2), 1e9, np.float32), "cube"),
    ],
)
def test_what_is_no_cube_is_refused_by_all(cube, key):
    for degradation in DEGRADATIONS.values():
        with pytest.raises(CubeError) as failure:
            degradation(cube, rng())
        assert failure.value.key == key and failure.value.remedy


@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("noise", {"sigma": -1}),
        ("noise", {"sigma": float("nan")}),
        ("blur", {"size": 8}),
        ("blur", {"size": 0}),
        ("sr", {"factor": 0}),
        ("sr", {"factor": 2.5}),
        ("inpaint", {"rate": 1.1}),
        ("bandloss", {"rate": -0.1}),
        ("poisson", {"peak": 0}),
        ("motionblur", {"length": 0}),
        ("motionblur", {"angle": float("inf")}),
        ("astigmatism", {"long": 0}),
        ("faint", {"least": 0}),
        ("faint", {"most": 1e-5}),
        ("faint", {"most": float("inf")}),
        ("astigmatism", {"short": 61}),
        ("astigmatism", {"angle": float("nan")}),
        ("stripes", {"gain": 2}),
        ("deadlines", {"samples": 2}),
    ],
)
def test_a_severity_out_of_range_is_refused_by_name(name, severity, clean):
    with pytest.raises(InputError) as failure:
        getattr(degradations, name)(clean, rng(), **severity)
    assert failure.value.key in severity and failure.value.remedy
