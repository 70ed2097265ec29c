"""Classical restoration of photographs, one method per degradation; as blind as those of `calibration.baselines`.

Pictures are [bands, lines, samples], display values in [0, 1]. Methods and constants were chosen by mean PSNR on
photographs of BSDS500's training set; the docstrings give those means.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter, minimum_filter, uniform_filter

from calibration.photographs import disc
from calibration.severity import Cube, needed

DARK_SIDE, KEPT_HAZE, THINNEST, BRIGHTEST_SHARE = 15, 0.95, 0.1, 0.001
"""He, Sun and Tang's: side of the dark channel's patch, haze that stays, least transmission, share of the haziest."""
GUIDE_REACH, GUIDE_EDGE = 30, 1e-3
MEDIAN_SIDE = 3
DISC_RADIUS, DISC_BALANCE = 2.5, 0.003
CLIP_LIMIT = 0.01
SMALLEST = 16
"""Lines and samples below which a picture holds too little; it is left as it is."""


def clear_haze(picture: Cube) -> Cube:
    """The dark channel prior (He, Sun, Tang, CVPR 2009), its map smoothed by a guided filter (ECCV 2010).

    12.5 to 20.6 dB.
    """
    if min(picture.shape[1:]) < SMALLEST:
        return picture
    dark = minimum_filter(picture.min(axis=0), DARK_SIDE)
    haziest = np.argsort(dark, axis=None)[-max(1, int(BRIGHTEST_SHARE * dark.size)) :]
    light = np.maximum(picture.reshape(len(picture), -1)[:, haziest].mean(axis=1), 0.1)[:, None, None]
    seen = 1 - KEPT_HAZE * minimum_filter((picture / light).min(axis=0), DARK_SIDE)
    seen = np.clip(_guided(picture.mean(axis=0), seen), THINNEST, 1)
    return np.asarray((picture - light) / seen + light, np.float32)


def _guided(guide: NDArray[np.floating], values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Values smoothed along the edges of a guide, both [lines, samples]."""

    def mean(of: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.asarray(uniform_filter(of, 2 * GUIDE_REACH + 1))

    middle, level = mean(guide), mean(values)
    slope = (mean(guide * values) - middle * level) / (mean(guide * guide) - middle**2 + GUIDE_EDGE)
    return np.asarray(mean(slope) * guide + mean(level - slope * middle))


def take_the_median(picture: Cube) -> Cube:
    """A median over 3 x 3 pixels, band by band: takes off what is thin and bright, and detail with it.

    Rain 18.1 to 20.8 dB, snow 16.3 to 16.6.
    """
    return np.stack([median_filter(band, MEDIAN_SIDE, mode="mirror") for band in picture])


def lighten(picture: Cube) -> Cube:
    """scikit-image's CLAHE of the brightness, colours kept in their proportion: 10.9 to 15.3 dB."""
    brightness = np.clip(picture.mean(axis=0), 0, 1)
    if min(picture.shape[1:]) < SMALLEST or not np.ptp(brightness):
        return picture
    lit = needed("exposure").equalize_adapthist(brightness, clip_limit=CLIP_LIMIT)
    return np.asarray(picture * (lit / np.maximum(brightness, 1 / 255)), np.float32)


def refocus(picture: Cube) -> Cube:
    """scikit-image's Wiener filter for a disc of about the middle radius, borders reflected: 25.1 to 25.8 dB."""
    if min(picture.shape[1:]) < SMALLEST:
        return picture
    of, rim = disc(DISC_RADIUS), 4 * int(np.ceil(DISC_RADIUS))
    wiener = needed("restoration").wiener
    padded = np.pad(picture, ((0, 0), (rim, rim), (rim, rim)), mode="reflect")
    sharp = [wiener(band, of / of.sum(), DISC_BALANCE, clip=False)[rim:-rim, rim:-rim] for band in padded]
    return np.asarray(np.stack(sharp), np.float32)
