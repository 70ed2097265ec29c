"""Lists of an ENVI header: read in whatever brackets they come, left out with a word, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import CubeFileError
from runtime.files import read_cube, write_cube
from runtime.files.envi import read_header
from runtime.files.envi_header import EnviHeader, parse_header, wavelengths_nm
from tests.runtime.files_data import edited, sample, write_pair

WAVES = (400.5, 500.25, 600.0)

READ = [
    "{400.5, 500.25, 600}",
    "{400.5 500.25 600}",
    "{400.5\t500.25\t\t600}",
    "{400.5; 500.25; 600;}",
    "{400.5\n500.25\n600}",
    "{400.5, 500.25\n 600}",
    "{400.5,\n\n;a comment\n500.25,\n600,\n}",
    "[400.5, 500.25, 600]",
    "[ 400.5  500.25\n  600. ]",
    "[400.5\n500.25\n600]",
    "(400.5, 500.25, 600)",
    "(400.5; 500.25; 600)",
    "{[400.5, 500.25, 600]}",
    "{(400.5 500.25 600)}",
    "['400.5', '500.25', '600']",
    '{"400.5" "500.25" "600"}',
    "400.5, 500.25, 600",
    "400.5 500.25 600",
    "400.5, 500.25,\n600",
    "\n400.5\n500.25\n600",
    "\n[400.5\n500.25\n600]",
    "\n\n{400.5, 500.25, 600}",
    "{4.005E2, 5.0025d+02, 600.00000}",
]


@pytest.mark.parametrize("end", ["", "\nsensor type = FX10"])
@pytest.mark.parametrize("text", READ)
def test_a_list_with_one_reading_is_read(tmp_path: Path, text: str, end: str) -> None:
    header = edited(write_pair(tmp_path, sample("u2"), 12), "wavelength units = nm", f"wavelength = {text}{end}")
    read = read_cube(header)
    assert read.wavelengths == pytest.approx(WAVES)
    assert read.doubts == ()
    assert read.fields.get("sensor type") == ("FX10" if end else None)
    write_cube(tmp_path / "out.hdr", read.cube, like=read)
    assert read_cube(tmp_path / "out.hdr").wavelengths == read.wavelengths, "and it is written as the standard has it"


@pytest.mark.parametrize(
    "text", ["{400.5 nm, 500.25 nm, 600nm}", "[400.5 nm 500.25 nm 600 nm]", "(400.5nm; 500.25 NM; 600 nm)"]
)
@pytest.mark.parametrize("units", [None, "Nanometers", "Unknown"])
def test_units_may_stand_with_the_numbers(tmp_path: Path, text: str, units: str | None) -> None:
    header = edited(write_pair(tmp_path, sample("u2"), 12), f"wavelength = {text}", f"fwhm = {text}")
    if units:
        edited(header, f"wavelength units = {units}")
    read = read_header(header)
    assert wavelengths_nm(read) == pytest.approx(WAVES)
    assert read.fwhm == read.wavelengths and not read.doubts
    write_cube(tmp_path / "out.hdr", sample("u2"), like=read_cube(header))
    assert read_cube(tmp_path / "out.hdr").wavelengths == pytest.approx(WAVES)


def test_micrometres_with_the_numbers_are_micrometres(tmp_path: Path) -> None:
    header = edited(write_pair(tmp_path, sample("u2"), 12), "wavelength = {0.4005 µm, 0.50025 µm, 0.6 µm}")
    assert wavelengths_nm(read_header(header)) == pytest.approx(WAVES)


NOT_READ = [
    ("wavelength = {1, 2}", "has 2 values for 3 bands"),
    ("wavelength = {1, 2, 3, 4}", "has 4 values for 3 bands"),
    ("wavelength = [400 500]", "has 2 values for 3 bands"),
    ("wavelength = {400, nan, 600}", "entry 2 is not a finite number ('nan')"),
    ("wavelength = {400, 1e999, 600}", "entry 2 is not a finite number"),
    ("wavelength = {400, 5x, 600}", "entry 2 is not a finite number ('5x')"),
    ("wavelength = {400,, 600}", "entry 2 is not a finite number ('')"),
    ("wavelength = [400. ... 600.]", "entry 2 is not a finite number ('...')"),
    ("wavelength = {400,5; 500,5; 600,5}", "entry 1 is not a finite number ('400,5')"),
    ("wavelength = {400,5 500,5 600,5}", "has 4 values for 3 bands"),
    ("wavelength = {1 400, 1 500, 1 600}", "entry 1 is not a finite number ('1 400')"),
    ("wavelength = {400, -500, 600}", "-500 is not plausible"),
    ("wavelength = {0, 0, 0}", "0 is not plausible"),
    ("wavelength = {400, 500, 1e300}", "1e+300 is not plausible"),
    ("wavelength = {400 nm, 500 nm, 600}", "its entries have different units"),
    ("wavelength = {400 nm, 500 nm, 0.6 um}", "its entries have different units"),
    ("wavelength = {400 lm, 500 lm, 600 lm}", "entry 1 is not a finite number ('400 lm')"),
    ("wavelength = unknown", "has 1 values for 3 bands"),
    ("wavelength = {400, 500, 600} nm", "its brackets do not match"),
    ("wavelength = [400, 500, 600)", "its brackets do not match"),
    ("wavelength = {400, 500, 600", "its brackets do not match"),
    ("wavelength = [400, 500, 600", "its brackets do not match"),
    ("wavelength = {400, 500, 600}}", "entry 3 is not a finite number ('600}')"),
    ("wavelength = {400, {500, 600}", "entry 2 is not a finite number ('{500')"),
    ("wavelength = nm {400,\n500,\n600\n}", "has 4 values for 3 bands"),
    ("wavelength = array([400,\n500, 600])", "entry 1 is not a finite number ('array([400')"),
    ("wavelength {400,\n500,\n600\n}", "'=' is missing"),
    (
        "wavelength = {400, 500, 600}\nwavelength = {400, 500, 601}",
        "is given twice with different values, first on line 10",
    ),
    ("fwhm = {10, ten, 10}", "entry 2 is not a finite number ('ten')"),
    ("fwhm = {10, -1, 10}", "-1 is not plausible"),
    ("fwhm = {10 nm, 10 nm, 10 nm}", "its entries are in nm, but 'wavelength units' says nothing"),
    ("bbl = {1, yes, 1}", "entry 2 is not a finite number ('yes')"),
    ("bbl = {1, 0}", "has 2 values for 3 bands"),
    ("bbl = {1, 0, -1}", "-1 is not plausible"),
    ("bbl = {1 m, 0 m, 1 m}", "its entries have a unit: m"),
    ("bbl = {1, 0, 1}\nBBL = {1, 1, 1}", "is given twice with different values, first on line 10"),
    ("band names = {a, b}", "has 2 values for 3 bands"),
    ("band names = {a, b, c", "its brackets do not match"),
    ("band names = {a, b, c}\nband names = {a, b, d}", "is given twice with different values"),
]


@pytest.mark.parametrize(("text", "why"), NOT_READ)
def test_a_list_that_cannot_be_read_is_left_out_with_a_word_and_the_image_is_read(
    tmp_path: Path, text: str, why: str
) -> None:
    cube = sample("u2")
    header = edited(write_pair(tmp_path, cube, 12), *text.split("\n"), "data ignore value = 7")
    read = read_cube(header)
    np.testing.assert_array_equal(read.cube, cube)
    assert read.ignore_value == 7, "what stands behind a list is read"
    key = text.partition(" ")[0].replace("band", "band names")
    line = 11 if "given twice" in why else 10
    assert len(read.doubts) == 1
    assert read.doubts[0].lower().startswith(f"line {line}, {key}: {why.lower()}"), read.doubts
    assert read.doubts[0].endswith("; it is left out")
    parsed = read_header(header)
    assert (parsed.wavelengths, parsed.fwhm, parsed.bbl) == (None, None, None)
    assert key not in parsed.fields, "what is left out is not carried along"


def test_units_that_contradict_the_numbers_leave_the_list_out(tmp_path: Path) -> None:
    header = edited(
        write_pair(tmp_path, sample("u1"), 1), "wavelength units = Micrometers", "wavelength = {400 nm, 500 nm, 600 nm}"
    )
    (doubt,) = read_cube(header).doubts
    assert (
        doubt == "line 11, wavelength: its entries are in nm, but 'wavelength units' says micrometers; it is left out"
    )


def test_a_unit_that_is_told_twice_is_no_unit(tmp_path: Path) -> None:
    header = edited(
        write_pair(tmp_path, sample("u1"), 1, wavelength="{4000, 5000, 6000}", fwhm="{1, 1, 1}"),
        "wavelength units = Nanometers",
        "wavelength units = Wavenumber",
    )
    read = read_header(header)
    assert (read.wavelengths, read.fwhm, read.wavelength_units) == (None, None, None)
    assert [doubt.partition(": ")[0] for doubt in read.doubts] == [
        "line 13, wavelength units",
        "line 10, wavelength",
        "line 11, fwhm",
    ]


def test_keys_of_nobodys_that_contradict_each_other_are_left_out(tmp_path: Path) -> None:
    header = edited(write_pair(tmp_path, sample("u1"), 1), "operator = A", "operator = B", "operator = A")
    read = read_cube(header)
    assert "operator" not in read.fields
    assert read.doubts == ("line 11, operator: is given twice with different values, first on line 10; it is left out",)


@pytest.mark.parametrize(
    "text", ["[red, green, blue]", "{red; green; blue}", "{\nred\ngreen\nblue\n}", "(red,\ngreen,\nblue)"]
)
def test_names_of_bands_are_carried_along_in_the_standards_way(tmp_path: Path, text: str) -> None:
    read = read_cube(edited(write_pair(tmp_path, sample("u1"), 1), *f"band names = {text}".split("\n")))
    assert not read.doubts
    write_cube(tmp_path / "out.hdr", read.cube, like=read)
    names = read_header(tmp_path / "out.hdr").fields["band names"]
    assert [name.strip() for name in names.strip("{}").split(",")] == ["red", "green", "blue"]


def test_names_of_bands_may_hold_equals_signs(tmp_path: Path) -> None:
    rows = ["band names = {", "red = 650 nm,", "green = 550 nm,", "blue = 450 nm}"]
    read = read_cube(edited(write_pair(tmp_path, sample("u1"), 1), *rows))
    assert not read.doubts and "red" not in read.fields
    assert read.fields["band names"].count("=") == 3


def test_words_of_the_file_are_no_orders_to_a_terminal(tmp_path: Path) -> None:
    header = edited(write_pair(tmp_path, sample("u1"), 1), "bbl = {1, \x1b[2J, 1}", "a\x1b[2J = 1", "a\x1b[2J = 2")
    doubts = read_cube(header).doubts
    assert len(doubts) == 2 and all(doubt.isprintable() for doubt in doubts)


marks = st.sampled_from([", ", ",", "; ", ";", " ", "\t", "\n", ",\n", " ,\n  ", "  "])
brackets = st.sampled_from(["{}", "[]", "()"])
numbers = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(values=numbers, mark=marks, around=brackets, inside=st.sampled_from(["", " ", "\n"]))
def test_any_style_reads_the_numbers_that_were_written(
    values: list[float], mark: str, around: str, inside: str
) -> None:
    text = around[0] + inside + mark.join(map(repr, values)) + inside + around[1]
    header = parsed(len(values), f"wavelength = {text}\nfwhm = {text}\ndata offset values = {text}")
    assert header.wavelengths == header.fwhm == header.offsets == tuple(values)
    assert not header.doubts and header.data_ignore_value == 5


@settings(max_examples=500, deadline=None)
@given(st.text(st.sampled_from("0123456789.,;-+eE{}[]() \tnmu'\""), min_size=1, max_size=30))
def test_any_list_is_read_as_its_digits_say_or_left_out_with_a_word(text: str) -> None:
    header = parsed(2, f"wavelength = {text}")
    assert header.data_ignore_value == 5
    if header.wavelengths is None:
        assert header.doubts or not text.strip("{}[]() \t")
    else:
        assert header.wavelengths == tuple(map(float, re.findall(r"[\d.+-]+(?:[eE][+-]?\d+)?", text)))


def parsed(bands: int, more: str) -> EnviHeader:
    """The header of a small image with more rows before the last one, `data ignore value = 5`."""
    layout = f"samples = 5\nlines = 4\nbands = {bands}\ndata type = 4\ninterleave = bil\n"
    return parse_header(f"ENVI\n{layout}{more}\ndata ignore value = 5\n", path=Path("x.hdr"), data_path=Path("x.img"))


GAINS = {
    "data gain values": "gains",
    "data offset values": "offsets",
    "data reflectance gain values": "reflectance_gains",
    "data reflectance offset values": "reflectance_offsets",
}


@pytest.mark.parametrize(("key", "name"), GAINS.items())
@pytest.mark.parametrize(
    "text", ["{0.5, 0.25, 0.125}", "[0.5 0.25\n0.125]", "0.5, 0.25, 0.125", "{5d-1; 2.5e-1; .125}"]
)
def test_gains_and_offsets_are_read(key: str, name: str, text: str) -> None:
    header = parsed(3, f"{key} = {text}")
    assert {field: getattr(header, field) for field in GAINS.values()} == {
        field: (0.5, 0.25, 0.125) if field == name else None for field in GAINS.values()
    }
    assert not header.doubts


@pytest.mark.parametrize("text", ["{0.5}", "0.5", "[0.5]", "{0.5,}"])
def test_one_gain_counts_for_all_bands(text: str) -> None:
    header = parsed(3, f"data gain values = {text}\ndata offset values = {{-1}}")
    assert (header.gains, header.offsets) == ((0.5,) * 3, (-1.0,) * 3)
    assert header.fields["data gain values"] == "{0.5, 0.5, 0.5}"


def test_one_gain_does_not_claim_the_memory_of_billions_of_bands() -> None:
    with pytest.raises(CubeFileError, match="has 1 values for 2147483647 bands"):
        parsed(2**31 - 1, "data gain values = {2}")


def test_offsets_may_be_zero_and_lists_empty() -> None:
    header = parsed(2, "data offset values = {0, 0}\ndata gain values = {}\ndata reflectance gain values =")
    assert (header.offsets, header.gains, header.reflectance_gains) == ((0, 0), None, None)


@pytest.mark.parametrize("key", GAINS)
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{1, 2}", "has 2 values for 3 bands"),
        ("{1, 2, 3, 4}", "has 4 values for 3 bands"),
        ("{1, two, 3}", "entry 2 is not a finite number"),
        ("{1, nan, 3}", "entry 2 is not a finite number"),
        ("{1, 2, inf}", "entry 3 is not a finite number"),
        ("none", "has|entry 1"),
        ("{0,5; 0,5; 0,5}", "entry 1 is not a finite number"),
        ("{1, 2, 3", "brackets do not match"),
        ("{1 m, 2 m, 3 m}", "its entries have a unit"),
        ("{1, 2, 3}\n{key} = {1, 2, 4}", "given twice with different values, first on line 7"),
    ],
)
def test_gains_that_cannot_be_read_are_refused(key: str, text: str, why: str) -> None:
    with pytest.raises(CubeFileError, match=why) as refused:
        parsed(3, f"{key} = {text}".replace("{key}", key))
    assert (refused.value.key, refused.value.line) == (key, 8 if "twice" in why else 7)
    assert "twice" in why or "gains applied, and say --scale" in refused.value.remedy


@pytest.mark.parametrize("key", [key for key in GAINS if "gain" in key])
@pytest.mark.parametrize("text", ["{1, 0, 1}", "{-0.0, 1, 1}"])
def test_a_gain_of_zero_is_refused(key: str, text: str) -> None:
    with pytest.raises(CubeFileError, match=rf"line 7, {key}: entry \d is 0 \(found .*delete the key if"):
        parsed(3, f"{key} = {text}")


def test_a_gain_without_its_equals_sign_is_refused() -> None:
    with pytest.raises(CubeFileError, match=r"line 7, data gain values: '=' is missing"):
        parsed(3, "data gain values {1, 2, 3}")


@pytest.mark.parametrize("text", ["0", "0.000000", "-0.0", "{0}", "0e5"])
def test_a_scale_factor_of_zero_says_nothing(text: str) -> None:
    header = parsed(1, f"reflectance scale factor = {text}")
    assert header.reflectance_scale_factor is None
    assert header.doubts == ("line 7, reflectance scale factor: 0 says nothing; it is left out",)
    assert "reflectance scale factor" not in header.fields


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "ten", "10,000", "1e999", "{1, 2}"])
def test_a_scale_factor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CubeFileError, match="line 7, reflectance scale factor: "):
        parsed(1, f"reflectance scale factor = {text}")
