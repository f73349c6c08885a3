"""A LoRA of Stable Diffusion XL with diffusers and PEFT alone, constrained by a store: two lines are nullbooth's.

    python docs/examples/train_lora_sdxl.py --model stabilityai/stable-diffusion-xl-base-1.0 --store runs/sdxl.zarr \
        --pictures dog --prompt "a photo of sks dog" --output sdxl-sks

The loop is that of diffusers' train_dreambooth_lora_sdxl.py with its defaults; it ends with an ordinary LoRA file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

import nullbooth_cli as nb


def main(argv: Sequence[str] | None = None) -> None:
    """Train and save; `argv` without the name of the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder")
    parser.add_argument("--prompt", required=True, help="the caption of all pictures")
    parser.add_argument("--output", required=True, help="a folder")
    parser.add_argument("--size", type=int, default=1024, help="pixels along each side")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1e-4)
    given = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.float16 if device == "cuda" else torch.float32
    pipe = StableDiffusionXLPipeline.from_pretrained(given.model, dtype=half).to(device)
    unet, vae = pipe.unet, pipe.vae.to(torch.float32)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)

    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=given.rank, lora_alpha=given.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    # What the store does not protect is frozen: with a store of cross-attention alone, the adapters of self-attention.
    constraint = nb.constrain(unet, nb.open_store(given.store))
    print(constraint.report())
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()

    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(given.prompt, device=device, do_classifier_free_guidance=False)
        files = sorted(file for file in given.pictures.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        processor = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor)
        pictures = [processor.preprocess(Image.open(file).convert("RGB"), given.size, given.size) for file in files]
        encoded = [vae.encode(picture.to(device, torch.float32)).latent_dist.mode() for picture in pictures]
        latents = torch.cat(encoded) * vae.config.scaling_factor
    sizes = torch.tensor([[given.size, given.size, 0, 0, given.size, given.size]], device=device)

    optimizer = torch.optim.AdamW(trained, lr=given.rate)
    scaler = torch.amp.GradScaler(device, enabled=half == torch.float16)
    unet.train().enable_gradient_checkpointing()
    for step in range(given.steps):
        clean = latents[step % len(latents)][None]
        noise = torch.randn_like(clean)
        timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (1,), device=device)
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        with torch.autocast(device, half, enabled=half != torch.float32):
            conditions = {"text_embeds": pooled, "time_ids": sizes}
            predicted = unet(noisy, timesteps, text, added_cond_kwargs=conditions, return_dict=False)[0]
        is_velocity = noise_scheduler.config.prediction_type == "v_prediction"
        target = noise_scheduler.get_velocity(clean, noise, timesteps) if is_velocity else noise
        scaler.scale(torch.nn.functional.mse_loss(predicted.float(), target)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    print(f"largest drift: {max(constraint.drift().values()):.2g}")
    pipe.save_lora_weights(given.output, unet_lora_layers=get_peft_model_state_dict(unet))


if __name__ == "__main__":
    main()
