"""Generated headers: their values are what GDAL and Spectral Python make of them, or they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import spectral
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import CubeError
from runtime.files import read_cube
from runtime.meaning import Asked, Known, meaning_of
from runtime.meaning.marks import held

BANDS, LINES, SAMPLES = 5, 9, 8
TYPES = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12, "u4": 13}
TRUTH = np.random.default_rng(5).uniform(0.05, 0.95, (BANDS, LINES, SAMPLES))
PLACE = np.zeros((LINES, SAMPLES), bool)
PLACE[:2] = True
AXES = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


def listed(values: Any) -> str:
    return "{" + ", ".join(f"{value!r}" for value in np.broadcast_to(values, BANDS).tolist()) + "}"


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """How a cube is written: its type, how numbers become values, its mark, its bad bands, its bytes."""
    name = draw(st.sampled_from(sorted(TYPES)))
    top = 200.0 if name == "u1" else draw(st.sampled_from([1000.0, 4095.0, 10000.0]))
    how = draw(
        st.sampled_from(["none", "factor", "zero factor", "multiplier", "gain", "gains", "offsets", "both", "agree"])
    )
    mark = draw(st.sampled_from([None, -9999.0, -32768.0, 65535.0, 0.0, 255.0, -999.0, float("nan"), 1e20]))
    return {
        "name": name, "top": top, "how": how, "mark": mark,
        "said": draw(st.booleans()), "there": draw(st.booleans()),
        "bbl": draw(st.booleans()), "order": draw(st.booleans()), "interleave": draw(st.sampled_from(sorted(AXES))),
    }  # fmt: skip


def gains_of(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What turns numbers into values [bands]."""
    spread = np.linspace(0.8, 1.25, BANDS) if case["how"] in ("gains", "offsets", "both") else np.ones(BANDS)
    shift = np.linspace(-0.02, 0.04, BANDS) if case["how"] == "offsets" else np.zeros(BANDS)
    return spread / case["top"], shift


def put(folder: Path, case: dict[str, Any]) -> np.ndarray:
    """Write the case; its numbers [bands, lines, samples]."""
    gains, shift = gains_of(case)
    dtype = np.dtype(case["name"])
    floats_as_they_are = case["how"] in ("none", "zero factor") and dtype.kind == "f"
    cube = TRUTH.copy() if floats_as_they_are else np.rint((TRUTH - shift[:, None, None]) / gains[:, None, None])
    cube = cube.astype(dtype)
    mark = case["mark"]
    if mark is not None and case["there"] and held(mark, dtype) is not None:
        cube[:, PLACE] = mark
    factor = {
        "factor": case["top"],
        "zero factor": 0,
        "multiplier": 1 / case["top"],
        "agree": case["top"],
        "both": case["top"],
    }
    rows = [f"reflectance scale factor = {factor[case['how']]!r}"] if case["how"] in factor else []
    if case["how"] in ("gain", "gains", "offsets", "both", "agree"):
        rows.append(f"data gain values = {listed(gains)}")
    if case["how"] == "offsets":
        rows.append(f"data offset values = {listed(shift)}")
    if case["said"] and mark is not None:
        rows.append(f"data ignore value = {mark!r}")
    if case["bbl"]:
        rows.append("bbl = {1, 1, 0, 1, 1}")
    data = np.ascontiguousarray(cube.transpose(AXES[case["interleave"]])).astype("<>"[case["order"]] + case["name"])
    (folder / "x.img").write_bytes(data.tobytes())
    head = ["ENVI", f"samples = {SAMPLES}", f"lines = {LINES}", f"bands = {BANDS}", "header offset = 0",
            "file type = ENVI Standard", f"data type = {TYPES[case['name']]}", f"interleave = {case['interleave']}",
            f"byte order = {int(case['order'])}"]  # fmt: skip
    (folder / "x.hdr").write_text("\n".join([*head, *rows]) + "\n")
    return cube


def as_others_see(folder: Path, case: dict[str, Any], cube: np.ndarray) -> np.ndarray:
    """The values as GDAL applies gains, and Spectral Python the factor."""
    with rasterio.open(folder / "x.img") as image:
        read = image.read()
        np.testing.assert_array_equal(read, cube)
        values = read * np.array(image.scales)[:, None, None] + np.array(image.offsets)[:, None, None]
    if case["how"] == "factor":
        # Spectral Python's own axes are [lines, samples, bands].
        values = np.asarray(spectral.open_image(str(folder / "x.hdr")).load()).transpose(2, 0, 1)
    return np.asarray(values, np.float64)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(headers())
def test_values_are_those_of_other_readers_or_refused(tmp_path: Path, case: dict[str, Any]) -> None:
    cube = put(tmp_path, case)
    source = read_cube(tmp_path / "x.hdr")
    np.testing.assert_array_equal(source.cube, cube)
    try:
        found = meaning_of(source.cube, source.stated, Asked(), Known("bundle", case["top"]))
    except CubeError as error:
        # Gains and a factor that differ; NaN that nobody named.
        assert case["how"] == "both" or (case["mark"] != case["mark"] and not case["said"] and case["there"]), error
        assert error.remedy
        return
    marked = np.isnan(cube) if case["mark"] is not None and case["mark"] != case["mark"] else cube == case["mark"]
    place = marked.all(axis=0) if case["mark"] is not None else np.zeros((LINES, SAMPLES), bool)
    # Unnamed, 0 and what lies among the measurements are measurements.
    measured = cube[:, ~place]
    among = case["mark"] is not None and measured.min() <= case["mark"] <= measured.max()
    hidden = not case["said"] and (case["mark"] == 0 or among)
    if not hidden:
        np.testing.assert_array_equal(found.missing, place)
        assert not place.any() or case["said"] or any("--ignore-value" in doubt for doubt in found.doubts)
    assert sorted(found.bad) == ([2] if case["bbl"] else [])
    there = ~found.missing
    unit = found.conversion.to_unit(source.cube)[:, there]
    others = as_others_see(tmp_path, case, cube)[:, there]
    if case["how"] in ("none", "zero factor", "multiplier") and cube.dtype.kind in "iu":
        # Nobody else knows of the bundle's scale, and none takes a factor for a multiplier.
        others = cube[:, there] / case["top"]
    elif case["how"] == "multiplier":
        others = cube[:, there] / case["top"]
    np.testing.assert_allclose(unit, others, rtol=1e-5, atol=1e-6)
    if not hidden:
        np.testing.assert_allclose(unit, TRUTH[:, there], atol=0.7 / case["top"])
    # And back: the numbers, marks and bad bands of the file.
    back, _, _ = found.given_back(found.conversion.to_unit(source.cube), source.cube, clip=False, unit=False)
    np.testing.assert_allclose(back[:, there].astype(float), cube[:, there].astype(float), rtol=2e-6, atol=2e-3)
    np.testing.assert_array_equal(back[:, ~there], cube[:, ~there])
