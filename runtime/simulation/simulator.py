"""A scene and a line-scan spectrometer with known truth, so that a demonstration needs no download and no camera.

`simulate_scene` lays out farmland with a village, a river and calibration panels, and lights it; `sense` looks at it
through optics and a detector. Both follow from their seed.

The radiometry is plausible, not measured: `materials` has the spectra of ground and light, `landscape` lays out what
lies where; shadows are lit by a blue sky, materials mix linearly within a pixel. There is no path radiance and no
scatter between neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from runtime.arrays import Bools, Float32
from runtime.errors import InputError
from runtime.simulation.landscape import SUPERSAMPLING, landscape
from runtime.simulation.materials import MATERIALS, WAVELENGTH_RANGE, Doubles, light, reflectance_of

DEFAULT_RANGE = (400.0, 700.0)
LARGEST = 2**31
HOT_LEVEL = 0.2


@dataclass(frozen=True, eq=False)
class Scene:
    """A lit scene and all that is known of it.

    Attributes:
        truth: float32 [bands, lines, samples] in [0, 1]: radiance at the sensor as a share of the sunlit white panel's
            in its brightest band, each pixel the mean over its own area, without optics or noise.
        wavelengths: float64 [bands], band centres in nm.
        illumination: float64 [bands], what an ideal white surface in the sun would give; 1 in the brightest band.
            `truth / illumination[:, None, None]` is reflectance, save for shade.
        materials: names, in the order of the next two.
        reflectance: float64 [materials, bands] in [0, 1].
        abundance: float32 [materials, lines, samples], share of a pixel's area; sums to 1 over materials.
    """

    truth: Float32
    wavelengths: Doubles
    illumination: Doubles
    materials: tuple[str, ...]
    reflectance: Doubles
    abundance: Float32


@dataclass(frozen=True)
class SensorModel:
    """A line-scan spectrometer: one row of ground per line, its detector [bands, samples].

    The default is a good sensor, so that heavier faults can be added where they are wanted.

    Attributes:
        psf_across: sigma of the optics across track (along samples), in pixels; 0.42 is one pixel wide at half height.
        psf_along: sigma along track (along lines), in lines.
        smile: shift of the band centres at both ends of the slit, in bands; grows with the square of the distance from
            the middle.
        exposure: signal of 1.0 as a share of the full well, above 0; beyond 1 bright pixels saturate.
        full_well: electrons at saturation.
        read_noise: electrons, standard deviation.
        bit_depth: of the converter, 8 to 16.
        dark_level: DN without light.
        prnu: photo response non-uniformity, standard deviation of an element's relative gain.
        stripes: standard deviation of an element's dark level, in DN.
        dead: share of detector elements that never see light.
        hot: share of detector elements whose dark current adds a fifth of the full well.
    """

    psf_across: float = 0.42
    psf_along: float = 0.42
    smile: float = 0.0
    exposure: float = 0.9
    full_well: float = 32_000.0
    read_noise: float = 20.0
    bit_depth: int = 12
    dark_level: float = 64.0
    prnu: float = 0.003
    stripes: float = 0.5
    dead: float = 1e-4
    hot: float = 1e-4

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "psf_across": (0, 50),
            "psf_along": (0, 50),
            "smile": (-10, 10),
            "exposure": (1e-6, 1e3),
            "full_well": (1, 1e9),
            "read_noise": (0, 1e9),
            "bit_depth": (8, 16),
            "prnu": (0, 1),
            "stripes": (0, 65535),
            "dead": (0, 1),
            "hot": (0, 1),
        }
        for key, (low, high) in bounds.items():
            _within(f"sensor.{key}", getattr(self, key), low, high)
        if self.bit_depth != int(self.bit_depth):
            raise InputError("not a whole number", key="sensor.bit_depth", value=self.bit_depth, remedy="give 8 to 16")
        _within("sensor.dark_level", self.dark_level, 0, 2**self.bit_depth / 2)


@dataclass(frozen=True, eq=False)
class SensedCube:
    """What a sensor made of a scene. `(dn - dark) / scale` is comparable to its truth; blur counts as degradation.

    Attributes:
        dn: uint16 [bands, lines, samples].
        scale: DN per 1.0 of signal, above the dark level.
        dark: nominal DN without light; an element's own differs by the sensor's stripes.
        bad: bool [bands, samples], detector elements that are dead or hot.
    """

    dn: NDArray[np.uint16]
    scale: float
    dark: float
    bad: Bools


def simulate_scene(
    seed: int = 0,
    bands: int = 31,
    lines: int = 256,
    samples: int = 256,
    wavelengths_nm: Sequence[float] | Doubles | None = None,
) -> Scene:
    """Lay out and light a scene; the layout depends on seed, lines and samples only, so that spectrometers compare.

    Args:
        seed: whole number, at least 0.
        bands, lines, samples: number of bands, size along and across track in pixels, each at least 1.
        wavelengths_nm: centres of the bands in nm, each from 350 to 2500; evenly from 400 to 700 if None.

    Raises:
        InputError: an argument is out of range, the cube would have more than 2^31 elements, or the wavelengths are
            not as many as the bands.
    """
    for key, value in (("bands", bands), ("lines", lines), ("samples", samples)):
        _within(key, value, 1, LARGEST)
    _within("bands x lines x samples", bands * lines * samples, 1, LARGEST)
    if seed < 0:
        raise InputError("a seed is not negative", key="seed", value=seed, remedy="give a whole number from 0")
    wavelengths = _wavelengths(bands, wavelengths_nm)
    reflectance = np.array([reflectance_of(name, wavelengths) for name in MATERIALS])
    direct, diffuse = light(wavelengths)
    scale = (direct + diffuse).max()
    direct, diffuse = direct / scale, diffuse / scale

    land = landscape(np.random.default_rng(seed), lines, samples)
    count = len(MATERIALS)
    abundance = np.empty((count, lines, samples), np.float32)
    weights = np.empty((2, count, lines, samples), np.float32)
    for index in range(count):
        share = np.where(land.main == index, land.share, 0) + np.where(land.other == index, 1 - land.share, 0)
        abundance[index] = _binned(share)
        share *= land.tone
        weights[1, index] = _binned(share)
        share *= land.sun
        weights[0, index] = _binned(share)
    spectra = np.concatenate([reflectance * direct, reflectance * diffuse]).astype(np.float32)
    truth = spectra.T @ weights.reshape(2 * count, -1)
    return Scene(
        truth=truth.reshape(bands, lines, samples),
        wavelengths=wavelengths,
        illumination=direct + diffuse,
        materials=tuple(MATERIALS),
        reflectance=reflectance,
        abundance=abundance,
    )


def sense(scene: Scene, sensor: SensorModel, rng: np.random.Generator) -> SensedCube:
    """Look at a scene through a sensor: optics, shot and read noise, uneven response, conversion, saturation.

    Shot noise is Gaussian with the variance of photon counting; below some twenty electrons, where that is wrong,
    read noise covers it. All randomness comes from `rng`.
    """
    bands, _, samples = scene.truth.shape
    detector = (bands, 1, samples)
    gain = 1 + sensor.prnu * rng.standard_normal(detector, dtype=np.float32)
    offset = sensor.stripes * rng.standard_normal(detector, dtype=np.float32)
    fate = rng.random(detector, dtype=np.float32)
    dead, hot = fate < sensor.dead, fate >= 1 - sensor.hot
    gain[dead] = 0

    signal = _smiled(scene.truth, sensor.smile)
    signal = gaussian_filter1d(signal, sensor.psf_along, axis=1, mode="nearest") if sensor.psf_along else signal
    signal = gaussian_filter1d(signal, sensor.psf_across, axis=2, mode="nearest") if sensor.psf_across else signal
    electrons = signal * gain * np.float32(sensor.exposure * sensor.full_well)
    noise = rng.standard_normal(electrons.shape, dtype=np.float32)
    noise *= np.sqrt(np.maximum(electrons, 0) + np.float32(sensor.read_noise**2))
    electrons += noise
    electrons += hot * np.float32(HOT_LEVEL * sensor.full_well)
    np.minimum(electrons, np.float32(sensor.full_well), out=electrons)

    top = 2**sensor.bit_depth - 1
    per_electron = (top - sensor.dark_level) / sensor.full_well
    dn = np.rint(electrons * np.float32(per_electron) + np.float32(sensor.dark_level) + offset)
    return SensedCube(
        dn=np.clip(dn, 0, top).astype(np.uint16),
        scale=sensor.exposure * (top - sensor.dark_level),
        dark=sensor.dark_level,
        bad=(dead | hot)[:, 0],
    )


def _wavelengths(bands: int, given: Sequence[float] | Doubles | None) -> Doubles:
    if given is None:
        return np.linspace(*DEFAULT_RANGE, bands)
    wavelengths = np.asarray(given, np.float64)
    if wavelengths.shape != (bands,):
        raise InputError(
            f"not as many wavelengths as the {bands} bands",
            key="wavelengths_nm",
            value=wavelengths.size,
            remedy="give one centre per band",
        )
    for wavelength in wavelengths:
        _within("wavelengths_nm", float(wavelength), *WAVELENGTH_RANGE)
    return wavelengths


def _binned(fine: Float32) -> Float32:
    rows, columns = (size // SUPERSAMPLING for size in fine.shape)
    blocks = fine.reshape(rows, SUPERSAMPLING, columns, SUPERSAMPLING)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))


def _smiled(cube: Float32, smile: float) -> Float32:
    """The cube as a slit bent by `smile` bands at its ends sees it: bands interpolated linearly, ends repeated."""
    if not smile:
        return cube
    bands, _, samples = cube.shape
    shift = smile * np.linspace(-1, 1, samples) ** 2
    position = np.clip(np.arange(bands)[:, None] + shift, 0, bands - 1)
    base = np.minimum(position.astype(int), max(bands - 2, 0))
    part = (position - base).astype(np.float32)[:, None]
    lower = np.take_along_axis(cube, base[:, None], axis=0)
    upper = np.take_along_axis(cube, np.minimum(base + 1, bands - 1)[:, None], axis=0)
    return np.asarray(lower + part * (upper - lower), np.float32)


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError("out of range", key=key, value=value, remedy=f"give a number from {low:g} to {high:g}")
