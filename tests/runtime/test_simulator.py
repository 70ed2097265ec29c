"""The simulated scene and spectrometer: physics one can check, statistics of the noise, determinism, refusals."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.simulation.materials import MATERIALS, ROUGHNESS, reflectance_of
from runtime.simulation.simulator import Scene, SensorModel, sense, simulate_scene

IDEAL = {"psf_across": 0, "psf_along": 0, "read_noise": 0, "prnu": 0, "stripes": 0, "dead": 0, "hot": 0}
SPECTRUM = np.arange(350.0, 2501.0)


@pytest.fixture(scope="module")
def scene():
    return simulate_scene(seed=4)


def rng(seed=1):
    return np.random.default_rng(seed)


def scene_of(truth):
    """A scene of any truth, for what only the sensor matters to."""
    truth = np.asarray(truth, np.float32)
    bands = len(truth)
    nothing = np.zeros((0, *truth.shape[1:]), np.float32)
    return Scene(truth, np.linspace(400, 700, bands), np.ones(bands), (), np.zeros((0, bands)), nothing)


def reflectance(material, *wavelengths):
    return reflectance_of(material, wavelengths)


def test_scene_is_what_it_says(scene):
    assert scene.truth.shape == (31, 256, 256) and scene.truth.dtype == np.float32
    assert scene.wavelengths[[0, -1]].tolist() == [400, 700]
    assert scene.materials == tuple(MATERIALS) and len(scene.materials) >= 12
    assert scene.reflectance.shape == (len(scene.materials), 31)
    assert scene.abundance.shape == (len(scene.materials), 256, 256)
    assert scene.abundance.min() >= 0
    assert scene.abundance.sum(axis=0) == pytest.approx(np.ones((256, 256)), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_brightness_is_varied_and_within_the_white_panels(seed):
    truth = simulate_scene(seed).truth
    assert 0 <= truth.min() < 0.01 and 0.95 < truth.max() <= 1
    assert 0.14 < truth.mean() < 0.35 and truth.std() > 0.08


def test_nothing_outshines_white_at_any_wavelength():
    truth = simulate_scene(3, 40, 128, 128, np.linspace(350, 2500, 40))
    assert truth.truth.min() >= 0 and (truth.truth.max(axis=(1, 2)) <= truth.illumination).all()


def test_the_scene_holds_many_materials_and_mixed_pixels(scene):
    cover = scene.abundance.mean(axis=(1, 2))
    assert (cover > 1e-4).sum() >= 12 and cover.max() < 0.5
    assert 0.1 < (scene.abundance.max(axis=0) < 0.95).mean() < 0.95


def test_the_scene_has_detail_down_to_the_pixel(scene):
    image = scene.truth[15]
    step = np.abs(np.diff(image, axis=1))
    assert np.median(step) > 0.003, "texture"
    assert (step > 0.1).mean() > 0.01, "edges"
    assert np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1] > 0.7, "but no noise"


def test_lit_panels_give_their_reflectance_back(scene):
    mat = np.s_[:24, :80]
    for name in ("white panel", "grey panel", "black panel"):
        index = scene.materials.index(name)
        pure = scene.abundance[index][mat] == 1
        assert pure.sum() > 50
        seen = scene.truth[(slice(None), *mat)][:, pure] / scene.illumination[:, None]
        assert seen == pytest.approx(np.broadcast_to(scene.reflectance[index][:, None], seen.shape), rel=1e-4)


def test_shadow_is_darker_and_bluer_than_sun():
    scene = simulate_scene(1)
    index = scene.materials.index("dry grass")
    pure = scene.abundance[index] > 0.9
    seen = scene.truth[:, pure] / scene.illumination[:, None] / scene.reflectance[index][:, None]
    dark, bright = seen[:, seen[-1] < 0.2], seen[:, seen[-1] > 0.8]
    assert dark.shape[1] > 20 and bright.shape[1] > 20
    assert (dark[2] / dark[-1]).mean() > 1.5 * (bright[2] / bright[-1]).mean()


@pytest.mark.parametrize("material", MATERIALS)
def test_spectra_are_smooth_and_physical(material):
    spectrum = reflectance_of(material, SPECTRUM)
    assert spectrum.min() > 0 and spectrum.max() < 1
    assert np.abs(np.diff(spectrum)).max() < 0.015, "no jump within a nanometre"
    assert np.abs(np.diff(spectrum, 2)).max() < 0.001, "no kink"
    assert 0 <= ROUGHNESS.get(material, 0) < 0.5


@pytest.mark.parametrize("plant", ["grass", "forest", "rapeseed"])
def test_plants_have_a_red_edge_chlorophyll_and_water(plant):
    red, infrared = reflectance(plant, 675, 780)
    assert infrared > 1.5 * red
    edge = np.diff(reflectance_of(plant, np.arange(500.0, 900)))
    assert 690 < 500 + edge.argmax() < 750
    for absorbed, beside in ((1450, 1650), (1940, 2210), (970, 1080)):
        assert reflectance(plant, absorbed)[0] < reflectance(plant, beside)[0]


def test_green_plants_peak_in_the_green_and_water_is_black_in_the_infrared():
    for plant in ("grass", "forest"):
        blue, green, red = reflectance(plant, 450, 553, 675)
        assert green > 1.5 * max(blue, red)
    for water in ("clear water", "turbid water"):
        assert reflectance(water, 900)[0] < 0.2 * reflectance(water, 560)[0]


def test_sunlight_has_its_absorption_lines():
    wavelengths = np.arange(650.0, 1000, 2)
    light = simulate_scene(0, len(wavelengths), 1, 1, wavelengths).illumination
    at = dict(zip(wavelengths, light, strict=True))
    assert light.max() == pytest.approx(1) and light.min() > 0
    assert at[760] < 0.4 * at[740], "oxygen"
    assert at[940] < 0.6 * at[880], "water vapour"
    assert at[656] < 0.97 * at[650], "H-alpha"


def test_a_narrow_line_fades_with_wide_bands():
    def depth(step):
        wavelengths = np.arange(760 - 6 * step, 760 + 7 * step, step)
        light = simulate_scene(0, len(wavelengths), 1, 1, wavelengths).illumination
        return 1 - light[6] / (light[4] + light[8]) * 2

    assert depth(5) > 1.5 * depth(15) > 0


def test_a_seed_gives_the_same_scene_in_another_process():
    expected = simulate_scene(9, 5, 40, 50)
    code = (
        "import sys, hashlib; from runtime.simulation.simulator import *; import numpy as np;"
        "s = simulate_scene(9, 5, 40, 50); d = sense(s, SensorModel(), np.random.default_rng(2)).dn;"
        "assert not {'torch', 'calibration', 'export', 'deploy'} & set(sys.modules);"
        "print(hashlib.sha256(s.abundance.tobytes() + d.tobytes()).hexdigest())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    dn = sense(expected, SensorModel(), rng(2)).dn
    assert answer == hashlib.sha256(expected.abundance.tobytes() + dn.tobytes()).hexdigest()


def test_seeds_differ_and_spectrometers_see_the_same_ground(scene):
    assert not np.array_equal(simulate_scene(5, 3).abundance, scene.abundance)
    other = simulate_scene(4, 4, wavelengths_nm=[500, 1000, 1600, 2200])
    assert np.array_equal(other.abundance, scene.abundance)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 1, 37), (3, 33, 2), (1, 5, 5), (31, 61, 67), (4, 300, 7), (2, 7, 300)]
)
def test_any_size_will_do(shape):
    scene = simulate_scene(2, *shape)
    sensed = sense(scene, SensorModel(smile=0.5), rng())
    assert scene.truth.shape == sensed.dn.shape == shape
    assert np.isfinite(scene.truth).all() and scene.truth.min() >= 0 and scene.truth.max() <= 1
    assert scene.abundance.sum(axis=0) == pytest.approx(np.ones(shape[1:]), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"bands": 0}, "bands"),
        ({"lines": 0}, "lines"),
        ({"samples": -3}, "samples"),
        ({"seed": -1}, "seed"),
        ({"lines": 2**20, "samples": 2**20}, "bands x lines x samples"),
        ({"bands": 2, "wavelengths_nm": [500.0]}, "wavelengths_nm"),
        ({"bands": 1, "wavelengths_nm": [300.0]}, "wavelengths_nm"),
        ({"bands": 1, "wavelengths_nm": [0.55]}, "wavelengths_nm"),
        ({"bands": 1, "wavelengths_nm": [float("nan")]}, "wavelengths_nm"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(arguments, key):
    with pytest.raises(InputError) as failure:
        simulate_scene(**arguments)
    assert failure.value.key == key and failure.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("psf_across", -1),
        ("exposure", 0),
        ("full_well", 0),
        ("read_noise", float("nan")),
        ("bit_depth", 7),
        ("bit_depth", 12.5),
        ("dark_level", 4000),
        ("prnu", -0.1),
        ("dead", 1.5),
    ],
)
def test_a_sensor_that_cannot_be_is_refused(field, value):
    with pytest.raises(InputError) as failure:
        SensorModel(**{field: value})
    assert failure.value.key == f"sensor.{field}" and failure.value.remedy


def test_the_default_sensor_is_good_but_not_perfect(scene):
    before = scene.truth.copy()
    sensed = sense(scene, SensorModel(), rng())
    seen = (sensed.dn - sensed.dark) / sensed.scale
    psnr = -10 * np.log10(np.mean((seen - scene.truth) ** 2))
    assert 38 < psnr < 50
    assert np.array_equal(scene.truth, before)
    assert sensed.dn.dtype == np.uint16 and sensed.dn.max() <= 4095


def test_an_ideal_sensor_loses_only_what_photons_and_rounding_cost(scene):
    sensor = SensorModel(**IDEAL, full_well=1e9, bit_depth=16)
    sensed = sense(scene, sensor, rng())
    seen = (sensed.dn - sensed.dark) / sensed.scale
    assert np.abs(seen - scene.truth).max() < 3e-4
    assert not sensed.bad.any()


@pytest.mark.parametrize("level", [0.02, 0.2, 0.8])
def test_noise_is_that_of_photons_read_out_and_rounding(level):
    sensor = SensorModel(**{**IDEAL, "read_noise": 40})
    sensed = sense(scene_of(np.full((2, 300, 300), level)), sensor, rng())
    per_electron = (4095 - sensor.dark_level) / sensor.full_well
    electrons = level * sensor.exposure * sensor.full_well
    assert sensed.dn.mean() == pytest.approx(sensor.dark_level + level * sensed.scale, abs=0.15)
    assert sensed.dn.var() == pytest.approx((electrons + 40**2) * per_electron**2 + 1 / 12, rel=0.03)


def test_light_beyond_the_full_well_saturates():
    truth = np.full((1, 20, 20), 0.9)
    truth[:, :10] = 0.2
    sensed = sense(scene_of(truth), SensorModel(**IDEAL, exposure=3), rng())
    assert (sensed.dn[:, 10:] == 4095).all() and sensed.dn[:, :10].max() < 4095


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_converter_uses_its_range_and_no_more(bits):
    truth = np.broadcast_to(np.linspace(-0.5, 3, 400), (1, 50, 400))
    dn = sense(scene_of(truth), SensorModel(**IDEAL, bit_depth=bits, dark_level=10), rng()).dn
    assert dn.max() == 2**bits - 1 and dn.min() < 12


def test_response_varies_by_element_and_not_along_lines():
    sensor = SensorModel(**{**IDEAL, "prnu": 0.05}, full_well=1e8, bit_depth=16)
    sensed = sense(scene_of(np.full((20, 30, 200), 0.5)), sensor, rng())
    gain = (sensed.dn - sensed.dark) / (0.5 * sensed.scale)
    assert gain.mean(axis=1).std() == pytest.approx(0.05, rel=0.05)
    assert gain.std(axis=1).max() < 0.001


def test_stripes_are_there_without_light_and_the_same_on_every_line():
    sensed = sense(scene_of(np.zeros((20, 30, 200))), SensorModel(**{**IDEAL, "stripes": 8}), rng())
    assert (sensed.dn == sensed.dn[:, :1]).all()
    assert sensed.dn[:, 0].std() == pytest.approx(8, rel=0.05)
    assert sensed.dn.mean() == pytest.approx(64, abs=0.5)


def test_dead_elements_see_nothing_hot_ones_too_much_and_the_map_knows_both():
    scene = scene_of(np.full((20, 40, 100), 0.5))
    sensed = sense(scene, SensorModel(**{**IDEAL, "dead": 0.02, "hot": 0.01}), rng())
    level = sensed.dn.mean(axis=1)
    expected = 64 + 0.5 * sensed.scale
    assert sensed.bad.shape == (20, 100)
    dead, hot = level < 65, level > expected + 600
    assert np.array_equal(sensed.bad, dead | hot)
    assert 20 < dead.sum() < 60 and 8 < hot.sum() < 35
    assert (sensed.dn.transpose(0, 2, 1)[dead] == 64).all()
    assert level[~sensed.bad] == pytest.approx(expected, abs=25)


@pytest.mark.parametrize(("along", "across"), [(1.2, 0), (0, 0.8), (0.6, 1.5)])
def test_optics_spread_a_point_and_lose_no_light(along, across):
    truth = np.zeros((1, 41, 41))
    truth[0, 20, 20] = 1
    sensor = SensorModel(**{**IDEAL, "psf_along": along, "psf_across": across}, full_well=1e9, bit_depth=16)
    sensed = sense(scene_of(truth), sensor, rng())
    spot = (sensed.dn[0] - sensed.dark) / sensed.scale
    offset = np.arange(41) - 20
    assert spot.sum() == pytest.approx(1, abs=0.02)
    # A sampled Gaussian below a sigma of one pixel is narrower than its sigma says.
    for axis, sigma in ((1, along), (0, across)):
        assert np.sqrt((spot.sum(axis=axis) * offset**2).sum()) == pytest.approx(sigma, abs=0.1)


def test_smile_bends_the_bands_towards_the_ends_of_the_slit():
    ramp = np.broadcast_to(np.linspace(0.1, 0.9, 9)[:, None, None], (9, 4, 101))
    sensor = SensorModel(**IDEAL, smile=0.5, full_well=1e9, bit_depth=16)
    sensed = sense(scene_of(ramp), sensor, rng())
    seen = ((sensed.dn - sensed.dark) / sensed.scale).mean(axis=1)
    assert seen[4, 50] == pytest.approx(0.5, abs=1e-3)
    assert seen[4, [0, 100]] == pytest.approx([0.55, 0.55], abs=1e-3)
    assert seen[8] == pytest.approx(np.full(101, 0.9), abs=1e-3)


def test_noise_follows_from_its_generator(scene):
    first, second, third = (sense(scene, SensorModel(), rng(seed)).dn for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, third)
