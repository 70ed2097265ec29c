"""The ground that a scene shows: fields, woods, water, roads, houses, trees and panels, drawn one over the other.

Places, sizes and heights are in the sensor's pixels; the ground is kept at `SUPERSAMPLING` times their resolution, and
the wavelengths of texture are in its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from runtime.arrays import Bools, Float32
from runtime.simulation.materials import INDEX, MATERIALS, ROUGHNESS, Doubles

SUPERSAMPLING = 2
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


@dataclass(frozen=True, eq=False)
class Landscape:
    """The ground at `SUPERSAMPLING` times the sensor's resolution, all [rows, columns].

    `main` and `other` are indices into MATERIALS, `share` the share of `main`, `height` of objects in pixels, `tone` a
    brightness factor, `sun` the direct light as a share of that on flat ground.
    """

    y: Float32
    x: Float32
    main: NDArray[np.uint8]
    other: NDArray[np.uint8]
    share: Float32
    height: Float32
    tone: Float32
    sun: Float32


def landscape(rng: np.random.Generator, lines: int, samples: int) -> Landscape:
    """The ground under `lines` x `samples` pixels of the sensor; every step draws from `rng`, so their order counts."""
    rows, columns = SUPERSAMPLING * lines, SUPERSAMPLING * samples
    shape = (rows, columns)
    land = Landscape(
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


def _texture(rng: np.random.Generator, shape: tuple[int, int], exponent: float, largest: float) -> Float32:
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


def _lay_fields(land: Landscape, rng: np.random.Generator, unit: float, rough: Float32) -> None:
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


def _grow_forest(land: Landscape, rng: np.random.Generator, unit: float, rough: Float32) -> None:
    """Woods where broad noise is high, their canopy of crowns a few pixels wide."""
    broad = _texture(rng, rough.shape, 2.0, 260 * unit)
    crowns = gaussian_filter(rng.standard_normal(rough.shape, dtype=np.float32), 1.4 * SUPERSAMPLING)
    crowns /= crowns.std() + 1e-12
    woods = broad + 0.12 * rough > 1.4
    _paint(land, woods, "forest", other="grass", share=0.9, height=np.clip(5 + 1.3 * crowns, 3, 8))


def _pour_water(land: Landscape, rng: np.random.Generator, unit: float, rough: Float32) -> None:
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

    def strip(self, land: Landscape, half: float) -> tuple[tuple[slice, slice], Float32, Float32]:
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


def _build_roads(land: Landscape, rng: np.random.Generator, unit: float) -> list[_Road]:
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


def _build_houses(land: Landscape, rng: np.random.Generator, unit: float, roads: Sequence[_Road]) -> None:
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


def _plant_trees(land: Landscape, rng: np.random.Generator, unit: float) -> None:
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


def _put_panels(land: Landscape, unit: float) -> None:
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


def _light_ground(land: Landscape, rng: np.random.Generator, rough: Float32) -> None:
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


def _slope(surface: Float32, axis: int) -> Float32:
    if surface.shape[axis] < 2:
        return np.zeros_like(surface)
    slope = np.gradient(surface, 1 / SUPERSAMPLING, axis=axis)
    # Walls are not seen from above: a steep step counts as a slope of 45 degrees.
    return np.asarray(np.clip(slope, -1, 1), np.float32)


def _scattered(land: Landscape, rng: np.random.Generator, density: float) -> Doubles:
    """Random places [n, 2] (y, x) in pixels, `density` of them per pixel."""
    size = np.array(land.main.shape) / SUPERSAMPLING
    return np.asarray(rng.uniform(0, 1, (round(float(size.prod()) * density), 2)) * size, np.float64)


def _box(
    land: Landscape, y: float, x: float, angle: float, size: tuple[float, float]
) -> tuple[tuple[slice, slice], Float32, Float32]:
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
    land: Landscape,
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
    land: Landscape,
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
