"""Make the pictures of the how-to pages from a real run of the embedded model: `make pictures`, about four minutes.

The run stays in runs/pictures.zarr, so that drawing again takes seconds. The screenshots of the pages need chromedriver.
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
        photograph(folder / "report.html", IMAGES / "report.png", "#leakage .plot-container")
        edit_at_random(folder)
        constrained, free, lora = (str(folder / name) for name in ("constrained", "free", "lora"))
        arguments = ("--num-prompts", "32", "--subject", "a sks circle on a red background", "-s", STORE)
        page = str(folder / "evaluation.html")
        nullbooth("evaluate", constrained, "--against", free, "--against", lora, *arguments, "--html", page)
        photograph(folder / "evaluation.html", IMAGES / "evaluation.png", "#drift .plot-container")


def edit_at_random(folder: Path) -> None:
    """Three models that learned nothing: the same change of every protected weight, projected and not; and a random LoRA."""
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    import nullbooth_cli as nb
    from nullbooth_cli import toy

    for name in ("constrained", "free"):
        pipe = StableDiffusionPipeline.from_pretrained(toy.FOLDER)
        torch.manual_seed(0)
        for weight, projector in nb.open_store(STORE).projectors(pipe.unet).items():
            value = pipe.unet.get_parameter(weight)
            change = 0.3 * value.std() * torch.randn_like(value)
            value.data += projector.apply(change) if name == "constrained" else change
        pipe.save_pretrained(folder / name)
    pipe = StableDiffusionPipeline.from_pretrained(toy.FOLDER)
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["attn2.to_k", "attn2.to_v"]))
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    pipe.save_lora_weights(folder / "lora", unet_lora_layers=get_peft_model_state_dict(pipe.unet))


def photograph(page: Path, picture: Path, until: str) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1500", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(page.as_uri())
        WebDriverWait(browser, 30).until(lambda b: b.find_elements(By.CSS_SELECTOR, until))
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
