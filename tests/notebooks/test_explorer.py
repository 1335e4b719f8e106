"""The explorer: every setting that its sliders can reach, and the page itself in Chromium."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from theory.errors import InputError
from theory.explore import (
    Question,
    explore,
    node_probabilities,
)
from theory.explore.choices import CHOICES, spec_for
from theory.explore.pictures import NAMES, bars_svg, ranks_svg, tree_svg
from theory.families import Family

ROOT = Path(__file__).parents[2]
WAIT = 30  # seconds for anything that a page shows
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
    "--window-size=1200,1600",
)  # fmt: skip


# --- without a browser ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", CHOICES)
def test_every_combination_of_sliders_is_a_family_or_a_sentence(family: str) -> None:
    choice = CHOICES[family]
    made, refused, sentences = 0, 0, []
    for bits in choice.bits or (None,):
        low, start, high = choice.complexity or (0, 0, 0)
        for horizon, level in product(choice.horizons_of(bits), range(low, high + 1)):
            sliders = {"bits": bits, "horizon": horizon, "sharpness": 2.0, "seed": 1}
            complexity = level if choice.complexity is not None else None
            try:
                spec = spec_for(family, complexity=complexity, **sliders)
            except InputError as error:
                sentences.append(str(error))
                at_default = level == start and horizon == choice.horizons_of(bits)[-1]
                refused += 1 + 1000 * at_default  # what the page starts with must be possible
                continue
            assert spec.draw().tree.n_leaves <= 256
            made += 1
    assert made > refused
    assert all("\n" not in sentence and len(sentence) < 200 for sentence in sentences)


def default_of(family: str) -> Family:
    """The settings that the page starts a family with."""
    choice = CHOICES[family]
    bits = 6 if choice.bits else None
    level = None if choice.complexity is None else choice.complexity[1]
    horizon = choice.horizons_of(bits)[-1]
    sliders = {"bits": bits, "horizon": horizon, "complexity": level, "sharpness": 2.0}
    return spec_for(family, seed=0, **sliders)


def test_pictures_are_well_formed_and_say_what_the_policies_do() -> None:
    for family in CHOICES:
        found = explore(default_of(family).draw(), Question(n_pairs=64, polish=False))
        tree = found.truth.tree
        log_p = {"optimum": found.log_optimum} | {k: v.log_p for k, v in found.roads.items()}
        for road, value in log_p.items():
            passing = node_probabilities(tree, value)
            text = tree_svg(tree, passing, road)
            lines = ElementTree.fromstring(text).findall(".//{*}line")
            first = int(tree.allowed(0).sum())
            widths = [float(line.attrib["stroke-width"]) - 0.3 for line in lines[:first]]
            expected = 11.0 * passing[0][0, 0][tree.allowed(0)[0]]
            assert widths == pytest.approx(expected.tolist(), abs=0.006)
            assert NAMES[road] in text
        text = ranks_svg(tree, log_p)
        drawn = ElementTree.fromstring(text)
        assert len(drawn.findall(".//{*}circle")) == 2 * len(drawn.findall(".//{*}rect"))
        bars = ElementTree.fromstring(bars_svg({k: v.kl for k, v in found.roads.items()}))
        for road in found.roads.values():
            assert f"{road.kl:.3f} nats" in "".join(bars.itertext())


# --- in a browser ---------------------------------------------------------------------------------


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
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The explorer's own server on a free port; ended with its children whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path_factory.mktemp("home")
    log = (home / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "marimo", "-q", "run", str(ROOT / "notebooks" / "explorer.py"),
         "--headless", "--no-token", "--host", "127.0.0.1", "--port", str(port)],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(10 * WAIT):
            assert server.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def page(browser: WebDriver, address: str) -> WebDriver:
    browser.get(address)
    wait_for(browser, lambda: text_of(browser, "#gap"))
    return browser


def wait_for(page: WebDriver, found: Callable[[], object]) -> None:
    """Until `found` gives something true."""
    ignored = (StaleElementReferenceException,)
    WebDriverWait(page, WAIT, 0.1, ignored_exceptions=ignored).until(lambda _: found())


def text_of(page: WebDriver, selector: str) -> str:
    return page.execute_script(
        "const e = document.querySelector(arguments[0]); return e ? e.textContent : ''", selector
    )


FIND = """
function all(root, selector) {
  let found = [...root.querySelectorAll(selector)];
  for (const e of root.querySelectorAll('*'))
    if (e.shadowRoot) found = found.concat(all(e.shadowRoot, selector));
  return found;
}
const [tag, label, inside] = arguments;
for (const host of all(document, tag)) {
  const root = host.shadowRoot || host;
  if (root.textContent.includes(label)) return all(root, inside)[0] || null;
}
return null;
"""


def move(page: WebDriver, label: str, key: str) -> None:
    """Press a key on the slider with this label."""
    wait_for(page, lambda: page.execute_script(FIND, "marimo-slider", label, "[role=slider]"))
    page.execute_script(FIND, "marimo-slider", label, "[role=slider]").send_keys(key)


def choose(page: WebDriver, label: str, option: str) -> None:
    """Pick an option of the dropdown with this label, as soon as it is there."""

    def picked() -> bool:
        select = page.execute_script(FIND, "marimo-dropdown", label, "select")
        for entry in select.find_elements("tag name", "option") if select is not None else ():
            if entry.text == option:
                entry.click()
                return True
        return False

    wait_for(page, picked)


DEEP = """
function text(root) {
  let found = root === document.body ? root.innerText : root.textContent;
  for (const e of root.querySelectorAll('*')) if (e.shadowRoot) found += '\\n' + text(e.shadowRoot);
  return found;
}
return text(document.body);
"""


def no_error(page: WebDriver) -> None:
    """No sign of one in the page, shadow roots included (but for styles), nor in the console."""
    body = page.execute_script(DEEP)
    for sign in ("Traceback", "Exception", "ancestor", "error occurred", "Error:"):
        assert sign not in body, body[max(0, body.index(sign) - 300) : body.index(sign) + 300]
    severe = [line for line in page.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == [], json.dumps(severe)


def test_the_page_shows_the_gap_of_its_numbers_and_three_trees(page: WebDriver) -> None:
    gap, offline, online = (float(text_of(page, f"#{i}")) for i in ("gap", "offline", "online"))
    assert gap == pytest.approx(offline - online, abs=2e-3)
    titles = page.execute_script(
        "return [...document.querySelectorAll('#explorer svg')].map(e => e.textContent)"
    )
    assert len(titles) == 5
    for name, text in zip(NAMES.values(), titles, strict=False):
        assert name in text
    no_error(page)


def test_a_slider_changes_the_gap_and_changes_it_back(page: WebDriver) -> None:
    before = text_of(page, "#gap")
    move(page, "pairs N", Keys.ARROW_RIGHT)
    wait_for(page, lambda: text_of(page, "#gap") not in ("", before))
    after = text_of(page, "#gap")
    move(page, "pairs N", Keys.ARROW_LEFT)
    wait_for(page, lambda: text_of(page, "#gap") not in ("", after))
    assert text_of(page, "#gap") == before  # the same data again
    assert float(text_of(page, "#milliseconds")) > 0
    no_error(page)


def test_every_family_can_be_chosen(page: WebDriver) -> None:
    seen = text_of(page, "#explorer")
    for choice in [*list(CHOICES.values())[1:], CHOICES["walsh"]]:
        choose(page, "family", choice.title)
        wait_for(page, lambda: text_of(page, "#explorer") not in ("", seen))  # noqa: B023
        seen = text_of(page, "#explorer")
        no_error(page)


def test_settings_that_do_not_go_together_give_a_sentence(page: WebDriver) -> None:
    choose(page, "family", CHOICES["rouge"].title)
    wait_for(page, lambda: page.execute_script(FIND, "marimo-slider", "reference", "[role=slider]"))
    move(page, "horizon", Keys.HOME)
    wait_for(page, lambda: text_of(page, "#sentence"))
    words = "These settings do not go together: reference must lie in 1..1, got 2."
    assert text_of(page, "#sentence") == words
    assert text_of(page, "#gap") == ""
    no_error(page)
    move(page, "horizon", Keys.END)
    wait_for(page, lambda: text_of(page, "#gap"))
    choose(page, "family", CHOICES["walsh"].title)


def test_the_curve_waits_for_its_button(page: WebDriver) -> None:
    wait_for(page, lambda: text_of(page, "#gap"))
    assert not page.find_elements("css selector", "#curve-drawn")
    choose(page, "completion", "4 bits")
    wait_for(page, lambda: text_of(page, "#explorer").count("16 completions a prompt"))
    button = page.execute_script(FIND, "marimo-button", "Draw KL", "button")
    button.click()
    wait_for(page, lambda: page.find_elements("css selector", "#curve-drawn"))
    no_error(page)
