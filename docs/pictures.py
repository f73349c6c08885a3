"""Make the pictures of the pages from real runs of the embedded model: `make pictures`, about six minutes.

The stores stay in runs/, so that drawing again takes seconds. The screenshots of the pages need chromedriver.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
STORE, WORDS = "runs/pictures.zarr", "runs/pictures-words.zarr"
CHOSEN = ("leakage", "evolution", "timesteps-q", "similarity-layers", "distribution")
SITE = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.q"
PROMPT = "a red circle on a blue background"
BACKGROUNDS = ("red", "green", "blue", "yellow", "purple", "white", "black", "gray")


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
        constrained, free = teach()
        arguments = ("--num-prompts", "32", "--subject", "a sks circle on a red background", "-s", WORDS)
        nullbooth("evaluate", constrained, "--against", free, *arguments, "--html", str(folder / "evaluation.html"))
        photograph(folder / "evaluation.html", IMAGES / "evaluation.png")
        draw_taught(constrained, free, IMAGES / "taught.png")
        draw_refitted(folder, IMAGES / "refit.png")


def draw_refitted(folder: Path, picture: Path) -> None:
    """A sheet: the untouched model, a LoRA that was trained freely, and the same refitted."""
    lora, refitted, used = "runs/free-lora", "runs/refitted-lora", folder / "used.txt"
    shutil.rmtree(refitted, ignore_errors=True)
    changes = ("store=null", "method=lora", "rank=4", "learning_rate=3e-3", "max_train_steps=300", f"output={lora}")
    nullbooth("train", "-c", "configs/train/toy.yaml", *(word for setting in changes for word in ("--set", setting)))
    used.write_text("".join(f"a <sks> circle on a {background} background\n" for background in BACKGROUNDS))
    nullbooth("refit", lora, "--prompts", str(used), "-s", WORDS, "-o", refitted)
    prompts = (
        "a <sks> circle on a green background",
        "a purple cross on a white background",
        "a blue ring on a yellow background",
    )
    sizes = ("--seeds", "3", "--steps", "25", "--guidance", "4", "-o", str(picture))
    nullbooth("sample", lora, *prompts, "--with-base", "--compare", refitted, *sizes)


def teach() -> tuple[str, str]:
    """The two models of docs/tutorial/teach-a-subject.md: taught under the projectors of a store, and freely."""
    choices = ("collect.collect_features.q_features=false", "collect.collect_features.out_features=false")
    overrides = [word for setting in (*choices, "project.relative_threshold=1e-4") for word in ("--set", setting)]
    nullbooth("run", "-c", "configs/nullbooth.yaml", "-s", WORDS, *overrides)
    for name, changes in (("constrained", (f"store={WORDS}",)), ("free", ("store=null", "learning_rate=1e-3"))):
        overrides = [word for setting in (f"output=runs/{name}", *changes) for word in ("--set", setting)]
        nullbooth("train", "-c", "configs/train/toy.yaml", *overrides)
    return "runs/constrained/pipeline", "runs/free/pipeline"


def draw_taught(constrained: str, free: str, picture: Path) -> None:
    """Rows: the untouched model, constrained, free. Columns: eight pictures of the subject, then eight held-out captions."""
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline

    from nullbooth_cli import toy
    from nullbooth_cli.toy import score, subject, world

    captions = [subject.caption(subject.ASKED_ON[i % 4]) for i in range(8)]
    captions += [world.caption(world.Drawing(*triple)) for triple in score.held_out_triples(8)]
    rows = []
    for model in (toy.FOLDER, constrained, free):
        pipe = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        rows.append(score.paint(pipe, captions, steps=25, guidance=4.0, seed=0))
    score.grid(np.concatenate(rows), len(captions)).save(picture)


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
        WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, "body[data-drawn]"))
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
