"""What is known to be missing of a frame, made up of what is there, for a network that is to be given no holes."""

from collections.abc import Sequence

import numpy as np

from runtime.arrays import Bools, Float32
from runtime.tiles import Tile, Tiling

RANK, ROUNDS = 6, 4
"""Spectra of a frame vary in about so many ways, and are found in so many rounds: the best of 4 to 12 and 2 to 8 by
mean PSNR on scenes of CAVE with 70 to 80 % of the elements missing. 38.1 dB; linear over bands 31.0, degraded 17.5."""
SMALLEST = 1e-8
"""Variance that is taken to be left over where nothing is."""
AT_ONCE = 1 << 14
"""Pixels that are solved together."""


def filled(frame: Float32, missing: Bools, wavelengths: Sequence[float] | None = None) -> Float32:
    """Replace what is missing.

    Elements of bands that are there elsewhere are the most likely ones beside those of their pixel that are known,
    where the frame's spectra are Gaussian about a subspace of `RANK` dimensions (probabilistic PCA of incomplete data
    by EM: Tipping and Bishop, J. R. Stat. Soc. B 61, 1999; Ilin and Raiko, JMLR 11, 2010). Bands that are missing
    throughout are cubic over wavelength, monotone between the others, and constant beyond them. A pixel of which
    nothing is known takes the spectrum of the nearest one.

    Args:
        frame: float32 [bands, lines, samples], finite where it is not missing.
        missing: bool [bands, lines, samples].
        wavelengths: of the bands in nm; without them, or where they do not rise, bands are evenly spaced.

    Returns:
        A new frame; where nothing is missing, or everything, the frame itself.
    """
    if not missing.any() or missing.all():
        return frame
    known = ~missing.reshape(len(frame), -1)
    seen = known.any(axis=0)
    bands = np.flatnonzero(known.any(axis=1))
    pixels = np.zeros((len(frame), known.shape[1]), np.float32)
    values = np.where(known, frame.reshape(pixels.shape), np.float32(0))[np.ix_(bands, seen)]
    pixels[np.ix_(bands, seen)] = _completed(values, known[np.ix_(bands, seen)])
    if not seen.all():
        from scipy.ndimage import distance_transform_edt

        nearest = distance_transform_edt(~seen.reshape(frame.shape[1:]), return_distances=False, return_indices=True)
        pixels = pixels[:, np.ravel_multi_index(tuple(nearest), frame.shape[1:]).ravel()]
    lost = np.setdiff1d(np.arange(len(frame)), bands)
    if len(lost):
        pixels[lost] = _between(pixels[bands], bands, lost, _places(len(frame), wavelengths))
    return pixels.reshape(frame.shape)


def frame_of(
    cube: Float32, bands: slice, tile: Tile, tiling: Tiling, missing: Bools | None, wavelengths: Sequence[float] | None
) -> Float32:
    """A frame [1, bands, lines, samples] cut out of a cube, with what is `missing` of it filled.

    Args:
        cube: float32 [bands, lines, samples].
        bands, tile, tiling: what is cut.
        missing: bool [bands, lines, samples]; None for nothing.
        wavelengths: of the cube's bands in nm, where somebody knows.
    """
    frame = tiling.cut(cube[bands], tile)
    if missing is None:
        return frame
    holes = tiling.cut(missing[bands].astype(np.float32), tile)[0] > 0
    return filled(frame[0], holes, None if wavelengths is None else wavelengths[bands])[None]


def _places(bands: int, wavelengths: Sequence[float] | None) -> np.ndarray:
    if wavelengths is not None and len(wavelengths) == bands and (np.diff(wavelengths) > 0).all():
        return np.asarray(wavelengths, np.float64)
    return np.arange(bands, dtype=np.float64)


def _between(values: Float32, bands: np.ndarray, lost: np.ndarray, places: np.ndarray) -> Float32:
    """Bands `lost` at `places` from `values` [len(bands), pixels]."""
    from scipy.interpolate import PchipInterpolator

    if len(bands) == 1:
        return np.repeat(values, len(lost), axis=0)
    at = np.clip(places[lost], places[bands[0]], places[bands[-1]])
    return np.asarray(PchipInterpolator(places[bands], values, axis=0)(at), np.float32)


def _completed(values: Float32, known: Bools) -> Float32:
    """Elements [bands, pixels] that are not known, where every band and every pixel has some that are."""
    if known.all():
        return values
    made = _linear(values, known)
    rank = min(RANK, len(values) - 1, made.shape[1] - 1)
    if rank < 1:
        return made
    holed = np.flatnonzero(~known.all(axis=0))
    there = known.astype(np.float32)
    given, weights = values[:, holed], there[:, holed]
    # How often two bands are missing of the same pixel.
    both = (1 - weights) @ (1 - weights).T / made.shape[1]
    doubt = np.zeros((len(values), len(values)))
    for _ in range(ROUNDS):
        mean = made.mean(axis=1, keepdims=True)
        away = made - mean
        size, axes = np.linalg.eigh((away @ away.T / made.shape[1]).astype(np.float64) + doubt)
        noise = max(float(size[:-rank].mean()), SMALLEST)
        factors = (axes[:, -rank:] * np.sqrt(np.maximum(size[-rank:] - noise, 1e-12))).astype(np.float32)
        products = (factors[:, :, None] * factors[:, None, :]).reshape(len(values), -1)
        spread = np.zeros((rank, rank))
        for first in range(0, len(holed), AT_ONCE):
            part = slice(first, first + AT_ONCE)
            share = weights[:, part]
            inverse = np.linalg.inv(
                (share.T @ products).reshape(-1, rank, rank) / noise + np.eye(rank, dtype=np.float32)
            )
            scores = inverse @ ((share * (given[:, part] - mean)).T @ factors / noise)[:, :, None]
            made[:, holed[part]] = np.where(share > 0, given[:, part], mean + factors @ scores[:, :, 0].T)
            spread += inverse.sum(axis=0)
        doubt = (factors @ (spread / len(holed)) @ factors.T + noise * np.eye(len(values))) * both
    return made


def _linear(values: Float32, known: Bools) -> Float32:
    """Linear over the bands between known elements of a pixel, constant beyond them."""
    bands = len(values)
    place = np.arange(bands)[:, None]
    before = np.maximum.accumulate(np.where(known, place, -1), axis=0)
    after = np.minimum.accumulate(np.where(known, place, bands)[::-1], axis=0)[::-1]
    low = np.clip(np.where(before < 0, after, before), 0, bands - 1)
    high = np.clip(np.where(after >= bands, before, after), 0, bands - 1)
    part = ((place - low) / np.maximum(high - low, 1)).astype(np.float32)
    below, above = np.take_along_axis(values, low, 0), np.take_along_axis(values, high, 0)
    return np.asarray(np.where(known, values, below + part * (above - below)), np.float32)
