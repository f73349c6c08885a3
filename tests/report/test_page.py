"""The report page in a real browser: it stands alone, nothing of the data runs, and what one clicks does what it says."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from typer.testing import CliRunner

from nullbooth_cli.cli import app
from nullbooth_cli.model.device import pick_device
from nullbooth_cli.report import page as page_module
from nullbooth_cli.report.inspection import inspect_store
from nullbooth_cli.report.ladder import explore_thresholds
from nullbooth_cli.report.over_timesteps import SiteOverTimesteps
from nullbooth_cli.report.page import (
    FEWEST_POINTS,
    MOST_ALONE,
    MOST_POINTS,
    PageTask,
    ThinSpectrum,
    page_data,
    points_of_each,
    thin_spectrum,
    write_page,
)
from nullbooth_cli.report.picture_source import PictureSource
from nullbooth_cli.settings.config import Config
from nullbooth_cli.store import Store
from tests.support.browser import (
    HOSTILE,
    assert_quiet_and_alone,
    assert_readable,
    each_look,
    look_at,
    needs_browser,
    open_browser,
)
from tests.support.builders import PROMPTS, ROOT, execute, prompts_of, small_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Store]:
    """A run with held-out prompts, one prompt that means harm, and too few prompts for its widest site."""
    config = small_config(
        tmp_path_factory.mktemp("page") / "<b>run.zarr",
        original_knowledge_prompts=[*PROMPTS[:3], HOSTILE],
        heldout_prompts=PROMPTS[6:],
        collect__cross_attention_layers=["mid_block*", "up_blocks.2*"],
        project__relative_threshold=1e-3,  # of the seven sites, two are left without a warning
    )
    return config, execute(config, "collect", "covariance", "project")


@pytest.fixture(scope="module")
def page(run: Any) -> tuple[Path, dict[str, Any]]:
    """The page, and the inspect document that it shows."""
    path = run[1].path.parent / "out" / "report.html"
    shown = CliRunner().invoke(app, ["inspect", str(run[1].path), "--html", str(path), "--json"])
    assert shown.exit_code == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["files"] == [str(path)]
    return path, document


@pytest.fixture(scope="module")
def browser(page: Any) -> Iterator[webdriver.Chrome]:
    with open_browser(page[0]) as opened:
        yield opened


def rows(browser: webdriver.Chrome) -> list[list[str]]:
    """The cells of the table of sites, as they are shown."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#sites tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )


def column(browser: webdriver.Chrome, title: str) -> list[str]:
    titles = [head.text.rstrip(" ▲▼") for head in browser.find_elements(By.CSS_SELECTOR, "#sites thead th")]
    return [row[titles.index(title)] for row in rows(browser)]


def click_head(browser: webdriver.Chrome, title: str) -> None:
    heads = browser.find_elements(By.CSS_SELECTOR, "#sites thead button")
    head = next(head for head in heads if head.text.rstrip(" ▲▼") == title)
    browser.execute_script("arguments[0].click()", head)


def shown_trace(browser: webdriver.Chrome, chart: str, key: str) -> Any:
    return browser.execute_script(f"return Array.from(document.getElementById('{chart}').data[0].{key})")


def test_a_spectrum_is_thinned_to_what_can_be_seen() -> None:
    values = np.sort(np.random.default_rng(0).random(1280))
    thin = thin_spectrum(values)
    assert len(thin.place) == MOST_POINTS
    assert (thin.place[0], thin.place[-1]) == (1, 1280)
    np.testing.assert_allclose(thin.value, values[::-1][np.array(thin.place) - 1], rtol=5e-3)
    assert thin_spectrum(np.array([1.0, 3.0])) == ThinSpectrum((1, 2), (3.0, 1.0))


def test_spectra_of_many_timesteps_have_fewer_points() -> None:
    """At the size of SDXL the spectra of single timesteps stay under a megabyte of about ten characters a point."""
    assert points_of_each(0, MOST_ALONE) == points_of_each(4, MOST_ALONE) == MOST_POINTS
    assert points_of_each(140 * 30, MOST_ALONE) == 11
    assert points_of_each(1000, MOST_ALONE) == 50
    assert points_of_each(10**6, MOST_ALONE) == FEWEST_POINTS
    thin = thin_spectrum(np.arange(1.0, 101.0), 3)
    assert (thin.place, thin.value) == ((1, 50, 100), (100.0, 51.0, 1.0))


def test_the_script_of_plotly_is_the_one_that_was_published() -> None:
    """The file of plotly.js-basic-dist-min 4.1.1, whose licence lies beside it."""
    web = ROOT / "nullbooth_cli" / "report" / "web"
    script = (web / "plotly-basic.min.js").read_bytes()
    assert script.startswith(b"/**\n* plotly.js (basic - minified) v4.1.1\n")
    assert hashlib.sha256(script).hexdigest() == "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba"
    assert (web / "plotly-basic.LICENSE.txt").read_text().startswith("MIT License\n\nCopyright (c) 2016-2024 Plotly")
    assert "nullbooth_cli/report/web/plotly-basic.LICENSE.txt" in (ROOT / "pyproject.toml").read_text()


def test_the_page_is_small(page: Any) -> None:
    assert page[0].stat().st_size < 2_000_000


def test_the_page_of_a_model_as_large_as_sdxl_is_small(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """70 layers of q and out over 30 timesteps, with spectra of 1280."""
    config, store = run
    report, random = inspect_store(config, store), np.random.default_rng(0)
    layers = [f"down_blocks.2.attentions.1.transformer_blocks.{i}.attn2" for i in range(70)]

    def over_time(layer: str, feature: str) -> SiteOverTimesteps:
        share = random.random((4, 30))
        return SiteOverTimesteps(
            site=replace(store.sites[-1], layer=layer, feature=feature, dim=1280),
            timesteps=np.linspace(1, 999, 30),
            eigenvalues=np.sort(random.random((30, 1280)) ** 8),
            null_dim=np.round(1280 * share[0]),
            effective_rank=100 * share[1],
            leakage=share[2],
            heldout_leakage=share[3],
            overlap=random.random((30, 30)),
            chance=0.5,
        )

    found = [over_time(layer, feature) for layer in layers for feature in ("q", "out")]
    source = PictureSource(config, store, prompts_of(config), replace(report, sites=report.sites[:1] * len(found)))
    monkeypatch.setattr(PictureSource, "called", {layer: layer for layer in [*source.called, *layers]})
    monkeypatch.setattr(page_module, "spectra_of", lambda *_: [each.eigenvalues[0] for each in found])
    made = page_data(source, found, explore_thresholds(config, store, pick_device("cpu")))
    path = write_page(tmp_path / "large.html", made)
    assert 1_700_000 < path.stat().st_size < 2_000_000


def test_the_file_names_nothing_outside(page: Any) -> None:
    ours = re.sub(r'(?s)<script id="plotly">.*?</script>', "", page[0].read_text(encoding="utf-8"))
    assert not re.search(r"""(src|href)\s*=\s*["'][^"']""", ours.replace("src=x onerror", ""))
    assert "<script>document.title" not in ours


def test_a_page_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shown = CliRunner().invoke(app, ["inspect", str(run[1].path), "--html", str(tmp_path / "file" / "r.html")])
    assert shown.exit_code == 5
    assert "cannot write" in shown.stderr


@needs_browser
class TestBrowser:
    def test_the_headline_answers(self, browser: webdriver.Chrome, page: Any) -> None:
        totals = page[1]["totals"]
        threshold, leakage, cost = browser.find_elements(By.CSS_SELECTOR, "#answers .answer")
        assert "relative_threshold 0.001" in threshold.text
        assert f"leaks {totals['largest_heldout_leakage']:.2g}" in leakage.text
        assert leakage.get_attribute("class") == ("answer good" if totals["largest_heldout_leakage"] <= 0.1 else "answer poor")
        assert f"{totals['null_dim']} of {totals['dim']} dimensions" in cost.text

    def test_warnings(self, browser: webdriver.Chrome, page: Any) -> None:
        warnings = browser.find_element(By.ID, "warnings")
        assert warnings.is_displayed()
        listed = browser.execute_script("return [...document.querySelectorAll('#warnings li')].map(item => item.textContent)")
        texts = {text for site in page[1]["sites"] for text in site["warnings"]}
        assert 0 < len(listed) < len(texts), "a line for each kind, with the worst of it"
        assert all(line.partition(": ")[0] in {text.partition(": ")[0] for text in texts} for line in listed)
        assert not any(".attn2" in line for line in listed), "sites have the names of the table"

    def test_the_ladder_has_labels_and_the_rung_in_force(self, browser: webdriver.Chrome, page: Any) -> None:
        totals = page[1]["totals"]
        traces = browser.execute_script(
            "return document.getElementById('ladder').data.map(t => [t.name, Array.from(t.x), Array.from(t.y), t.text, t.mode])"
        )
        assert [name for name, *_ in traces] == ["collected", "held-out"]
        (_, shares, leakages, texts, mode) = traces[1]
        place = texts.index("<b>0.001</b>")
        assert shares[place] == pytest.approx(100 * totals["null_dim"] / totals["dim"])
        assert leakages[place] == pytest.approx(totals["largest_heldout_leakage"])
        assert sum(map(bool, texts)) > 3
        assert "text" in mode
        in_force = browser.find_element(By.CSS_SELECTOR, "#rungs tr.now")
        assert in_force.get_attribute("textContent").startswith("0.001, in force")

    def test_prompts_and_names_are_shown_not_run(self, browser: webdriver.Chrome, run: Any) -> None:
        assert browser.title == "nullbooth report"
        assert browser.find_element(By.TAG_NAME, "h1").text == str(run[1].path)
        listed = browser.execute_script("return [...document.querySelectorAll('#prompts li')].map(item => item.textContent)")
        assert HOSTILE in listed
        assert not browser.find_elements(By.CSS_SELECTOR, "img[src='x']")

    def test_filter(self, browser: webdriver.Chrome, page: Any) -> None:
        everything = len(page[1]["sites"])
        assert len(rows(browser)) == everything
        field = browser.find_element(By.ID, "filter")
        field.send_keys("MID")
        assert {name.split()[0] for name in column(browser, "site")} == {"mid_block.attentions.0"}
        assert browser.find_element(By.ID, "shown").text == f"{len(rows(browser))} of {everything}"
        Select(browser.find_element(By.ID, "filter-feature")).select_by_visible_text("q")
        assert column(browser, "site") == ["mid_block.attentions.0 q"]
        Select(browser.find_element(By.ID, "filter-feature")).select_by_visible_text("all features")
        field.clear()
        field.send_keys(" ", "\b")
        browser.find_element(By.ID, "filter-warned").click()
        assert len(rows(browser)) == sum(bool(site["warnings"]) for site in page[1]["sites"]) < everything
        browser.find_element(By.ID, "filter-warned").click()
        assert len(rows(browser)) == everything

    def test_the_worst_site_is_the_first(self, browser: webdriver.Chrome, page: Any) -> None:
        worst = max(page[1]["sites"], key=lambda site: site["heldout_leakage"])
        layer = worst["layer"].removesuffix(".transformer_blocks.0.attn2")
        assert column(browser, "site")[0] == f"{layer} {worst['feature']}"
        assert browser.find_element(By.CSS_SELECTOR, "#sites th[aria-sort='descending']").text == "held-out ▼"
        chosen = Select(browser.find_element(By.ID, "spectrum-site")).first_selected_option
        assert chosen.text == column(browser, "site")[0]
        assert browser.find_element(By.ID, "ending").text == "layers end in .transformer_blocks.0.attn2"

    def test_sort(self, browser: webdriver.Chrome, page: Any) -> None:
        expected = sorted(site["null_dim"] for site in page[1]["sites"])
        click_head(browser, "null_dim")
        assert [int(cell) for cell in column(browser, "null_dim")] == expected
        click_head(browser, "null_dim")
        assert [int(cell) for cell in column(browser, "null_dim")] == expected[::-1]
        sorted_head = browser.find_element(By.CSS_SELECTOR, "#sites th[aria-sort='descending']")
        assert sorted_head.text.startswith("null_dim")

    def test_a_row_chooses_the_spectrum_and_a_timestep_its_own(self, browser: webdriver.Chrome, run: Any) -> None:
        store = run[1]
        site = next(site for site in store.sites if site.feature == "out")
        name = f"{site.layer.removesuffix('.transformer_blocks.0.attn2')} out"
        row = column(browser, "site").index(name)
        browser.execute_script("document.querySelectorAll('#sites tbody tr')[arguments[0]].click()", row)
        np.testing.assert_allclose(
            shown_trace(browser, "spectrum", "y"), store.projectors.read_eigenvalues(site, 0)[::-1], rtol=5e-3
        )
        Select(browser.find_element(By.ID, "spectrum-step")).select_by_index(2)
        sum_xxt, _, count = store.moments.read_one(site, 1)
        alone = np.linalg.eigvalsh(sum_xxt / count)[::-1]
        np.testing.assert_allclose(shown_trace(browser, "spectrum", "y")[:20], alone[:20], rtol=5e-3)

    def test_the_map_follows_feature_and_quantity(self, browser: webdriver.Chrome, run: Any) -> None:
        layers = [site.layer for site in run[1].sites if site.feature == "out"]
        Select(browser.find_element(By.ID, "map-feature")).select_by_value("out")
        Select(browser.find_element(By.ID, "map-quantity")).select_by_value("heldout_leakage")
        cells = browser.execute_script(
            "return [...document.querySelectorAll('#map tbody tr')].map(row => [...row.cells].slice(1).map(cell => cell.title))"
        )
        assert [len(line) for line in cells] == [4] * len(layers)
        values = [float(cell.rpartition(": ")[2]) for line in cells for cell in line]
        assert all(0 <= value <= 1 for value in values)
        lowest, highest = (browser.find_element(By.ID, end).text.rpartition(" ")[2] for end in ("lowest", "highest"))
        assert (float(lowest), float(highest)) == (min(values), max(values))

    def test_a_row_of_the_map_chooses_its_line(self, browser: webdriver.Chrome) -> None:
        names = browser.execute_script("return [...document.querySelectorAll('#map tbody th')].map(cell => cell.textContent)")
        browser.execute_script("document.querySelectorAll('#map tbody tr')[arguments[0]].click()", len(names) - 1)
        lines = browser.execute_script("return document.getElementById('evolution').data.map(t => [t.name, t.showlegend])")
        assert sorted(name for name, _ in lines) == sorted(names)
        assert [name for name, chosen in lines if chosen] == [names[-1]]
        assert browser.find_element(By.CSS_SELECTOR, "#map tr.chosen th").text == names[-1]

    def test_dark_and_light(self, browser: webdriver.Chrome, tmp_path: Path) -> None:
        brightness = {}
        for _ in range(2):
            button = browser.find_element(By.ID, "theme")
            theme = browser.execute_script("return document.documentElement.dataset.theme")
            browser.save_screenshot(str(tmp_path / f"{theme}.png"))
            with Image.open(tmp_path / f"{theme}.png") as picture:
                assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100
                brightness[theme] = np.asarray(picture.convert("L")).mean()
            browser.execute_script("arguments[0].click()", button)
        assert brightness["dark"] < 100 < 200 < brightness["light"]

    @each_look
    def test_readable_in_every_window(self, browser: webdriver.Chrome, page: Any, width: int, scheme: str) -> None:
        look_at(browser, page[0], width, scheme)
        browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert_readable(browser)

    def test_long_names_fold(self, run: Any, tmp_path: Path) -> None:
        """Names as those of SDXL, at the width of a phone."""
        config, store = run
        source = PictureSource(config, store, prompts_of(config), inspect_store(config, store))
        made = page_data(source, [], explore_thresholds(config, store, pick_device("cpu")))
        names = [f"down_blocks.{i}.attentions.0.transformer_blocks.{i} out" for i in range(len(made.sites))]
        sites = tuple(replace(site, name=name) for site, name in zip(made.sites, names, strict=True))
        path = write_page(tmp_path / "long.html", replace(made, sites=sites))
        with open_browser(path) as browser:
            look_at(browser, path, 420, "light")
            assert_readable(browser)
            lines = browser.execute_script(
                "return [...document.querySelectorAll('#leakage .ytick text')].map(t => [...t.children].map(l => l.textContent))"
            )
        assert ["".join(of_name) for of_name in lines] == names
        assert {len(of_name) for of_name in lines} == {2}

    @pytest.mark.parametrize("names", [["preserved", "x" * 64, "cat"], [f"subject-number-{i}" for i in range(20)]])
    def test_tasks_can_be_read(self, run: Any, tmp_path: Path, names: list[str]) -> None:
        """One that is called as the start of the chart, a long name, many names."""
        config, store = run
        source = PictureSource(config, store, prompts_of(config), inspect_store(config, store))
        made = page_data(source, [], explore_thresholds(config, store, pick_device("cpu")))
        of_each = {"dim": 512, "energy": 0.2, "heldout_energy": 0.1, "leakage": 0.05}
        tasks = tuple(PageTask(name=name, null_dim_before=460 - i, null_dim=459 - i, **of_each) for i, name in enumerate(names))
        path = write_page(tmp_path / "tasks.html", replace(made, tasks=tasks))
        with open_browser(path) as browser:
            for width, scheme in ((420, "light"), (1400, "dark")):
                look_at(browser, path, width, scheme)
                assert_readable(browser)
                assert shown_trace(browser, "budget", "x") == list(range(len(names) + 1)), "a place for each"
                cells = "return [...document.querySelectorAll('#tasks tbody tr')].map(row => row.cells[0].textContent)"
                assert browser.execute_script(cells) == names

    def test_no_console_error_and_no_request(self, browser: webdriver.Chrome, page: Any) -> None:
        """Last: over all that was clicked before."""
        assert_quiet_and_alone(browser, page[0])
