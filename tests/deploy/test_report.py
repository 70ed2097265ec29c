"""Pictures that show what is there, and a page that nothing can escape from and that needs nothing from outside."""

from __future__ import annotations

import base64
import io
import re
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.figures import FIGURES
from deploy.checking.gates import GateResult
from deploy.reporting.page import (
    Case,
    ColourScale,
    Command,
    Fact,
    Picture,
    Plot,
    Report,
    Table,
    Verdict,
    figure_text,
    render_report,
    write_report,
)
from deploy.reporting.plots import band_psnr_plot, experts_plot, spectra_plot
from deploy.reporting.quicklooks import (
    NOT_A_NUMBER,
    bands_shown,
    error_map,
    fitted,
    marked,
    png_bytes,
    rgb,
    save_bytes,
    stretch_limits,
)
from runtime.errors import CubeError, InputError, MachineError

WAVELENGTHS = [400.0 + 10.0 * band for band in range(31)]
HOSTILE = "<script>alert(1)</script>\"'><img src=http://example.org/x onerror=alert(1)>&amp;\x1b[31m\u202e\x00"


def scene(bands: int = 31, lines: int = 40, samples: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((bands, lines, samples)).astype(np.float32)


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def gate(text: str, measured: float, limit: float | None) -> GateResult:
    return GateResult(replace(FIGURES[0], title=text, meaning=text), measured, limit)


def full_report(text: str = "text") -> Report:
    png = png_bytes(rgb(scene(), WAVELENGTHS))
    return Report(
        title=text,
        subtitle=text,
        verdict=Verdict("passed", text, text),
        summary=(Fact(text, text, text),),
        gates=(
            gate("difference", 0.0003, 0.001),
            gate(text, 0.002, 0.001),
            gate("off", float("nan"), None),
        ),
        cases=(Case(text, (Picture(text, png, text), Picture("error", png, "e", ColourScale(text, text))), text),),
        plots=(Plot(text, png, text, text),),
        tables=(Table(text, ("case", "PSNR", text), (("noise", "30.1", text), ("blur", "–", text)), text),),
        built=(Fact(text, text, text),),
        commands=(Command(text, text),),
        routing=True,
        footnotes=(text,),
    )


def test_quicklook_shows_the_bands_nearest_to_red_green_blue() -> None:
    assert bands_shown(31, WAVELENGTHS) == (24, 15, 6)
    assert bands_shown(31) == (24, 15, 6)
    assert bands_shown(31, WAVELENGTHS[::-1]) == (6, 15, 24)
    assert bands_shown(1, [650.0]) == (0, 0, 0)
    assert bands_shown(2, [500.0, 600.0]) == (1, 0, 0)
    infrared = bands_shown(11, [900.0 + 50.0 * band for band in range(11)])
    assert infrared == (8, 5, 2)
    cube = np.zeros((31, 4, 4), np.float32)
    cube[24, 0, 0] = 1.0
    red = rgb(cube, WAVELENGTHS, ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)))
    assert red.dtype == np.uint8 and red.shape == (4, 4, 3)
    assert red[0, 0].tolist() == [255, 0, 0]


def test_shared_stretch_makes_pictures_comparable() -> None:
    truth = scene()
    limits = stretch_limits(truth, WAVELENGTHS)
    assert np.array_equal(rgb(truth, WAVELENGTHS), rgb(truth, WAVELENGTHS, limits))
    assert rgb(truth * 0.5, WAVELENGTHS, limits).mean() < rgb(truth, WAVELENGTHS, limits).mean() * 0.6
    assert abs(float(rgb(truth * 0.5, WAVELENGTHS).mean()) - float(rgb(truth, WAVELENGTHS).mean())) < 1.0


@pytest.mark.parametrize("bands", [1, 2, 3])
def test_quicklook_of_few_bands(bands: int) -> None:
    assert rgb(scene(bands)).shape == (40, 56, 3)


def test_quicklook_survives_what_sensors_deliver() -> None:
    cube = scene()
    cube[:, 0, 0] = np.nan
    cube[:, 0, 1] = np.inf
    cube[:, 0, 2] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = rgb(cube, WAVELENGTHS)
        assert shown[0, 0].tolist() == [0, 0, 0]
        assert shown[0, 1].tolist() == [255, 255, 255]
        assert shown[0, 2].tolist() == [0, 0, 0]
        assert rgb(np.full((3, 4, 4), np.nan)).max() == 0
        assert np.unique(rgb(np.full((3, 4, 4), 7, np.uint16))).tolist() == [128]
        assert rgb(np.array([[[-1e308, 1e308]]] * 3)).shape == (1, 2, 3)


@pytest.mark.parametrize(
    "cube", [np.zeros((4, 4)), np.zeros((0, 4, 4)), np.zeros((3, 4, 4), complex), np.array([[["a"]]])]
)
def test_what_is_no_cube_is_refused(cube: np.ndarray) -> None:
    with pytest.raises(CubeError, match="where a cube should be"):
        rgb(cube)


def test_wavelengths_must_match() -> None:
    with pytest.raises(CubeError, match="2 wavelengths for 31 bands"):
        rgb(scene(), [400.0, 500.0])


def test_error_map_gets_brighter_with_the_error() -> None:
    truth = np.zeros((4, 1, 1001), np.float32)
    restored = truth + np.linspace(0.0, 0.1, 1001, dtype=np.float32)
    picture, limit = error_map(restored, truth)
    assert limit == pytest.approx(0.0995, rel=1e-3)
    brightness = picture[0].astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) >= -1.0).all() and brightness[0] < 3 and brightness[-1] > 230


def test_error_map_at_the_edges() -> None:
    truth = scene()
    same, limit = error_map(truth, truth)
    assert limit == 0.0 and len(np.unique(same.reshape(-1, 3), axis=0)) == 1
    one = truth.copy()
    one[:, 0, 0] += 0.5
    assert error_map(one, truth)[1] == pytest.approx(0.5)
    broken = truth.copy()
    broken[3, 5, 6] = np.nan
    picture, limit = error_map(broken, truth)
    assert tuple(picture[5, 6]) == NOT_A_NUMBER and np.isfinite(limit)
    assert error_map(np.full_like(truth, np.nan), truth)[1] == 0.0
    high, low = np.full((1, 2, 2), 200, np.uint8), np.full((1, 2, 2), 250, np.uint8)
    assert error_map(high, low)[1] == 50.0
    with pytest.raises(CubeError, match="against one of"):
        error_map(truth, truth[:, 1:])


def test_pictures_are_fitted_to_the_page() -> None:
    small = rgb(scene(lines=40, samples=56))
    grown = fitted(small)
    assert grown.shape == (400, 560, 3)
    assert np.array_equal(grown[::10, ::10], small)
    assert fitted(np.zeros((2048, 512, 3), np.uint8)).shape == (1024, 256, 3)
    assert fitted(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 1024, 3)


def test_marks_are_where_the_pixels_are() -> None:
    plain = np.zeros((400, 560, 3), np.uint8)
    one = marked(plain, [(20, 28)], (40, 56))
    touched = np.argwhere(one.any(axis=-1))
    assert abs(touched[:, 0].mean() - 205) < 15 and touched[:, 1].min() < 285 < touched[:, 1].max()
    corners = marked(plain, [(0, 0), (0, 55), (39, 0), (39, 55)], (40, 56))
    assert corners.shape == plain.shape and corners.any()


def test_png_is_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    picture = rgb(scene())
    save_bytes(tmp_path / "a.png", png_bytes(picture))
    assert np.array_equal(pixels_of((tmp_path / "a.png").read_bytes()), picture)
    assert png_bytes(picture) == png_bytes(picture.copy())
    save_bytes(tmp_path / "a.png", png_bytes(picture))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(InputError):
        save_bytes(tmp_path / "none" / "a.png", b"")


def test_plots_decode_and_are_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    truth, restored = scene(seed=0), scene(seed=1)
    restored[2, 0, 0] = np.inf

    def drawn() -> list[bytes]:
        return [
            spectra_plot({"restored": restored, "truth": truth}, [(0, 0), (39, 55)], WAVELENGTHS, scale="reflectance"),
            spectra_plot({"one": truth[:1]}, [(0, 0)] * 7),
            band_psnr_plot({"degraded": truth[:, 0, 0], "restored": restored[:, 0, 0]}, WAVELENGTHS),
            experts_plot({case: np.eye(5, 4) for case in "abcdef"} | {"nan": np.full((2, 3), np.nan)}),
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = drawn()
    assert first == drawn()
    for png in first:
        shown = pixels_of(png)
        assert shown.std() > 1 and shown.shape[1] > 200


@pytest.mark.parametrize("label", ["$\\frac{", "_hidden", "", "a\nb\x00", "警告", "x" * 500, "<b>"])
def test_plots_take_any_label(label: str) -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels_of(spectra_plot({label: scene()}, [(0, 0)], WAVELENGTHS, scale=label))
        pixels_of(band_psnr_plot({label: [30.0, 31.0]}))
        pixels_of(experts_plot({label: np.eye(5, 4)}))


def test_plots_leave_the_callers_matplotlib_alone() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    spectra_plot({"a": scene()}, [(0, 0)])
    assert dict(matplotlib.rcParams) == before


def test_plots_refuse_what_does_not_fit() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(CubeError, match="wavelengths"):
        spectra_plot({"a": scene()}, [(0, 0)], [1.0])


def test_missing_matplotlib_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MachineError) as caught:
        band_psnr_plot({"a": [30.0]})
    assert str(caught.value) == (
        'matplotlib: matplotlib is not installed, so no plots can be drawn; pip install "damp-deploy[report]"'
    )
    assert caught.value.exit_code == 3


def test_page_escapes_hostile_text() -> None:
    html = render_report(full_report(HOSTILE))
    page = Page(html)
    assert not page.open
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") >= 15
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", html)
    shape = [(tag, sorted(attributes)) for tag, attributes in Page(render_report(full_report())).tags]
    assert [(tag, sorted(attributes)) for tag, attributes in page.tags] == shape


def test_page_needs_nothing_from_outside() -> None:
    html = render_report(full_report())
    assert not re.search(r"https?:|//|@import|url\(|<script|<link|<iframe", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    for tag, attributes in Page(html).tags:
        assert "href" not in attributes
        if tag == "img":
            source = attributes["src"]
            assert source is not None and source.startswith("data:image/png;base64,")
            shown = pixels_of(base64.b64decode(source.partition(",")[2], validate=True))
            assert attributes["alt"]
            assert (attributes["height"], attributes["width"]) == (str(shown.shape[0]), str(shown.shape[1]))


def test_page_forbids_loading_and_running() -> None:
    policies = [a["content"] for tag, a in Page(render_report(full_report())).tags if "http-equiv" in a]
    assert len(policies) == 1 and policies[0] is not None
    assert policies[0].startswith("default-src 'none'") and "script" not in policies[0]


def test_page_is_the_same_each_time() -> None:
    assert render_report(full_report()) == render_report(full_report())


def test_page_says_what_came_of_it() -> None:
    report = full_report()
    for outcome, words in (("passed", "Passed: text"), ("failed", "Failed: text"), ("unjudged", "Not judged: text")):
        html = render_report(replace(report, verdict=Verdict(outcome, "text")))  # type: ignore[arg-type]
        assert words in Page(html).text and f'class="verdict {outcome}"' in html
    text = Page(render_report(report)).text
    for words in (
        "✓ passed",
        "✗ failed",
        "at most 0.001",
        "What was built",
        "To do it again",
        "peak signal-to-noise",
        "experts",
    ):
        assert words in text


def test_empty_parts_leave_nothing_behind() -> None:
    html = render_report(Report(title="t", verdict=Verdict("passed", "fine")))
    assert html.count("<h2>") == 1 and "<dt>SAM</dt>" in html and "routing" not in html
    assert "<table" not in html and "<footer" not in html


def test_columns_of_numbers_are_flush_right() -> None:
    table = Table("c", ("name", "n"), (("a", "-1.5e-3"), ("b", "12 dB"), ("c", "–")))
    html = render_report(Report(title="t", verdict=Verdict("passed", "fine"), tables=(table,)))
    assert html.count('<td class="number">') == 3 and '<th scope="col" class="number">n</th>' in html


def test_only_png_is_inlined() -> None:
    with pytest.raises(ValueError, match="PNG"):
        render_report(Report(title="t", verdict=Verdict("passed", ""), plots=(Plot("p", b"<svg onload=x>", "a"),)))


def test_report_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, full_report())
    assert path.read_text(encoding="utf-8") == render_report(full_report())
    with pytest.raises(InputError):
        write_report(tmp_path, full_report())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000312345, "0.0003123"),
        (1e-5, "1e-5"),
        (33.123456, "33.12"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0, "0"),
    ],
)
def test_figures_are_short_and_finite(value: float, text: str) -> None:
    assert figure_text(value) == text
    assert figure_text(2.5, unit="dB") == "2.5 dB"
