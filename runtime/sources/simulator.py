"""A scene and a line-scan spectrometer with known truth, so that a demonstration needs no download and no camera.

`simulate_scene` lays out farmland with a village, a river and calibration panels, and lights it; `sense` looks at it
through optics and a detector; `lines` gives what the sensor would send, one line at a time. All follow from their seed.

The radiometry is plausible, not measured: reflectances follow the shapes known from public spectral libraries, sunlight
is a black body of 5778 K behind an atmosphere of broadened absorption lines, shadows are lit by a blue sky, materials
mix linearly within a pixel. There is no path radiance and no scatter between neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.spatial import cKDTree

from runtime.errors import InputError

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]

WAVELENGTH_RANGE = (350.0, 2500.0)
DEFAULT_RANGE = (400.0, 700.0)

# Reflectance of each material at some wavelengths in nm; between them it is interpolated monotonically, so that no
# feature appears that is not written here.
# fmt: off
MATERIALS: Mapping[str, Mapping[int, float]] = MappingProxyType({
    "grass": {
        350: .03, 400: .035, 450: .045, 500: .06, 530: .105, 553: .135, 580: .105, 640: .07, 675: .045, 690: .065,
        715: .23, 740: .42, 770: .48, 900: .50, 970: .47, 1080: .50, 1190: .43, 1270: .45, 1450: .16, 1650: .33,
        1800: .25, 1940: .08, 2210: .20, 2500: .06},
    "forest": {
        350: .018, 400: .02, 450: .024, 500: .032, 530: .058, 553: .072, 580: .055, 640: .036, 675: .026, 690: .036,
        715: .14, 740: .28, 770: .34, 900: .37, 970: .34, 1080: .36, 1190: .29, 1270: .30, 1450: .09, 1650: .19,
        1800: .14, 1940: .04, 2210: .10, 2500: .03},
    "rapeseed": {
        350: .03, 400: .04, 450: .05, 480: .065, 510: .14, 540: .26, 570: .32, 600: .33, 650: .315, 675: .29, 690: .32,
        715: .43, 750: .53, 800: .56, 900: .57, 970: .54, 1080: .56, 1190: .49, 1270: .50, 1450: .20, 1650: .36,
        1940: .10, 2210: .22, 2500: .07},
    "dry grass": {
        350: .08, 400: .11, 450: .155, 500: .22, 550: .30, 600: .35, 650: .38, 680: .39, 750: .45, 900: .48, 1100: .52,
        1300: .53, 1450: .42, 1650: .50, 1800: .46, 1940: .29, 2100: .29, 2210: .35, 2330: .27, 2500: .18},
    "bare soil": {
        350: .07, 400: .085, 450: .105, 500: .135, 550: .185, 600: .25, 650: .285, 700: .31, 800: .345, 880: .35,
        1100: .42, 1300: .46, 1410: .43, 1650: .50, 1800: .49, 1920: .40, 2100: .47, 2205: .42, 2260: .45, 2500: .36},
    "wet soil": {
        350: .03, 400: .04, 450: .052, 500: .068, 550: .09, 600: .115, 650: .135, 700: .15, 800: .175, 900: .185,
        1100: .22, 1300: .21, 1450: .12, 1650: .20, 1800: .17, 1940: .06, 2150: .13, 2500: .05},
    "sand": {
        350: .14, 400: .19, 450: .25, 500: .31, 550: .38, 600: .44, 650: .475, 700: .50, 800: .53, 900: .54, 1100: .59,
        1400: .61, 1650: .65, 1800: .65, 1930: .57, 2100: .63, 2205: .58, 2340: .56, 2500: .52},
    "clear water": {
        350: .05, 400: .055, 450: .058, 500: .052, 550: .036, 600: .016, 650: .011, 700: .007, 750: .004, 900: .002,
        1100: .001, 2500: .0005},
    "turbid water": {
        350: .05, 400: .06, 450: .08, 500: .105, 560: .145, 600: .135, 640: .125, 675: .11, 700: .105, 750: .04,
        810: .045, 900: .015, 1000: .008, 1100: .006, 1300: .001, 2500: .0005},
    "asphalt": {
        350: .07, 400: .08, 500: .10, 600: .115, 700: .125, 900: .14, 1200: .16, 1700: .19, 2100: .20, 2310: .17,
        2500: .17},
    "concrete": {
        350: .17, 400: .22, 450: .27, 500: .315, 550: .35, 600: .38, 700: .41, 900: .43, 1200: .46, 1410: .43,
        1650: .47, 1930: .38, 2200: .41, 2340: .36, 2500: .32},
    "red tile": {
        350: .05, 400: .06, 450: .072, 500: .09, 540: .125, 570: .19, 600: .29, 650: .36, 700: .39, 770: .42, 870: .40,
        1000: .44, 1300: .52, 1650: .57, 1930: .53, 2200: .54, 2500: .48},
    "metal roof": {
        350: .42, 400: .48, 500: .54, 600: .57, 700: .58, 830: .56, 1000: .60, 1500: .64, 2000: .66, 2500: .66},
    "blue tarp": {
        350: .12, 400: .22, 440: .41, 465: .48, 495: .40, 530: .20, 570: .10, 620: .07, 660: .075, 690: .11, 730: .33,
        780: .55, 900: .62, 1150: .60, 1210: .48, 1300: .58, 1390: .48, 1600: .56, 1730: .30, 1850: .47, 2000: .48,
        2310: .16, 2500: .20},
    "white paint": {
        350: .10, 380: .22, 420: .61, 450: .69, 500: .71, 700: .72, 1000: .71, 1400: .70, 1730: .56, 2000: .55,
        2310: .36, 2500: .34},
    "white panel": {350: .975, 400: .985, 800: .99, 1500: .985, 2130: .955, 2250: .965, 2500: .95},
    "grey panel": {350: .44, 400: .47, 600: .49, 1000: .50, 1800: .51, 2500: .50},
    "black panel": {350: .045, 400: .045, 700: .047, 1200: .05, 2500: .055},
})
# fmt: on

INDEX = {name: index for index, name in enumerate(MATERIALS)}

# How strongly texture modulates a material's brightness; panels are even.
ROUGHNESS = {
    "grass": 0.16,
    "forest": 0.30,
    "rapeseed": 0.12,
    "dry grass": 0.14,
    "bare soil": 0.12,
    "wet soil": 0.14,
    "sand": 0.08,
    "clear water": 0.06,
    "turbid water": 0.06,
    "asphalt": 0.10,
    "concrete": 0.08,
    "red tile": 0.10,
    "metal roof": 0.05,
    "blue tarp": 0.08,
    "white paint": 0.05,
}
BRIGHTEST_TONE = 1.3
BRIGHTEST_SLOPE = 1.2

# A field's crop, what shows between its rows, the share of the crop, and how often such a field occurs.
FIELDS = (
    ("grass", "bare soil", 0.80, 0.17),
    ("grass", "dry grass", 0.55, 0.11),
    ("rapeseed", "grass", 0.75, 0.12),
    ("dry grass", "bare soil", 0.85, 0.24),
    ("bare soil", "dry grass", 0.85, 0.14),
    ("sand", "bare soil", 0.80, 0.17),
    ("wet soil", "bare soil", 0.75, 0.05),
)
ROOFS = {"red tile": 0.5, "concrete": 0.17, "metal roof": 0.17, "asphalt": 0.1, "blue tarp": 0.06}
CARS = ("white paint", "metal roof", "blue tarp", "black panel", "red tile")
PANELS = ("white panel", "grey panel", "black panel", "red tile")

# Absorption lines in sunlight at the ground: centre nm, width (sigma) nm, optical depth at the centre.
# Solar: Ca K and H, G band, H-beta, Mg b, Na D, H-alpha. Atmosphere: ozone at 600, oxygen at 687, 761 and 1268, carbon
# dioxide at 2010 and 2060, water vapour elsewhere.
ABSORPTION = (
    (393.4, 1.0, 1.2),
    (396.8, 1.0, 1.0),
    (430.5, 1.5, 0.35),
    (486.1, 0.8, 0.25),
    (517.5, 1.5, 0.2),
    (589.3, 0.8, 0.25),
    (656.3, 0.8, 0.3),
    (600.0, 45.0, 0.035),
    (687.5, 1.6, 0.4),
    (760.8, 2.2, 2.2),
    (720.0, 6.0, 0.2),
    (820.0, 8.0, 0.30),
    (940.0, 18.0, 1.0),
    (1130.0, 20.0, 1.3),
    (1268.0, 4.0, 0.25),
    (1385.0, 32.0, 4.5),
    (1870.0, 45.0, 5.0),
    (2010.0, 10.0, 0.6),
    (2060.0, 10.0, 0.35),
    (2540.0, 55.0, 3.0),
)

SUPERSAMPLING = 2
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

    truth: Floats
    wavelengths: Doubles
    illumination: Doubles
    materials: tuple[str, ...]
    reflectance: Doubles
    abundance: Floats


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
    """What a sensor made of a scene. `(dn - dark) / scale` is comparable to `truth`.

    Attributes:
        dn: uint16 [bands, lines, samples].
        truth: float32 [bands, lines, samples], the scene's own: an ideal sensor without optics, noise or faults. Blur
            by the optics counts as degradation.
        scale: DN per 1.0 of signal, above the dark level.
        dark: nominal DN without light; an element's own differs by the sensor's stripes.
        bad: bool [bands, samples], detector elements that are dead or hot.
    """

    dn: NDArray[np.uint16]
    truth: Floats
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
        bands: number of bands, at least 1.
        lines: size along track in pixels, at least 1.
        samples: size across track in pixels, at least 1.
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
    direct, diffuse = _light(wavelengths)
    scale = (direct + diffuse).max()
    direct, diffuse = direct / scale, diffuse / scale

    land = _landscape(np.random.default_rng(seed), lines, samples)
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


def reflectance_of(material: str, wavelengths_nm: Sequence[float] | Doubles) -> Doubles:
    """Reflectance of a material of `MATERIALS` at wavelengths in nm from 350 to 2500, in [0, 1].

    Raises:
        InputError: the material is unknown.
    """
    if material not in MATERIALS:
        raise InputError(
            "unknown material", key="material", value=material, remedy=f"choose from {', '.join(MATERIALS)}"
        )
    knots = MATERIALS[material]
    curve = PchipInterpolator(list(knots), list(knots.values()))
    return np.asarray(curve(np.asarray(wavelengths_nm, np.float64)), np.float64)


def sense(scene: Scene, sensor: SensorModel, rng: np.random.Generator) -> SensedCube:
    """Look at a scene through a sensor: optics, shot and read noise, uneven response, conversion, saturation.

    Shot noise is Gaussian with the variance of photon counting; below some twenty electrons, where that is wrong,
    read noise covers it.

    Args:
        scene: what to look at.
        sensor: what to look with.
        rng: source of all randomness.
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
        truth=scene.truth,
        scale=sensor.exposure * (top - sensor.dark_level),
        dark=sensor.dark_level,
        bad=(dead | hot)[:, 0],
    )


def lines(sensed: SensedCube) -> Iterator[NDArray[np.uint16]]:
    """What the sensor sends, line by line: uint16 [bands, samples], contiguous (one line of a BIL file)."""
    for line in range(sensed.dn.shape[1]):
        yield np.ascontiguousarray(sensed.dn[:, line])


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


def _light(wavelengths: Doubles) -> tuple[Doubles, Doubles]:
    """Irradiance on flat ground by the sun and by the sky, [bands] each, to a common unknown factor."""
    metres = wavelengths * 1e-9
    planck = metres**-5 / np.expm1(0.014387769 / (metres * 5778))
    instrument = np.abs(np.gradient(wavelengths)) / 2.355 if len(wavelengths) > 1 else np.array([4.0])
    depth = np.zeros_like(wavelengths)
    for centre, width, line_depth in ABSORPTION:
        # A line narrower than a band is smeared by it, keeping its area.
        seen = np.hypot(width, instrument)
        depth += line_depth * width / seen * np.exp(-0.5 * ((wavelengths - centre) / seen) ** 2)
    total = planck * np.exp(-depth - 0.22 * (400 / wavelengths) ** 4)
    sky = 0.04 + 0.24 * (400 / wavelengths) ** 2.5
    return total * (1 - sky), total * sky


@dataclass(frozen=True, eq=False)
class _Landscape:
    """The ground at `SUPERSAMPLING` times the sensor's resolution, all [rows, columns].

    `main` and `other` are indices into MATERIALS, `share` the share of `main`, `height` of objects in pixels, `tone` a
    brightness factor, `sun` the direct light as a share of that on flat ground.
    """

    y: Floats
    x: Floats
    main: NDArray[np.uint8]
    other: NDArray[np.uint8]
    share: Floats
    height: Floats
    tone: Floats
    sun: Floats


def _landscape(rng: np.random.Generator, lines: int, samples: int) -> _Landscape:
    rows, columns = SUPERSAMPLING * lines, SUPERSAMPLING * samples
    shape = (rows, columns)
    land = _Landscape(
        y=(np.arange(0.5, rows) / SUPERSAMPLING).astype(np.float32)[:, None],
        x=(np.arange(0.5, columns) / SUPERSAMPLING).astype(np.float32)[None],
        main=np.zeros(shape, np.uint8),
        other=np.zeros(shape, np.uint8),
        share=np.ones(shape, np.float32),
        height=np.zeros(shape, np.float32),
        tone=np.ones(shape, np.float32),
        sun=np.ones(shape, np.float32),
    )
    # Narrow images show a smaller world, so that they too hold several fields.
    unit = float(np.clip(min(lines, samples) / 256, 0.25, 1))
    rough = _texture(rng, shape, 1.0, 24 * SUPERSAMPLING)
    _lay_fields(land, rng, unit, rough)
    _grow_forest(land, rng, unit, rough)
    _pour_water(land, rng, unit, rough)
    roads = _build_roads(land, rng, unit)
    _build_houses(land, rng, unit, roads)
    _plant_trees(land, rng, unit)
    _light_ground(land, rng, rough)
    _put_panels(land, unit)
    return land


def _texture(rng: np.random.Generator, shape: tuple[int, int], exponent: float, largest: float) -> Floats:
    """Noise of amplitude 1 / f^exponent, even beyond wavelengths of `largest` pixels; mean 0, deviation 1."""
    padded = [fft.next_fast_len(size + min(size, int(largest)), real=True) for size in shape]
    white = rng.standard_normal(padded, dtype=np.float32)
    fy, fx = fft.fftfreq(padded[0])[:, None], fft.rfftfreq(padded[1])[None]
    falloff = (np.hypot(fy, fx) + 1 / largest) ** -exponent
    spectrum = fft.rfft2(white) * falloff.astype(np.float32)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=padded)
    noise /= noise.std() + 1e-12
    return np.asarray(noise[: shape[0], : shape[1]], np.float32)


def _lay_fields(land: _Landscape, rng: np.random.Generator, unit: float, rough: Floats) -> None:
    """Voronoi cells stretched along one direction, each with a crop, rows and a tone; hedges between some."""
    spacing, stretch = 36 * unit, 1.7
    angle = rng.uniform(0, np.pi)
    bend = 1.5 * unit * rough
    along = (np.cos(angle) * land.x + np.sin(angle) * land.y + bend) / stretch
    across = np.cos(angle) * land.y - np.sin(angle) * land.x + bend
    grid = [
        np.arange(float(axis.min()) - spacing, float(axis.max()) + 2 * spacing, spacing) for axis in (along, across)
    ]
    seeds = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, 2)
    seeds += rng.uniform(-0.38, 0.38, seeds.shape) * spacing
    # The sum of distances keeps borders straight and mostly parallel to the two directions, as farmers do.
    gaps, cells = cKDTree(seeds).query(np.stack([along, across], axis=-1).reshape(-1, 2), k=2, p=1)
    gap = (gaps[:, 1] - gaps[:, 0]).reshape(rough.shape)
    cell, neighbour = cells.reshape(*rough.shape, 2).transpose(2, 0, 1)

    odds = np.array([field[3] for field in FIELDS])
    crop = rng.choice(len(FIELDS), len(seeds), p=odds / odds.sum())
    turned = angle + rng.choice([0, np.pi / 2], len(seeds)) + rng.normal(0, 0.05, len(seeds))
    frequency = 2 * np.pi / rng.uniform(3.5, 7, len(seeds))
    depth = rng.uniform(0, 0.2, len(seeds))
    steps = [value.astype(np.float32)[cell] for value in (np.cos(turned) * frequency, np.sin(turned) * frequency)]
    rows = np.cos(steps[0] * land.x + steps[1] * land.y) * depth.astype(np.float32)[cell]
    main, other = (np.array([INDEX[str(field[i])] for field in FIELDS], np.uint8)[crop] for i in (0, 1))
    base = np.array([field[2] for field in FIELDS], np.float32)[crop]
    land.main[:], land.other[:] = main[cell], other[cell]
    land.share[:] = np.clip(base[cell] + rows + 0.16 * _texture(rng, rough.shape, 1.2, 60), 0, 1)
    land.tone[:] = rng.uniform(0.85, 1.25, len(seeds)).astype(np.float32)[cell]

    border = gap < 1.6 * unit
    _paint(land, border, "dry grass", other="grass", share=0.6)
    hedge = (gap < 3.6 * unit + rough) & ((cell + neighbour) % 4 == 0)
    _paint(land, hedge, "forest", height=2.5)


def _grow_forest(land: _Landscape, rng: np.random.Generator, unit: float, rough: Floats) -> None:
    """Woods where broad noise is high, their canopy of crowns a few pixels wide."""
    broad = _texture(rng, rough.shape, 2.0, 260 * unit)
    crowns = gaussian_filter(rng.standard_normal(rough.shape, dtype=np.float32), 1.4 * SUPERSAMPLING)
    crowns /= crowns.std() + 1e-12
    woods = broad + 0.12 * rough > 1.4
    _paint(land, woods, "forest", other="grass", share=0.9, height=np.clip(5 + 1.3 * crowns, 3, 8))


def _pour_water(land: _Landscape, rng: np.random.Generator, unit: float, rough: Floats) -> None:
    """A winding turbid river along the track, with sand banks, and ponds of clear water."""
    phase, place = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.2, 0.8)
    bends = [np.sin(land.y / (length * unit) + p) for length, p in zip((70, 31, 13), phase, strict=True)]
    middle = place * land.main.shape[1] / SUPERSAMPLING + unit * (22 * bends[0] + 9 * bends[1] + 2 * bends[2])
    distance = np.abs(land.x - middle) + 0.7 * unit * rough
    width = unit * (6.5 + 1.5 * bends[1])
    _paint(land, distance < width + 2.5 * unit, "grass", other="wet soil", share=0.6)
    _paint(land, distance < width + unit * (1.3 + 2.0 * (bends[0] > 0.6)), "sand", other="wet soil", share=0.7)
    _paint(land, distance < width, "turbid water")
    for y, x in _scattered(land, rng, 1 / 30_000 / unit**2):
        size = unit * rng.uniform(8, 14)
        window, dy, dx = _box(land, y, x, 0, (3 * size, 3 * size))
        radius = np.hypot(dy * rng.uniform(1, 1.6), dx) + 1.5 * unit * rough[window]
        if distance[window].min(initial=np.inf) < 12 * unit:
            continue
        _paint(land, radius < size + 1.5 * unit, "wet soil", other="grass", share=0.6, window=window)
        _paint(land, radius < size, "clear water", window=window)


@dataclass(frozen=True)
class _Road:
    """A gently bent road: along x where it runs across the track, else along y; lengths in pixels."""

    place: float
    slope: float
    bend: float
    phase: float
    across: bool

    def middle(self, along: Any) -> Any:
        """Where the middle of the road is, `along` pixels from its start."""
        return self.place + self.slope * along + self.bend * np.sin(along / 60 + self.phase)

    def point(self, along: float, beside: float) -> tuple[float, float, float]:
        """y, x and direction of a point of the road, `beside` pixels off its middle."""
        where = float(self.middle(along)) + beside
        turn = float(np.arctan(self.slope))
        return (where, along, turn) if self.across else (along, where, np.pi / 2 - turn)

    def strip(self, land: _Landscape, half: float) -> tuple[tuple[slice, slice], Floats, Floats]:
        """The window around a road of half a width, and in it the signed distance from its middle and along it."""
        everything = slice(None)
        along = land.x if self.across else land.y
        middle = self.middle(along)
        reach = half * float(np.hypot(1, self.slope))
        first, last = (max(0, int(SUPERSAMPLING * place)) for place in (middle.min() - reach, middle.max() + reach + 1))
        near = slice(first, last)
        window = (near, everything) if self.across else (everything, near)
        beside = land.y[near] if self.across else land.x[:, near]
        distance = (beside - middle) / np.hypot(1, self.slope)
        return window, np.asarray(distance, np.float32), np.broadcast_to(along, distance.shape)


def _build_roads(land: _Landscape, rng: np.random.Generator, unit: float) -> list[_Road]:
    """A road across the track every so often, one along it, and a farm track beside each; bridges over water."""
    height, width = (size / SUPERSAMPLING for size in land.main.shape)
    crossings = max(1, round(height / (220 * unit)))
    places = (np.arange(crossings) + rng.uniform(0.3, 0.7, crossings)) * height / crossings
    roads = [_Road(p, rng.uniform(-0.25, 0.25), 4 * unit, rng.uniform(0, 6), across=True) for p in places]
    roads.append(_Road(width * rng.uniform(0.25, 0.75), rng.uniform(-0.06, 0.06), 5 * unit, 0, across=False))
    half = 2.6 * unit
    water = (land.main == INDEX["turbid water"]) | (land.main == INDEX["clear water"])
    for road in roads:
        lane = _Road(road.place + rng.uniform(50, 80) * unit, -road.slope, 7 * unit, road.phase, road.across)
        window, aside, _ = lane.strip(land, 1.1 * unit)
        dry = ~water[window]
        _paint(land, (np.abs(aside) < 1.1 * unit) & dry, "sand", other="bare soil", share=0.5, window=window)
        window, side, _ = road.strip(land, half + 1.6 * unit)
        wet, side = water[window], np.abs(side)
        _paint(land, (side < half + 1.6 * unit) & ~wet, "grass", other="sand", share=0.5, window=window)
        _paint(land, (side < half + 0.9 * unit) & wet, "concrete", height=1.5, window=window)
    for road in roads:
        window, side, along = road.strip(land, half)
        side = np.abs(side)
        # A bridge keeps the height of its deck, and its shadow on the water.
        deck = land.height[window] * water[window]
        _paint(land, side < half, "asphalt", height=deck, window=window)
        dashes = (side < 0.35 * unit) & (along % (9 * unit) < 5 * unit)
        _paint(land, dashes, "white paint", other="asphalt", share=0.8, height=deck, window=window)
        for start in np.arange(rng.uniform(0, 40), width if road.across else height, 55.0):
            y, x, angle = road.point(start + rng.uniform(-20, 20), float(rng.choice([-0.5, 0.5])) * half)
            car = str(rng.choice(CARS))
            _raise_box(land, y, x, angle, (4.2 * unit, 1.9 * unit), car, 1.2 * unit, 0)
    return roads


def _build_houses(land: _Landscape, rng: np.random.Generator, unit: float, roads: Sequence[_Road]) -> None:
    """A village: houses along the roads where broad noise is high, with yards, gabled or flat roofs."""
    materials, odds = list(ROOFS), list(ROOFS.values())
    busy = _texture(rng, land.main.shape, 2.0, 300 * unit)
    height, width = (size / SUPERSAMPLING for size in land.main.shape)
    taken = [INDEX[name] for name in ("turbid water", "clear water", *ROOFS, *CARS)]
    for road in roads:
        extent = width if road.across else height
        for side in (-1, 1):
            where = rng.uniform(0, 20) * unit
            while where < extent:
                long, short = unit * rng.uniform(11, 24), unit * rng.uniform(8, 13)
                where += long
                y, x, angle = road.point(where, side * unit * rng.uniform(14, 19))
                where += long * 0.5 + unit * rng.exponential(9)
                roof = str(rng.choice(materials, p=odds))
                tone, rise = rng.uniform(0.85, 1.1), rng.uniform(2.5, 5) * unit
                gable = 0.45 if roof == "red tile" else float(rng.choice([0, 0.25]))
                row, column = (int(SUPERSAMPLING * place) for place in (y, x))
                inside = 0 <= row < land.main.shape[0] and 0 <= column < land.main.shape[1]
                if not inside or busy[row, column] < -0.2:
                    continue
                plot = (long + 6 * unit, short + 6 * unit)
                window, across, along = _box(land, y, x, angle, plot)
                yard = (np.abs(along) < plot[0] / 2) & (np.abs(across) < plot[1] / 2)
                if np.isin(land.main[window][yard], taken).any():
                    continue
                surface = str(rng.choice(["concrete", "grass", "sand"]))
                _paint(land, yard, surface, other="grass", share=0.8, window=window)
                _raise_box(land, y, x, angle, (long, short), roof, rise, gable, tone)


def _plant_trees(land: _Landscape, rng: np.random.Generator, unit: float) -> None:
    """Single trees on open ground, round crowns."""
    open_ground = [INDEX[name] for name in ("grass", "dry grass", "bare soil")]
    for y, x in _scattered(land, rng, 1 / 700 / unit**2):
        radius = unit * rng.uniform(1.8, 4.2)
        tone = rng.uniform(0.8, 1.25)
        window, dy, dx = _box(land, y, x, 0, (2 * radius, 2 * radius))
        if not np.isin(land.main[window], open_ground).all():
            continue
        crown = np.sqrt(np.maximum(radius**2 - dy**2 - dx**2, 0))
        _paint(land, crown > 0, "forest", height=radius + crown, tone=tone, window=window)


def _put_panels(land: _Landscape, unit: float) -> None:
    """Calibration panels on a mat near the first corner: flat, even, in full sun."""
    side, start = 11 * unit, 9 * unit
    mat = (land.y > start - 2 * unit) & (land.y < start + side + 2 * unit)
    mat = mat & (land.x > start - 2 * unit) & (land.x < start + len(PANELS) * 1.25 * side + 2 * unit)
    _paint(land, mat, "asphalt")
    land.sun[mat] = 1
    for index, name in enumerate(PANELS):
        left = start + index * 1.25 * side
        panel = (land.y > start) & (land.y < start + side) & (land.x > left) & (land.x < left + side)
        _paint(land, panel, name)
        land.tone[panel] = 1


def _light_ground(land: _Landscape, rng: np.random.Generator, rough: Floats) -> None:
    """Texture in `tone`; slopes and cast shadows in `sun`."""
    fine = rng.standard_normal(rough.shape, dtype=np.float32)
    grain = 0.55 * rough + 0.45 * _texture(rng, rough.shape, 0.5, 8) + 0.2 * fine
    amount = np.array([ROUGHNESS.get(name, 0) for name in MATERIALS], np.float32)[land.main]
    np.clip(land.tone * (1 + amount * grain), 0.3, BRIGHTEST_TONE, out=land.tone)

    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(38, 55))
    to_sun = np.array([np.sin(azimuth), np.cos(azimuth)]) / np.tan(elevation)
    terrain = 2.5 * _texture(rng, rough.shape, 2.2, 400)
    surface = terrain + land.height
    slopes = [_slope(surface, axis) for axis in (0, 1)]
    facing = 1 - slopes[0] * np.float32(to_sun[0]) - slopes[1] * np.float32(to_sun[1])
    facing /= np.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2)
    np.clip(facing, 0.1, BRIGHTEST_SLOPE, out=land.sun)

    # A point is in shadow if anything towards the sun stands higher than the ray at that distance.
    rise = 1 / float(np.hypot(*to_sun))
    reach = int(np.ceil(SUPERSAMPLING * float(land.height.max()) / rise))
    padded = np.pad(land.height, reach, mode="edge")
    rows, columns = land.height.shape
    direction = to_sun * rise
    for step in range(1, reach + 1):
        dy, dx = (reach + round(step * float(part)) for part in direction)
        ray = land.height + np.float32(step * rise / SUPERSAMPLING)
        land.sun[padded[dy : dy + rows, dx : dx + columns] > ray] = 0


def _slope(surface: Floats, axis: int) -> Floats:
    if surface.shape[axis] < 2:
        return np.zeros_like(surface)
    slope = np.gradient(surface, 1 / SUPERSAMPLING, axis=axis)
    # Walls are not seen from above: a steep step counts as a slope of 45 degrees.
    return np.asarray(np.clip(slope, -1, 1), np.float32)


def _scattered(land: _Landscape, rng: np.random.Generator, density: float) -> Doubles:
    """Random places [n, 2] (y, x) in pixels, `density` of them per pixel."""
    size = np.array(land.main.shape) / SUPERSAMPLING
    return np.asarray(rng.uniform(0, 1, (round(float(size.prod()) * density), 2)) * size, np.float64)


def _box(
    land: _Landscape, y: float, x: float, angle: float, size: tuple[float, float]
) -> tuple[tuple[slice, slice], Floats, Floats]:
    """The window around a turned rectangle, and in it the offsets across and along the rectangle from its middle."""
    reach = float(np.hypot(*size)) / 2 + 1
    rows, columns = (
        slice(max(0, int(SUPERSAMPLING * (place - reach))), max(0, int(SUPERSAMPLING * (place + reach)) + 1))
        for place in (y, x)
    )
    dy, dx = land.y[rows] - y, land.x[:, columns] - x
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    return (rows, columns), cosine * dy - sine * dx, cosine * dx + sine * dy


def _raise_box(
    land: _Landscape,
    y: float,
    x: float,
    angle: float,
    size: tuple[float, float],
    material: str,
    height: float,
    gable: float,
    tone: float = 1.0,
) -> None:
    """A turned box of a length and width in pixels, its roof falling by `gable` per pixel from the ridge."""
    window, across, along = _box(land, y, x, angle, size)
    inside = (np.abs(along) < size[0] / 2) & (np.abs(across) < size[1] / 2)
    roof = height + gable * (size[1] / 2 - np.abs(across)) if height else np.float32(0)
    _paint(land, inside, material, height=roof, tone=tone, window=window)


def _paint(
    land: _Landscape,
    where: Bools,
    material: str,
    *,
    other: str | None = None,
    share: float = 1.0,
    height: Any = 0.0,
    tone: float = 1.0,
    window: tuple[slice, slice] = (slice(None), slice(None)),
) -> None:
    """Cover the ground of a window where `where` holds."""
    land.main[window][where] = INDEX[material]
    land.other[window][where] = INDEX[other or material]
    if other:
        # What is mixed keeps the patchiness of what was there.
        patchy = land.share[window][where]
        land.share[window][where] = np.clip(share + 0.5 * (patchy - np.float32(0.75)), 0, 1)
    else:
        land.share[window][where] = 1
    land.height[window][where] = np.broadcast_to(np.asarray(height, np.float32), where.shape)[where]
    land.tone[window][where] = tone


def _binned(fine: Floats) -> Floats:
    rows, columns = (size // SUPERSAMPLING for size in fine.shape)
    blocks = fine.reshape(rows, SUPERSAMPLING, columns, SUPERSAMPLING)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))


def _smiled(cube: Floats, smile: float) -> Floats:
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
