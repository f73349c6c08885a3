"""Make the pictures of the how-to pages from a real run of the embedded model: `make pictures`, about three minutes.

The run stays in runs/pictures.zarr, so that drawing again takes seconds. The screenshot of the report needs chromedriver.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
STORE = "runs/pictures.zarr"
CHOSEN = ("leakage", "evolution", "timesteps-q", "similarity-layers", "distribution")
SITE = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.q"
PROMPT = "a red circle on a blue background"


def nullbooth(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "nullbooth_cli", *arguments, "-q"], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    settings = ("collect.keep=moments", "collect.visual_attention_map=true", f"collect.attention_prompts=['{PROMPT}']")
    overrides = [word for setting in settings for word in ("--set", setting)]
    nullbooth("run", "-c", "configs/nullbooth.yaml", "-s", STORE, *overrides)
    nullbooth("project", "-s", STORE, "--explore", "--plot", str(IMAGES / "ladder.png"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nullbooth("inspect", STORE, "--plots", str(folder), "--attention", PROMPT, "--html", str(folder / "report.html"))
        for kind in CHOSEN:
            shutil.copy(folder / f"{kind}.png", IMAGES)
        shutil.copy(next(folder.glob("attention-*.png")), IMAGES / "attention.png")
        nullbooth("inspect", STORE, "--plots", str(folder / "site"), "--site", SITE)
        shutil.copy(folder / "site" / "spectra.png", IMAGES / "spectrum.png")
        shutil.copy(folder / "site" / f"moment-{SITE}.png", IMAGES / "moment.png")
        photograph(folder / "report.html", IMAGES / "report.png")


def photograph(page: Path, picture: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1500", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(page.as_uri())
        WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#leakage .plot-container"))
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
