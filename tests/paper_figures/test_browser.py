"""The report in headless Chromium, at the width of a desktop and of a phone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

from paper_figures.prose import MINUS, claim_words, figure_name, number, plus_minus, span
from paper_figures.records import load_folder
from paper_figures.report import pictures, write_report
from theory.predictions import load_verdicts

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
)  # fmt: skip
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """Debian's Chromium with a fresh profile; absent, the tests skip, but under CI they fail."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "chromium and chromedriver are not installed (Debian: chromium, chromium-driver)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    options = Options()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, shared_demo: Path) -> Path:
    """The report of the demo folder."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(shared_demo, out)
    return out


@pytest.fixture
def show(browser: WebDriver) -> Callable[[Path, str], WebDriver]:
    """Open a page at one of the widths, with an emptied log."""

    def opened(path: Path, width: str) -> WebDriver:
        size = {"width": WIDTHS[width], "height": 900, "deviceScaleFactor": 1}
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**size, "mobile": width == "phone"}
        )
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    return opened


Show = Callable[[Path, str], WebDriver]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_console_error_no_overflow_nothing_from_outside(
    show: Show, page: Path, width: str
) -> None:
    opened = show(page, width)
    opened.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    wide = opened.execute_script("return document.documentElement.scrollWidth")
    assert opened.execute_script("return window.innerWidth") == WIDTHS[width]
    assert wide <= WIDTHS[width]
    fetched = opened.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert fetched == []
    assert opened.get_log("browser") == []


def test_the_log_would_show_an_error_and_the_page_may_fetch_nothing(
    show: Show, page: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    injected = '<img src="missing.png"></main>'
    broken.write_text(
        page.read_text(encoding="utf-8").replace("</main>", injected), encoding="utf-8"
    )
    opened = show(broken, "desktop")
    assert "Content Security Policy" in json.dumps(opened.get_log("browser"))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_verdict_table_reads_back_as_verdicts_json(
    show: Show, page: Path, shared_demo: Path, width: str
) -> None:
    opened = show(page, width)
    rows = opened.find_elements(By.CSS_SELECTOR, "#verdicts tbody tr")
    verdicts = load_verdicts(shared_demo / "study" / "verdicts.json")
    assert len(rows) == len(verdicts) == 7
    for row, verdict in zip(rows, verdicts, strict=True):
        prediction, measured = verdict.prediction, verdict.measurement
        cells = [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
        shown = row.find_element(By.CSS_SELECTOR, ".verdict")
        assert row.get_attribute("data-quantity") == prediction.quantity
        assert figure_name(prediction.figure) in cells[0]
        assert claim_words(prediction) in cells[1].replace("\n", " ")
        assert plus_minus(prediction.value, prediction.error) in cells[2]
        if measured is not None:
            assert number(measured.value, sign=True) in cells[3]
            assert span(measured.low, measured.high) in cells[3]
            assert f"{len(measured.seeds)} seeds" in cells[3]
        assert shown.text == verdict.outcome
        assert shown.is_displayed()
        assert (verdict.needs or "\N{EM DASH}") in cells[5]


def test_measured_values_parse_back_to_the_records(
    show: Show, page: Path, shared_demo: Path
) -> None:
    opened = show(page, "desktop")
    verdicts = load_verdicts(shared_demo / "study" / "verdicts.json")
    texts = [
        e.text for e in opened.find_elements(By.CSS_SELECTOR, "#verdicts td:nth-child(4) .value")
    ]
    for text, verdict in zip(texts, verdicts, strict=True):
        if verdict.measurement is not None:
            value = float(text.replace(MINUS, "-"))
            assert value == pytest.approx(verdict.measurement.value, abs=5e-4)


def test_hostile_text_is_shown_as_text(show: Show, page: Path) -> None:
    opened = show(page, "desktop")
    samples = opened.find_element(By.ID, "samples").text
    assert "<script>alert('x')</script>" in samples
    assert opened.find_elements(By.TAG_NAME, "script") == []
    assert opened.find_elements(By.TAG_NAME, "img") == []


def test_pictures_fill_their_panels(show: Show, page: Path, shared_demo: Path) -> None:
    opened = show(page, "phone")
    opened.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('.panel svg')]"
        ".map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
    )
    drawn = sum(len(picture.panels) for picture in pictures(load_folder(shared_demo)))
    assert len(sizes) == drawn
    assert all(width > 300 and height > 150 for width, height in sizes)


def test_a_real_study_says_where_its_verdicts_would_stand(
    show: Show, real_study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    write_report(real_study, out)
    opened = show(out, "phone")
    note = opened.find_element(By.ID, "scale-note").text
    assert "too small to judge" in note
    outcomes = [e.text for e in opened.find_elements(By.CSS_SELECTOR, "#verdicts .verdict")]
    assert outcomes == ["model too small to judge"] * 7
    absent = opened.find_element(By.ID, "absent").text
    assert "no sweep in this folder" in absent
    assert opened.get_log("browser") == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_study_of_every_figure_fits_a_phone(
    show: Show, browser: WebDriver, whole_page: Path, dark: bool
) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    opened = show(whole_page, "phone")
    assert not opened.find_element(By.ID, "verdicts").is_displayed()  # 36 rows: folded
    assert len(opened.find_elements(By.CSS_SELECTOR, "section[id^=fig]")) == 8
    opened.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= WIDTHS["phone"]
    ink, ground = (
        opened.execute_script(f"return getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    assert (brightness(ink) > brightness(ground)) == dark
    axis = opened.find_element(By.CSS_SELECTOR, "#picture-fig4 svg text")
    fill = opened.execute_script("return getComputedStyle(arguments[0]).fill", axis)
    assert (brightness(fill) > brightness(ground)) == dark
    assert opened.get_log("browser") == []


def brightness(colour: str) -> int:
    """The sum of red, green and blue of "rgb(1, 2, 3)"."""
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])
