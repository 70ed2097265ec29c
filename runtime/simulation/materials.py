"""What the ground is made of and what lights it: spectra of materials, of the sun and of the sky.

Plausible, not measured: reflectances follow the shapes known from public spectral libraries, sunlight is a black body
of 5778 K behind an atmosphere of broadened absorption lines, the sky is blue.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Doubles: TypeAlias = NDArray[np.float64]
WAVELENGTH_RANGE = (350.0, 2500.0)
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


def reflectance_of(material: str, wavelengths_nm: Sequence[float] | Doubles) -> Doubles:
    """Reflectance of a material of `MATERIALS` at wavelengths in nm from 350 to 2500, in [0, 1]."""
    knots = MATERIALS[material]
    curve = PchipInterpolator(list(knots), list(knots.values()))
    return np.asarray(curve(np.asarray(wavelengths_nm, np.float64)), np.float64)


def light(wavelengths: Doubles) -> tuple[Doubles, Doubles]:
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
