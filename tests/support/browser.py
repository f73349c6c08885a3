"""A real browser for the HTML pages, where the machine has one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

HOSTILE = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
DRAWN = "body[data-drawn] .chart .plot-container"
WIDTHS = (420, 900, 1400)
SCHEMES = ("light", "dark")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    DRIVER is None, reason="no chromedriver: install Debian's chromium and chromium-driver to test the report page"
)
each_look = pytest.mark.parametrize(("width", "scheme"), [(width, scheme) for width in WIDTHS for scheme in SCHEMES])

# What is wrong with how a page lies in its window, a line each. A box that scrolls may hide what follows its first two numbers.
FIT = """
const width = innerWidth, found = [], say = (what, node) => found.push(`${what}: ${node.textContent.slice(0, 60)}`);
if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
const shown = (node) => node.checkVisibility() && node.getClientRects().length && node.textContent.trim();
document.querySelectorAll("body *").forEach((node) => {
  if (!shown(node) || node.closest(".scroll, svg")) return;
  const box = node.getBoundingClientRect();
  if (box.left < -0.5 || box.right > width + 0.5) say("outside of the page", node);
  if (node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).display !== "inline") say("wider than its box", node);
});
document.querySelectorAll(".chart text").forEach((node) => {
  if (!shown(node)) return;
  const box = node.getBoundingClientRect(), chart = node.closest(".chart").getBoundingClientRect();
  if (box.left < chart.left - 1 || box.right > chart.right + 1) say("cut in its chart", node);
});
document.querySelectorAll("td.number").forEach((node) => {
  if (!shown(node)) return;
  const range = document.createRange();
  range.selectNodeContents(node);
  if (new Set([...range.getClientRects()].map((each) => Math.round(each.top))).size > 1) say("broken into lines", node);
  const place = [...node.parentNode.querySelectorAll(".number")].indexOf(node), right = (of) => of.getBoundingClientRect().right;
  if (place < 2 && right(range) > right(node.closest(".scroll"))) say("out of sight", node);
});
return found;
"""

# Texts that cannot be read on their background, a line each: less than 4.5, or 3 where it is large (WCAG 2.1, AA).
CONTRAST = """
const luminance = (colour) => {
  const part = (value) => { const s = value / 255; return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; };
  return 0.2126 * part(colour[0]) + 0.7152 * part(colour[1]) + 0.0722 * part(colour[2]);
};
const parsed = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = parsed(getComputedStyle(node).backgroundColor);
    if (colour[3] > 0.99) return colour;
  }
  return [255, 255, 255];
};
const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("script")) continue;
  const style = getComputedStyle(node), size = parseFloat(style.fontSize);
  const [one, other] = [parsed(node.closest("svg") ? style.fill : style.color), behind(node)].map(luminance);
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const least = size >= 24 || (size >= 18.6 && style.fontWeight >= 700) ? 3 : 4.5;
  if (ratio < least) found.add(`${ratio.toFixed(1)}: ${node.textContent.slice(0, 60)}`);
}
return [...found];
"""


@contextmanager
def open_browser(page: Path, until: str = DRAWN) -> Iterator[webdriver.Chrome]:
    """A browser that shows a page, once it has an element; it keeps what it logs and asks for."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(page.as_uri())
        wait_for(driver, until)
        yield driver
    finally:
        driver.quit()


def wait_for(browser: webdriver.Chrome, element: str = DRAWN) -> None:
    WebDriverWait(browser, 120).until(lambda b: b.find_elements(By.CSS_SELECTOR, element))


def look_at(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    """Open a page anew in a window of some width, for a system in light or dark colours."""
    window = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(page.as_uri())
    wait_for(browser)
    assert browser.execute_script("return [innerWidth, document.documentElement.dataset.theme]") == [width, scheme]


def assert_readable(browser: webdriver.Chrome) -> None:
    """Nothing is cut or out of sight, and every text stands out from what is behind it."""
    assert browser.execute_script(FIT) == []
    assert browser.execute_script(CONTRAST) == []


def assert_quiet_and_alone(browser: webdriver.Chrome, page: Path) -> None:
    """Nothing was logged, nothing asked for but the page itself, and nothing on the page offers to send it away."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert page.as_uri() in asked
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
    assert browser.find_elements(By.CSS_SELECTOR, ".modebar-btn, a[href], form") == []
