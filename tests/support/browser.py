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
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    DRIVER is None, reason="no chromedriver: install Debian's chromium and chromium-driver to test the report page"
)


@contextmanager
def open_browser(page: Path, until: str) -> Iterator[webdriver.Chrome]:
    """A browser that shows a page, once it has an element; it keeps what it logs and asks for."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(page.as_uri())
        WebDriverWait(driver, 120).until(lambda d: d.find_elements(By.CSS_SELECTOR, until))
        yield driver
    finally:
        driver.quit()


def assert_quiet_and_alone(browser: webdriver.Chrome, page: Path) -> None:
    """Nothing was logged, and nothing asked for but the page itself."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert page.as_uri() in asked
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
