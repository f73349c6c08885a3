"""A LoRA of Flux with diffusers and PEFT alone, constrained by a store: two lines are nullbooth's.

    python docs/examples/train_lora_flux.py --model black-forest-labs/FLUX.1-dev --store runs/flux.zarr \
        --pictures dog --prompt "a photo of sks dog" --output flux-sks

The loop is that of diffusers' train_dreambooth_lora_flux.py with its defaults; it ends with an ordinary LoRA file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

import nullbooth_cli as nb

GUIDANCE = 3.5


def main(argv: Sequence[str] | None = None) -> None:
    """Train and save; `argv` without the name of the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder")
    parser.add_argument("--prompt", required=True, help="the caption of all pictures")
    parser.add_argument("--output", required=True, help="a folder")
    parser.add_argument("--size", type=int, default=512, help="pixels along each side")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rate", type=float, default=1e-4)
    given = parser.parse_args(argv)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.bfloat16 if device == "cuda" else torch.float32
    pipe = FluxPipeline.from_pretrained(given.model, dtype=half).to(device)
    transformer, vae = pipe.transformer, pipe.vae.to(torch.float32)

    transformer.requires_grad_(False)
    names = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    transformer.add_adapter(LoraConfig(r=given.rank, lora_alpha=given.rank, target_modules=names))
    # What the store does not protect is frozen.
    constraint = nb.constrain(transformer, nb.open_store(given.store))
    print(constraint.report())
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()

    with torch.no_grad():
        text, pooled, text_ids = pipe.encode_prompt(given.prompt, None, device=device)
        files = sorted(file for file in given.pictures.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        processor = VaeImageProcessor(vae_scale_factor=pipe.vae_scale_factor)
        pictures = [processor.preprocess(Image.open(file).convert("RGB"), given.size, given.size) for file in files]
        encoded = [vae.encode(picture.to(device, torch.float32)).latent_dist.mode() for picture in pictures]
        latents = (torch.cat(encoded) - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    packed = pipe._pack_latents(latents, *latents.shape)
    height, width = (side // 2 for side in latents.shape[2:])
    places = pipe._prepare_latent_image_ids(1, height, width, device, packed.dtype)
    guidance = torch.full((1,), GUIDANCE, device=device) if transformer.config.guidance_embeds else None

    optimizer = torch.optim.AdamW(trained, lr=given.rate)
    transformer.train().enable_gradient_checkpointing()
    for step in range(given.steps):
        clean = packed[step % len(packed)][None]
        noise = torch.randn_like(clean)
        sigma = torch.rand(1, 1, 1, device=device)  # the script's default density
        with torch.autocast(device, half, enabled=half != torch.float32):
            predicted = transformer(
                hidden_states=(1.0 - sigma) * clean + sigma * noise,
                timestep=sigma.flatten(),
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=text,
                txt_ids=text_ids,
                img_ids=places,
                return_dict=False,
            )[0]
        torch.nn.functional.mse_loss(predicted.float(), noise - clean).backward()
        optimizer.step()
        optimizer.zero_grad()

    print(f"largest drift: {max(constraint.drift().values()):.2g}")
    pipe.save_lora_weights(given.output, transformer_lora_layers=get_peft_model_state_dict(transformer))


if __name__ == "__main__":
    main()
