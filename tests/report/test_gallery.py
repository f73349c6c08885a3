"""The page of an evaluation in a real browser: numbers, pictures and charts are those of the answer, and nothing of it runs."""

import base64
import io
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

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.draw_models import ANOTHER, BASE
from nullbooth_cli.evaluation.evaluate import Evaluation
from nullbooth_cli.evaluation.pictures import Pictures, PictureSpec
from nullbooth_cli.report.gallery import AMPLIFIED, ROWS, SIDE, gallery_data, picture_uri, write_gallery
from tests.support.browser import (
    HOSTILE,
    assert_quiet_and_alone,
    assert_readable,
    each_look,
    look_at,
    needs_browser,
    open_browser,
)
from tests.support.evaluations import edit_scores, evaluation
from tests.support.reports import inspect_report

TEXTS = [*(f"prompt {i}" for i in range(19)), HOSTILE]
MODELS = ["models/<b>one", "two"]  # places
NAMES = ["<b>one", "two"]


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """Twenty preserved prompts and two pictures of a subject, by two edited models, the second equal to the base."""
    return evaluation(TEXTS, MODELS, (0.02, 0.0))


@pytest.fixture(scope="module")
def page(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(tmp_path_factory.mktemp("gallery") / "out/report.html", found, inspect_report())


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[webdriver.Chrome]:
    with open_browser(page) as opened:
        yield opened


def shown(browser: webdriver.Chrome, table: str) -> list[list[str]]:
    return browser.execute_script(
        f"return [...document.querySelectorAll('#{table} tr')].map(r => [...r.cells].map(c => c.textContent))"
    )


def prompts_shown(browser: webdriver.Chrome) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll('.row > figcaption')].map(each => each.textContent)")


def pixels(uri: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_the_file_names_nothing_outside(page: Path) -> None:
    ours = re.sub(r'(?s)<script id="plotly">.*?</script>', "", page.read_text(encoding="utf-8"))
    assert not re.search(r"""(src|href)\s*=\s*["'][^"']""", ours.replace("src=x onerror", ""))
    assert "<script>document.title" not in ours


def test_large_pictures_are_shown_smaller() -> None:
    assert pixels(picture_uri(np.zeros((300, 600, 3), np.uint8))).shape == (SIDE // 2, SIDE, 3)


def with_an_edit() -> Evaluation:
    """An edited prompt with two targets and a paraphrase with one, and no drift."""
    found, pairs = evaluation(["p"], ["one"], (0.5,)), {"a": "b", "c": ""}
    sets = {**found.sets, "edited": tuple(PictureSpec(Prompt(a), targets=(b,)) for a, b in pairs.items())}
    rng = np.random.default_rng(1)

    def more(drawn: Pictures) -> Pictures:
        added = rng.integers(0, 256, (2, *drawn.images.shape[1:]), np.uint8)
        return Pictures(np.concatenate([drawn.images, added]), np.concatenate([drawn.latents, drawn.latents[:2]]))

    return replace(
        found,
        report=replace(found.report, edit=edit_scores(pairs, 1.0), drift=None),
        sets=sets,
        drawn={name: more(drawn) for name, drawn in found.drawn.items()},
        targets=Pictures(rng.integers(0, 256, (2, 40, 60, 3), np.uint8), np.zeros((2, 1, 1, 1), np.float32)),
    )


def test_edited_prompts_are_beside_their_targets() -> None:
    found = with_an_edit()
    data = gallery_data(found)
    assert list(data.by_picture) == ["edited", "subject", "preserved"], "what was edited comes first"
    assert (data.baseline["edited"], data.drift, data.weights) == (4.0, (), ())
    rows = [row for row in data.rows if row.set == "edited"]
    assert [(row.text, row.target, row.latent_mse) for row in rows] == [("c", "", 2.0), ("a", "b", 1.0)]
    assert found.targets is not None
    for row, place in zip(rows, (1, 0), strict=True):
        np.testing.assert_array_equal(pixels(row.another), found.targets.images[place])
        np.testing.assert_array_equal(pixels(row.base), found.drawn[BASE].images[3 + place])
    assert {row.target for row in data.rows if row.set != "edited"} == {None}


@needs_browser
def test_the_page_of_an_edit(tmp_path: Path) -> None:
    page = write_gallery(tmp_path / "edit.html", with_an_edit())
    with open_browser(page) as browser:
        assert Select(browser.find_element(By.ID, "set")).first_selected_option.text == "edited prompts"
        first, second = prompts_shown(browser)
        assert first.startswith("ctarget: the empty prompt")
        assert second.startswith("atarget: b")
        titles = browser.execute_script("return [...document.querySelectorAll('#pictures .row:first-child img')].map(i => i.alt)")
        assert titles[:2] == ["base", "base, its target"]
        assert not browser.find_element(By.ID, "drift-part").is_displayed()
        assert ["draw a target (base 0.125, targets 1)", "", "1"] in shown(browser, "summary")
        assert_quiet_and_alone(browser, page)


@needs_browser
class TestBrowser:
    def test_each_model_has_its_answers(self, browser: webdriver.Chrome) -> None:
        heads = [head.text for head in browser.find_elements(By.CSS_SELECTOR, "#answers h3")]
        assert heads == [*NAMES, "Projectors of run.zarr"]
        parts = browser.find_elements(By.CSS_SELECTOR, "#answers .answers")
        questions = [[each.text for each in part.find_elements(By.CSS_SELECTOR, "span")] for part in parts]
        assert questions[0] == questions[1] == ["Learned?", "Forgotten?", "How far do weights drift?"]
        assert questions[2] == ["Threshold in force", "Does it preserve?", "What does it cost?"]
        first = [each.get_attribute("class") for each in parts[0].find_elements(By.CSS_SELECTOR, ".answer")]
        assert first == ["answer poor", "answer good", "answer"]
        assert "0.02 of 1\nhardly" in parts[0].text
        assert "hardly anything" in parts[1].text

    def test_numbers_stand_side_by_side(self, browser: webdriver.Chrome) -> None:
        assert browser.find_element(By.TAG_NAME, "h1").text == ", ".join(NAMES)
        rows = shown(browser, "summary")
        assert rows[0] == ["quantity", ANOTHER, *NAMES]
        parts = [i for i, row in enumerate(rows) if row[0] in ("the subject", "preserved prompts")]
        assert [rows[i][0] for i in parts] == ["the subject", "preserved prompts"], "the subject first"
        assert ["captions drawn right (base 1)", "0.25", "0.25", "0.25"] in rows[parts[0] : parts[1]]
        assert ["latent MSE, of another seed's", "1", "0.01", "0"] in rows[parts[1] :]
        assert not [row for row in rows if row[0] in ("LPIPS", "PSNR, dB")]
        assert shown(browser, "not-measured")[1:] == [["clip", "no CLIP weights at <here>"]]

    def test_a_few_pictures_from_most_to_least_changed(self, browser: webdriver.Chrome, found: Evaluation) -> None:
        assert Select(browser.find_element(By.ID, "set")).first_selected_option.text == "the subject"
        assert len(prompts_shown(browser)) == 2
        Select(browser.find_element(By.ID, "set")).select_by_visible_text("preserved prompts")
        some = prompts_shown(browser)
        button = browser.find_element(By.ID, "all")
        assert (len(some), button.text) == (4, f"Show {ROWS}")
        button.click()
        prompts = prompts_shown(browser)
        assert len(prompts) == ROWS
        assert not button.is_displayed()
        assert some == [prompts[i] for i in (0, 4, 8, 11)]
        assert prompts[0].startswith(HOSTILE)
        assert prompts[-1].startswith("prompt 0")
        assert prompts[-1].endswith("latent MSE of <b>one: 0.02")
        assert browser.title == "nullbooth evaluation"
        last = "[...document.querySelectorAll('#pictures .row:last-child img')]"
        assert browser.execute_script(f"return {last}.map(i => i.alt)") == [
            "base",
            "base, another seed",
            *(text for name in NAMES for text in (name, f"{name}, difference × {AMPLIFIED}")),  # noqa: RUF001
        ]
        sources = browser.execute_script(f"return {last}.map(i => i.src)")
        base, another, one, one_less, two, two_less = map(pixels, sources)
        images = {name: drawn.images[0] for name, drawn in found.drawn.items()}
        for seen, name in ((base, BASE), (another, ANOTHER), (one, MODELS[0]), (two, MODELS[1])):
            np.testing.assert_array_equal(seen, images[name])
        changed = AMPLIFIED * np.abs(images[BASE].astype(int) - images[MODELS[0]])
        np.testing.assert_array_equal(one_less, changed.clip(0, 255))
        assert not two_less.any()

    def test_charts(self, browser: webdriver.Chrome) -> None:
        Select(browser.find_element(By.ID, "set")).select_by_visible_text("preserved prompts")
        values = browser.execute_script("return document.getElementById('changes').data.map(t => Array.from(t.y))")
        np.testing.assert_allclose(values[0], [0.01 * (i + 1) for i in range(19, -1, -1)])
        assert values[1] == [None] * 20
        drifts = browser.execute_script("return document.getElementById('drift').data.map(t => [t.name, Array.from(t.x)])")
        assert drifts[0] == ["&lt;b&gt;one, preserved inputs", [0.1, 0.1]]
        assert drifts[3] == ["two, held-out inputs", [0.3, 0.3]]
        labels = browser.execute_script("return document.getElementById('drift').layout.yaxis.ticktext")
        assert labels == ["mid_block q", "mid_block k"], "one layer alone is called by its first part"
        listed = browser.execute_script("return [...document.querySelectorAll('#unprotected li')].map(l => l.textContent)")
        assert listed == ["unet.<i>bias"] * 2
        said = browser.execute_script("return [...document.querySelectorAll('#unprotected summary')].map(l => l.textContent)")
        assert [text.partition(":")[0] for text in said] == MODELS

    def test_dark_and_light(self, browser: webdriver.Chrome, tmp_path: Path) -> None:
        brightness = {}
        for _ in range(2):
            theme = browser.execute_script("return document.documentElement.dataset.theme")
            brightness[theme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            browser.execute_script("document.getElementById('theme').click()")
        assert brightness == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}

    @each_look
    def test_readable_in_every_window(self, browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
        look_at(browser, page, width, scheme)
        browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        assert_readable(browser)

    def test_no_console_error_and_no_request(self, browser: webdriver.Chrome, page: Path) -> None:
        """Last: over all that was clicked before."""
        assert_quiet_and_alone(browser, page)
