"""Reading ENVI pairs: every layout against two other readers, vendors' habits, and what is refused."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import spectral.io.envi as spy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import CubeFileError, MachineError
from runtime.files.envi import pair_of, read_envi, read_header, read_lines
from runtime.files.envi_header import parse_header, wavelengths_nm
from runtime.files.envi_text import Fields
from tests.runtime.files_data import CODES, DATA, REAL_HEADERS, edited, sample, skip_without_data, write_pair


def by_spectral(header: Path, data: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube = np.asarray(spy.open(str(header), str(data)).open_memmap(interleave="bip"))
    return np.asarray(cube.transpose(2, 0, 1), dtype=dtype)


def by_gdal(data: Path) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(data, driver="ENVI") as file:
            return np.asarray(file.read())


@pytest.mark.parametrize("byte_order", [0, 1])
@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("code", CODES)
def test_every_layout_reads_as_two_other_readers_do(
    tmp_path: Path, code: int, interleave: str, byte_order: int
) -> None:
    cube = sample(CODES[code])
    header = write_pair(tmp_path, cube, code, interleave, byte_order)
    read = read_envi(header)
    assert read.dtype == np.dtype(CODES[code])
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, cube)
    np.testing.assert_array_equal(by_spectral(header, tmp_path / "cube.img", read.dtype), cube)
    np.testing.assert_array_equal(by_gdal(tmp_path / "cube.img"), cube)


@pytest.mark.data
@skip_without_data
@pytest.mark.parametrize("name", REAL_HEADERS)
def test_real_files_read_as_two_other_readers_do(name: str, tmp_path: Path) -> None:
    header, data = pair_of(DATA / name)
    read = read_envi(header)
    np.testing.assert_array_equal(read, by_gdal(data))
    text = header.read_text(encoding="latin-1")
    if "byte order" not in text:
        # spectral refuses the defaults that ENVI defines, so it gets them spelled out.
        header = tmp_path / header.name
        header.write_text(text.rstrip() + "\nbyte order = 0\nheader offset = 0\n", encoding="latin-1")
    np.testing.assert_array_equal(read, by_spectral(header, data, read.dtype))


@pytest.mark.data
@skip_without_data
@pytest.mark.parametrize("name", REAL_HEADERS)
def test_real_headers_keep_every_field(name: str) -> None:
    header = read_header(DATA / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = spy.read_envi_header(str(DATA / name))
    assert {key.lower() for key in header.fields} == set(theirs)
    if header.wavelengths is not None:
        assert list(header.wavelengths) == [float(value) for value in theirs["wavelength"]]
        nanometres = wavelengths_nm(header)
        assert nanometres is not None
        assert 300 < nanometres[0] < nanometres[-1] < 2600


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
def test_windows_of_lines(tmp_path: Path, interleave: str) -> None:
    cube = sample("u2", (3, 7, 5))
    header = read_header(write_pair(tmp_path, cube, 12, interleave, 1, header_offset=11))
    for start in range(7):
        for stop in range(start + 1, 8):
            np.testing.assert_array_equal(read_lines(header, start, stop), cube[:, start:stop])
    for start, stop in ((-1, 2), (3, 3), (4, 2), (0, 8)):
        with pytest.raises(CubeFileError, match="not within the cube"):
            read_lines(header, start, stop)


def test_a_window_in_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.files.rows.PIECE", 100)
    cube = sample("i4", (3, 17, 5))
    for interleave in ("bil", "bip"):
        np.testing.assert_array_equal(read_envi(write_pair(tmp_path, cube, 3, interleave)), cube)


def test_a_file_that_still_grows(tmp_path: Path) -> None:
    cube = sample("u2", (3, 4, 5))
    path = write_pair(tmp_path, cube, 12)
    header = read_header(path)
    os.truncate(tmp_path / "cube.img", 3 * 30 + 7)
    np.testing.assert_array_equal(read_lines(header, 0, 3), cube[:, :3])
    with pytest.raises(CubeFileError, match="ends at byte 97"):
        read_lines(header, 2, 4)
    with pytest.raises(CubeFileError, match="3 whole lines are there"):
        read_header(path)


def test_a_file_cut_short_while_it_is_read(tmp_path: Path) -> None:
    header = read_header(write_pair(tmp_path, sample("f4"), 4, "bsq"))
    os.truncate(tmp_path / "cube.img", 100)
    with pytest.raises(CubeFileError, match="ends at byte 100"):
        read_envi(header)


def test_defaults_that_envi_defines(tmp_path: Path) -> None:
    cube = sample("u2")
    header = read_header(edited(write_pair(tmp_path, cube, 12), drop=("byte order", "header offset", "file type")))
    assert (header.dtype, header.header_offset) == (np.dtype("<u2"), 0)
    np.testing.assert_array_equal(read_envi(header), cube)


VENDORS = {
    "specim": """ENVI\r
description = {\r
File Imported into ENVI}\r
file type = ENVI\r
\r
sensor type = SWIR3, Lumo - Recorder v2019-535\r
acquisition date = DATE(yyyy-mm-dd): 2020-10-01\r
Start Time = UTC TIME: 07:20:03\r
samples = 5\r
bands = 3\r
lines = 4\r
\r
errors = {none}\r
\r
interleave = bil\r
data type = 12\r
header offset = 0\r
byte order = 0\r
x start = 0\r
default bands = {3, 2, 1}\r
\r
himg = {1, 384}\r
tint = 8.000000\r
Wavelength = {\r
1000.5,\r
1010.25,\r
1020.125\r
}\r
fwhm = {\r
5.5,\r
5.5,\r
5.5\r
}\r
bbl = {1, 1, 0}\r
""",
    "resonon": """ENVI
interleave = bil
data type = 12
lines = 4
samples = 5
bands = 3
bit depth = 12
shutter = 10.0
gain = 1.0
framerate = 50.1
sample binning = 1
spectral binning = 2
label = pika l
timestamp = 2021-06-11_17:28:34
rotation = ((1.0, 0.0), (0.0, 1.0))
reflectance scale factor = 10000.0
header offset = 0
byte order = 0
original cube file = C:\\data\\x.bil
wavelength = {1000.5, 1010.25, 1020.125}
""",
    "hyspex": """ENVI
description = {
 Frameperiod = 20000
 Integration time = 10000
 Number of background = 200
 = odd line = with signs

 ID = HySpex_VNIR_1800_SN0827
 }
samples   = 5
lines     = 4
bands     = 3
header offset = 0
file type = ENVI Standard
data type = 12
interleave = BIL
sensor type = HySpex VNIR-1800
byte order = 0
wavelength units = nm
default bands = {3,2,1}
data gain values = { 1.5E-5, 1.5E-5 , 1.5E-5 }
Wavelength = { 1000.5 , 1010.25 , 1020.125 }
""",
    "headwall": """ENVI
;comment
description = {[HEADWALL Hyperspec III]}
samples\t=\t5
lines\t=\t4
bands\t=\t3
header offset = 0
file type = ENVI Standard
data type = 12
interleave = bil
byte order = 0
wavelength units = nm
wavelength = {
1000.5
,1010.25
; a comment inside
,1020.125
}
Samples = 5
recorded on a windy day
""",
    "opening brace on the next line": """ENVI
samples = 5
lines = 4
bands = 3
data type = 12
interleave = bil
wavelength =
  {1000.5, 1010.25,
   1020.125, }
wavelength units = Nanometers
""",
    "a mark of UTF-8 first, old line ends": (
        "\ufeffENVI\rsamples = 5\rlines = 4\rbands = 3\rdata type = 12\rinterleave = bil\r"
        "wavelength = {1.0005, 1.01025, 1.020125}\rwavelength units = \u00b5m\r"
    ),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_vendors_habits(tmp_path: Path, vendor: str) -> None:
    cube = sample("u2")
    header = write_pair(tmp_path, cube, 12)
    header.write_bytes(VENDORS[vendor].encode())
    read = read_header(header)
    assert wavelengths_nm(read) == pytest.approx((1000.5, 1010.25, 1020.125))
    np.testing.assert_array_equal(read_envi(read), cube)


def test_what_is_read_of_a_specim_header(tmp_path: Path) -> None:
    path = write_pair(tmp_path, sample("u2"), 12)
    path.write_bytes(VENDORS["specim"].encode())
    header = read_header(tmp_path / "cube.img")
    assert header.fwhm == (5.5, 5.5, 5.5)
    assert header.bbl == (1.0, 1.0, 0.0)
    assert header.fields["start time"] == "UTC TIME: 07:20:03"
    assert "Start Time" in list(header.fields)
    assert header.fields["DESCRIPTION"] == "{\nFile Imported into ENVI}"
    assert header.fields.get("no such key") is None


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    header = edited(write_pair(tmp_path, sample("u1"), 1))
    header.write_bytes(header.read_bytes() + "operator = J\u00fcrgen\n".encode("latin-1"))
    assert read_header(header).fields["operator"] == "J\u00fcrgen"


@pytest.mark.parametrize(
    ("units", "values", "expected"),
    [
        ("Nanometers", (400.0, 500.0, 600.0), (400.0, 500.0, 600.0)),
        ("micrometers", (0.4, 0.5, 0.6), (400.0, 500.0, 600.0)),
        ("Unknown", (400.0, 500.0, 600.0), (400.0, 500.0, 600.0)),
        (None, (0.4, 0.5, 0.6), (400.0, 500.0, 600.0)),
        (None, (1.0, 2.0, 3.0), None),
        (None, (100.0, 500.0, 600.0), None),
        ("Wavenumber", (4000.0, 3000.0, 2000.0), None),
        ("Index", (400.0, 500.0, 600.0), None),
    ],
)
def test_units_of_wavelengths(
    tmp_path: Path, units: str | None, values: tuple[float, ...], expected: tuple[float, ...] | None
) -> None:
    header = write_pair(tmp_path, sample("u1"), 1, wavelength="{" + ", ".join(map(str, values)) + "}")
    if units is not None:
        edited(header, f"wavelength units = {units}")
    assert wavelengths_nm(read_header(header)) == (None if expected is None else pytest.approx(expected))


REFUSED = [
    ((), "data ignore value = 1e999", "is larger than a number can be (found '1e999')"),
    ((), "data ignore value = -1e400", "is larger than a number can be"),
    (("samples",), "", "samples: is missing; add 'samples = ...'"),
    (("interleave",), "interleave =", "line 9, interleave: is not an interleave (found ''); set it to bil, bip or bsq"),
    (("interleave",), "interleave = bli", "is not an interleave (found 'bli')"),
    (("data type",), "data type = 6", "complex numbers are not spectra (found '6')"),
    (("data type",), "data type = 7", "is not an ENVI data type (found '7')"),
    (("bands",), "bands = 0", "must be a whole number from 1 to 2147483647 (found '0')"),
    (("bands",), "bands = -3", "must be a whole number from 1"),
    (("bands",), "bands = 3.0", "must be a whole number from 1"),
    (("bands",), "bands = 1_0", "must be a whole number from 1"),
    (("bands",), "bands = " + "9" * 5000, "must be a whole number from 1"),
    (("bands",), "bands = 2147483647", "his header asks for|asks for"),
    (("bands", "lines"), "bands = 2147483647\nlines = 2147483647", "more than 64 TiB"),
    (("byte order",), "byte order = 2", "must be a whole number from 0 to 1"),
    (("byte order",), "byte order 1", "'=' is missing"),
    (("header offset",), "header offset = -1", "must be a whole number from 0"),
    (("header offset",), "header offset = 3", "has 120 bytes, its header asks for 123"),
    (("lines",), "lines = 5", "has 120 bytes, its header asks for 150"),
    (("lines",), "lines = 3", "has 120 bytes, its header accounts for only 90"),
    ((), "lines = 3", "given twice with different values, first on line 3"),
    (("file type",), "file type = ENVI Spectral Library", "a spectral library, which holds single spectra"),
    (("file type",), "file type = ENVI Classification", "a classification, which holds labels"),
    (("file type",), "file type = TIFF", "stands for a TIFF file, not for a cube in rows of numbers (found 'TIFF')"),
    ((), "file compression = 1", "compressed ENVI files are not read"),
    ((), "major frame offsets = {4, 0}", "bytes around every frame"),
    ((), "note = a {b", "an opening brace in the middle of a value"),
    ((), "note = {a} b", "text after the closing brace"),
    ((), "note = {a} {b}", "text after the closing brace"),
    ((), "}", "a brace outside a value"),
    ((), "= 3", "a value without a key"),
    ((), "data ignore value = none", "is not a number (found 'none')"),
    ((), "note = a\0b", "holds NUL bytes"),
]


@pytest.mark.parametrize("key", ["reflectance scale factor", "data ignore value", "wavelength", "data gain values"])
def test_a_header_that_is_cut_off_within_a_key_is_refused(tmp_path: Path, key: str) -> None:
    header = write_pair(tmp_path, sample("u2"), 12)
    text = header.read_text()
    for end in range(1, len(f"{key} = ") + 1):
        header.write_text(f"{text.rstrip()}\n{f'{key} = '[:end]}")
        with pytest.raises(CubeFileError, match=r"the header ends within this line|'=' is missing"):
            read_header(header)
    for note in ("written by a camera\n", "; a comment", "\n", "", "sensor type =", f"{key} = \n"):
        header.write_text(f"{text.rstrip()}\n{note}")
        assert read_header(header).reflectance_scale_factor is None


@pytest.mark.parametrize(("drop", "line", "message"), REFUSED)
def test_what_is_refused_and_what_the_user_reads(
    tmp_path: Path, drop: tuple[str, ...], line: str, message: str
) -> None:
    header = edited(write_pair(tmp_path, sample("u2"), 12), *([line] if line else []), drop=drop)
    with pytest.raises(CubeFileError) as caught:
        read_header(header)
    assert any(part in str(caught.value) for part in message.split("|")), str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert caught.value.file in (str(header), str(tmp_path / "cube.img"))


def test_one_number_as_a_list_and_gains_of_nothing(tmp_path: Path) -> None:
    header = read_header(
        edited(write_pair(tmp_path, sample("u2"), 12), "data ignore value = {-9999, -9999.0, -9.999e3}")
    )
    assert header.data_ignore_value == -9999
    with pytest.raises(CubeFileError, match="is not a number"):
        read_header(edited(write_pair(tmp_path, sample("u2"), 12), "data ignore value = {-9999, 0}"))
    header = read_header(edited(write_pair(tmp_path, sample("u2"), 12), "data gain values = {0}"))
    assert header.gains is None and "gains of 0 say nothing" in header.doubts[0]


def test_values_that_are_tolerated(tmp_path: Path) -> None:
    header = edited(
        write_pair(tmp_path, sample("u2"), 12),
        "INTERLEAVE = BIL",
        "samples =   5",
        "data ignore value = nan",
        "description = {a {nested} b}",
        "bbl = {}",
        "fwhm =",
        "file compression = 0",
        "free text of the operator",
    )
    read = read_header(header)
    assert read.bbl is None
    assert read.fwhm is None
    assert read.data_ignore_value is not None
    assert np.isnan(read.data_ignore_value)


def test_not_a_header(tmp_path: Path) -> None:
    header = write_pair(tmp_path, sample("u1"), 1)
    header.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(CubeFileError, match="line 1: the first line is not ENVI"):
        read_header(header)
    header.write_bytes(b"ENVI\n" + b" " * (16 << 20))
    with pytest.raises(CubeFileError, match="larger than 16 MiB"):
        read_header(header)


def test_partners(tmp_path: Path) -> None:
    cube = sample("u1")
    header = write_pair(tmp_path, cube, 1)
    for name in ("cube", "cube.raw", "cube.DAT", "cube.bil"):
        (tmp_path / "cube.img").replace(tmp_path / name)
        assert pair_of(header) == (header, tmp_path / name)
        assert pair_of(tmp_path / name) == (header, tmp_path / name)
        (tmp_path / name).replace(tmp_path / "cube.img")
    header.replace(tmp_path / "cube.img.hdr")
    assert pair_of(tmp_path / "cube.img") == (tmp_path / "cube.img.hdr", tmp_path / "cube.img")
    assert pair_of(tmp_path / "cube.img.hdr") == (tmp_path / "cube.img.hdr", tmp_path / "cube.img")


def test_partners_missing_or_ambiguous(tmp_path: Path) -> None:
    header = write_pair(tmp_path, sample("u1"), 1)
    (tmp_path / "cube").mkdir()
    assert pair_of(header)[1].name == "cube.img"
    (tmp_path / "cube.raw").write_bytes((tmp_path / "cube.img").read_bytes())
    with pytest.raises(CubeFileError, match=r"several files could be its data file: cube\.img and cube\.raw"):
        pair_of(header)
    (tmp_path / "cube.img.hdr").write_bytes(b"ENVI")
    with pytest.raises(CubeFileError, match=r"several files could be its header: cube\.img\.hdr and cube\.hdr"):
        pair_of(tmp_path / "cube.img")
    for name in ("cube.raw", "cube.img", "cube.img.hdr"):
        (tmp_path / name).unlink()
    with pytest.raises(CubeFileError, match="its data file is missing; put one of these beside it"):
        pair_of(header)
    header.rename(tmp_path / "lonely.img")
    with pytest.raises(CubeFileError, match="its header is missing"):
        pair_of(tmp_path / "lonely.img")


def test_only_regular_files(tmp_path: Path) -> None:
    header = write_pair(tmp_path, sample("u1"), 1)
    data = tmp_path / "cube.img"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    read_envi(header)
    data.unlink()
    data.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CubeFileError, match="its data file is missing"):
        read_envi(header)
    data.unlink()
    os.mkfifo(data)
    with pytest.raises(CubeFileError, match="is not a regular file"):
        read_envi(data)
    data.unlink()
    data.mkdir()
    with pytest.raises(CubeFileError, match="is a folder"):
        read_envi(data)
    data.rmdir()
    data.write_bytes(b"")
    with pytest.raises(CubeFileError, match="the file is empty"):
        read_envi(header)


def test_a_huge_sparse_file_is_not_loaded(tmp_path: Path) -> None:
    header = edited(write_pair(tmp_path, sample("u1"), 1), "lines = 1000000000000", drop=("lines",))
    with pytest.raises(CubeFileError, match="whole number"):
        read_envi(header)
    edited(header, "lines = 2000000000", "samples = 2000", drop=("lines", "samples"))
    with (tmp_path / "cube.img").open("r+b") as file:
        try:
            file.truncate(2_000_000_000 * 2000 * 3)
        except OSError:
            pytest.skip("this file system does not hold sparse files of this size")
    with pytest.raises(MachineError, match="bytes of memory"):
        read_envi(header)


@pytest.mark.parametrize(
    "filling",
    [
        lambda: "wavelength = {" + ",\n".join(["500.25"] * 250_000) + "}\n",
        lambda: "wavelength = {" + ", ".join(["500.25"] * 250_000) + "}\n",
        lambda: "".join(f"key {number} = {number}\n" for number in range(90_000)),
        lambda: "note = {" + "{" * 1_000_000 + "}" * 1_000_000 + "}\n",
        lambda: "note = " + "{" * 2_000_000 + "\n",
        lambda: "note = {" + "\n" * 2_000_000 + "}\n",
        lambda: "a\n" * 1_000_000,
        lambda: " \t" * 1_000_000 + "= 1\n",
        lambda: "data ignore value = " + "1" * 2_000_000 + "\n",
    ],
)
def test_a_two_megabyte_header_takes_linear_time(tmp_path: Path, filling: Any) -> None:
    header = write_pair(tmp_path, sample("u1"), 1)
    header.write_text(header.read_text() + filling())
    start = time.process_time()
    try:
        read_header(header)
    except CubeFileError as error:
        assert len(str(error)) < 1000
    assert time.process_time() - start < 60, "quadratic would be hours"


names = st.text(st.characters(codec="ascii", min_codepoint=97, max_codepoint=122), min_size=1, max_size=12).map(
    lambda name: "x " + name
)
scalars = st.text(st.characters(codec="utf-8", exclude_characters="{}\r\n\0", exclude_categories=["Cs"]), max_size=30)
lists = st.lists(
    st.text(st.characters(codec="ascii", min_codepoint=48, max_codepoint=122), max_size=8), max_size=5
).map(lambda items: "{" + ", ".join(items).replace("{", "").replace("}", "") + "}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    extra=st.dictionaries(names, st.one_of(scalars.map(str.strip), lists), max_size=6),
    upper=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    padding=st.sampled_from(["", " ", "\t", "  "]),
    seed=st.randoms(use_true_random=False),
)
def test_any_well_formed_header_reads_back(
    extra: dict[str, str], upper: bool, end: str, padding: str, seed: Any
) -> None:
    layout = {"samples": "5", "lines": "4", "bands": "3", "data type": "12", "interleave": "bil"}
    items = list((extra | layout).items())
    seed.shuffle(items)
    rows = []
    for key, value in items:
        rows += [f"{padding}{key.upper() if upper else key}{padding}={padding}{value}", seed.choice(["", "; a = b"])]
    header = parse_header("ENVI" + end + end.join(rows), path=Path("x.hdr"), data_path=Path("x.img"))
    assert (header.bands, header.lines, header.samples) == (3, 4, 5)
    assert header.fields == Fields({(k.upper() if upper else k): v.strip() for k, v in items})


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        header = parse_header("ENVI\n" + text, path=Path("x.hdr"), data_path=Path("x.img"))
    except CubeFileError:
        return
    assert min(header.shape) >= 1
