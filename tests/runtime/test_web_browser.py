"""The live view as a real browser shows it."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime.stream.web import Server, serve
from tests.contracts.snapshots import Told

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
EVIL = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>\x1b[2J\u202eevil"
SHOWN_EVIL = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>\\u{1b}[2J\\u{202e}evil"
WAVELENGTHS = np.linspace(400, 1000, 50)


class Stream:
    """Figures that a test changes while the page looks at them."""

    def __init__(self) -> None:
        self.total = 3300
        self.lost = 0
        self.pending = 71
        self.shade = 40
        self.wavelengths: Any = WAVELENGTHS
        self.more: dict[str, Any] = {}

    def snapshot(self) -> dict[str, Any]:
        self.total += 10
        lines = {"in": self.total, "recorded": self.total - 1, "restored": 512, "passed": 32, "incomplete": 17}
        lines |= {"dropped": self.total - 512 - 17 - self.pending - self.lost, "pending": self.pending}
        return {
            "lines": lines,
            "frames": {"restored": 8, "passed": 1, "dropped": 40, "failed": 0, "unfit": 0, "cut_off": 0},
            "rates": {"in": 330.4, "recorded": 330.4, "restored": 51.24},
            "latency_s": {"p50": 0.61, "p95": 0.82, "p99": 1.24},
            "queues": {
                "record": {"level": 3, "capacity": 64, "policy": "block", "dropped": 0},
                "restore": {"level": 2, "capacity": 2, "policy": "drop-oldest", "dropped": 40},
            },
            "prompt": {"spectral_flatness": 0.0412},
            "experts": (0.42, 0.58),
            "source": {"temperature_c": 41.52, "reconnects": 1},
            "stages": {"source": {"age_s": 0.05, "ok": True}, "engine": {"age_s": 0.4, "ok": True}},
            "seconds": 3725.0,
            "state": "running",
            "problems": [],
            "spool": {"bytes": 3.2e9, "limit": 2e10, "deleted_segments": 0},
            "describe": {"source": "envi:line_0007.hdr", "bundle": "small", "engine": "CPU", "precision": "fp16"},
        } | self.more

    def quicklook(self) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (64, 20), (self.shade, 120, 60)).save(stream, "PNG")
        return stream.getvalue()

    def spectra(self) -> dict[str, Any]:
        values = 0.2 + 0.1 * np.sin(WAVELENGTHS / 60)
        values[20:22] = np.nan
        curves = [{"sample": sample, "line": 3300, "values": values + sample / 1000} for sample in (5, 40)]
        return {"wavelengths": self.wavelengths, "spectra": curves}

    def serve(self, port: int = 0) -> Server:
        return serve(lambda: Told(self.snapshot()), self.quicklook, self.spectra, port)


class Browser:
    """A window on the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({selector!r}).textContent"))

    def texts(self, selector: str) -> list[str]:
        return list(self.run(f"Array.from(document.querySelectorAll({selector!r}), (node) => node.textContent)"))

    def count(self, name: str) -> int:
        return int(re.sub(r"\D", "", self.text(f"#lines-{name}")) or -1)

    def until(self, true: Callable[[], Any]) -> None:
        """Wait for it; the time only stops a hang."""
        WebDriverWait(self.driver, 30, 0.05).until(lambda _: true())

    def next(self) -> None:
        """Wait for newer figures."""
        seen = self.count("in")
        self.until(lambda: self.count("in") > seen)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def colour(self, selector: str) -> tuple[int, int, int]:
        style = self.run(f"getComputedStyle(document.querySelector({selector!r})).color")
        red, green, blue = (int(part) for part in re.findall(r"\d+", style)[:3])
        return red, green, blue

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, Service(DRIVER))
    yield window
    window.quit()


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def server(stream: Stream) -> Iterator[Server]:
    with stream.serve() as running:
        yield running


@pytest.fixture
def browser(driver: Any, server: Server) -> Browser:
    window = Browser(driver)
    window.size(1280, 800)
    driver.get("about:blank")
    window.complaints()
    driver.get(f"{server.url}?every=0.1")
    window.until(lambda: window.count("in") > 0)
    return window


def test_page_lives(browser: Browser, stream: Stream, tmp_path: Path) -> None:
    browser.next()
    assert browser.count("restored") == 512
    assert browser.text("#balance") == "✓ balanced"
    assert browser.text("#state") == "running"
    assert browser.text("#time") == "01:02:05"
    assert "330 lines/s" in browser.texts("#rates b")[0].replace("\xa0", " ")
    assert "820 ms" in browser.texts("#rates b")[4].replace("\xa0", " ")
    assert browser.texts("#queues b") == ["3/64 block", "2/2 drop-oldest, 40 dropped"]
    assert browser.texts("#experts li")[1].replace("\xa0", " ") == "expert 258.0 %"
    assert browser.run("document.querySelector('#experts .meter div').style.width") == "42%"
    assert browser.texts("#stages li") == ["✓ source50\xa0ms", "✓ engine400\xa0ms"]
    assert browser.texts("#source dd")[0] == "41.5\xa0°C"
    assert not browser.run("document.getElementById('problems').checkVisibility()")
    browser.until(lambda: browser.run("document.querySelector('.spark path').getAttribute('d').includes('L')"))

    browser.until(lambda: browser.run("document.getElementById('quicklook')?.naturalWidth") == 64)
    assert browser.run("document.getElementById('quicklook').naturalHeight") == 20
    assert "Quicklook" in browser.run("document.getElementById('quicklook').alt")
    place = browser.run("document.getElementById('quicklook').src")
    for _ in range(3):
        browser.next()
    assert browser.run("document.getElementById('quicklook').src") == place, "the same picture stays"
    stream.shade = 200
    browser.until(lambda: browser.run("document.getElementById('quicklook').src") != place)

    browser.until(lambda: browser.run("document.querySelectorAll('#plot path').length") == 2)
    first = browser.run("document.querySelector('#plot path').getBoundingClientRect().toJSON()")
    assert first["width"] > 200
    assert first["height"] > 10
    # Two bands without a number leave a hole.
    assert browser.run("document.querySelector('#plot path').getAttribute('d').match(/M/g).length") == 2
    assert browser.texts("#legend li") == ["sample 5", "sample 40"]
    assert {"400", "1000", "wavelength, nm"} <= set(browser.texts("#plot text"))
    stream.wavelengths = None
    browser.until(lambda: "band" in browser.texts("#plot text"))
    assert browser.complaints() == []
    for width, height in ((1280, 800), (390, 844)):
        browser.size(width, height)
        assert browser.driver.save_screenshot(str(tmp_path / f"page-{width}.png"))
        assert Image.open(tmp_path / f"page-{width}.png").size == (width, height)


def test_imbalance_is_red(browser: Browser, stream: Stream) -> None:
    red, green, blue = browser.colour("#balance")
    assert green > red
    stream.lost = 17
    browser.until(lambda: browser.text("#balance") == "✗ 17 lines unaccounted for")
    for dark in (False, True):
        browser.size(1280, 800, dark)
        red, green, blue = browser.colour("#balance")
        assert red > 1.5 * max(green, blue)
    assert browser.run("document.querySelector('#stack .lost').getBoundingClientRect().width") >= 10
    stream.lost = -1 - stream.pending
    browser.until(lambda: browser.text("#balance") == "✗ 1 line more than came in")
    stream.lost = 0
    browser.until(lambda: browser.text("#balance") == "✓ balanced")
    assert browser.run("document.querySelector('#stack .lost')") is None
    # At the end, what is still on its way is lost.
    stream.more = {"state": "stopped"}
    browser.until(lambda: browser.text("#balance") == "✗ 71 lines unaccounted for")


class Unspeakable:
    """Figures that have no text."""

    def __str__(self) -> str:
        raise TypeError("no words")


def test_contact_is_lost_and_found(browser: Browser, stream: Stream, server: Server) -> None:
    assert not browser.run("document.getElementById('contact').checkVisibility()")
    server.close()
    browser.until(lambda: browser.run("document.getElementById('contact').checkVisibility()"))
    assert re.fullmatch(r"no contact since \d\d:\d\d:\d\d", browser.text("#contact"))
    before = browser.count("in")
    stream.total += 1000
    with stream.serve(server.port):
        browser.until(lambda: not browser.run("document.getElementById('contact').checkVisibility()"))
        browser.until(lambda: browser.count("in") > before)
        stream.more = {"stages": Unspeakable()}
        browser.until(lambda: browser.text("#contact").startswith("no figures from the stream since "))


def test_strangers_text_is_text(browser: Browser, stream: Stream) -> None:
    stream.more = {
        "problems": [EVIL, {"a": 1}, *(["again"] * 30)],
        "queues": {EVIL: {"level": 1, "capacity": 2, "policy": EVIL}},
        "stages": {EVIL: {"ok": False, "age_s": 12}},
        "prompt": {EVIL: 1.0},
        "describe": {"source": EVIL, "bundle": "b" * 3000},
        "source": {EVIL: EVIL},
        "state": EVIL,
    }
    browser.until(lambda: browser.run("document.getElementById('problems').checkVisibility()"))
    problems = browser.texts("#problems li")
    assert problems[:2] == [f"stage {SHOWN_EVIL} is silent", SHOWN_EVIL]
    assert (len(problems), problems[-1]) == (13, "and 21 more")
    assert browser.run("document.querySelector('#problems').closest('[role=alert]') !== null")
    for place in ("#queues span", "#prompt span", "#describe dd", "#state"):
        assert browser.text(place) == SHOWN_EVIL, place
    intruders = "main script, main img:not(#quicklook), #problems *:not(li)"
    assert browser.run(f"document.querySelectorAll('{intruders}').length") == 0
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.complaints() == []
    # Even if it had got in, it would not run.
    browser.driver.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s);"
        "const d = document.createElement('div'); d.innerHTML = arguments[0]; document.body.append(d);",
        EVIL,
    )
    browser.until(lambda: any("Content Security Policy" in text for text in browser.complaints()))
    assert browser.run("typeof window.pwned") == "undefined"


@pytest.mark.parametrize("junk", [None, "text", [1, None], {"in": "x", "a": None, "p50": [], "bytes": {}}])
def test_what_is_missing_is_a_dash(browser: Browser, stream: Stream, junk: object) -> None:
    stream.more = dict.fromkeys(stream.snapshot(), junk)
    browser.until(lambda: browser.text("#lines-in") == "–")
    browser.until(lambda: browser.text("#balance") == "balance not known")
    assert browser.texts("#counts dd") == ["–"] * 7
    assert set(browser.texts("#rates b")) == {"–"}
    assert browser.texts("#spool dd") == ["–"] * 3
    browser.until(lambda: browser.run("past.length") >= 2)
    assert browser.complaints() == []
    assert not browser.run("document.getElementById('contact').checkVisibility()")


def test_nothing_sticks_out_of_a_small_screen(browser: Browser, stream: Stream) -> None:
    stream.total += 123_456_789
    stream.more = {"describe": {"source": "a/" + 200 * "b"}, "problems": ["c" * 300]}
    browser.until(lambda: browser.count("in") > 100_000_000)
    browser.until(lambda: browser.run("document.querySelectorAll('#plot path').length") == 2)
    cells = "Array.from(document.querySelectorAll('#counts dd, #rates b, #queues b'))"
    cut = "(node) => node.getBoundingClientRect().right > innerWidth || node.scrollWidth > node.clientWidth + 1"
    for width in (320, 390, 768, 1280):
        browser.size(width, 844)
        # The plot is drawn anew for its width.
        browser.until(lambda: browser.run("document.getElementById('plot').viewBox.baseVal.width <= innerWidth"))
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(f"{cells}.filter({cut}).map((node) => node.textContent)") == []
