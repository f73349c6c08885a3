"""The parts of the embedded model before they are trained: tokenizer, networks and the fixed latent code."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nullbooth_cli.toy import world

NUM_TOKENS, WIDTH = 16, 96
PATCH, NUM_COMPONENTS = 4, 8
NOISE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}


def build_tokenizer(words: Sequence[str] = world.WORDS) -> CLIPTokenizer:
    """A CLIPTokenizer in which every one of these words is one token and any other word falls into pieces."""
    trainer = trainers.BpeTrainer(vocab_size=5_000, min_frequency=0, end_of_word_suffix="</w>", show_progress=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    characters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,-'!?"]
    pieces = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges)]
    vocabulary = {piece: i for i, piece in enumerate([*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=NUM_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = WIDTH, inner: int = 2 * WIDTH) -> CLIPTextModel:
    """Two layers for texts of 16 tokens, `inner` wide within; of width 96 171 k parameters."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=NUM_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.05)
    return encoder


def build_unet(width: int = WIDTH) -> UNet2DConditionModel:
    """Cross-attention at 8 x 8, 4 x 4 and 2 x 2, over texts of this width; 2.28 M parameters for 96."""
    return UNet2DConditionModel(
        sample_size=world.SIZE // PATCH,
        in_channels=NUM_COMPONENTS,
        out_channels=NUM_COMPONENTS,
        block_out_channels=(32, 64, 80),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=width,
    )


def build_autoencoder() -> AutoencoderKL:
    """Pictures `[B, 3, 32, 32]` to latents `[B, 8, 8, 8]` and back; 656 k parameters."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=NUM_COMPONENTS,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=world.SIZE,
        scaling_factor=1.0,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, padded to `[B, 16]`."""
    ids = tokenizer(texts, padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt").input_ids
    return torch.as_tensor(ids)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save it with the vocab.json and merges.txt that transformers before 5 reads; 5 writes only tokenizer.json."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


@dataclass(frozen=True)
class PatchCode:
    """The fixed linear code: principal components of the patches, scaled to their standard deviation to the power 0.7."""

    mean: torch.Tensor  # [48]
    basis: torch.Tensor  # [48, 8], orthonormal columns
    scale: torch.Tensor  # [8]

    @classmethod
    def fit(cls, pictures: torch.Tensor) -> "PatchCode":
        """The code of pictures `[N, 3, 32, 32]`; the first 4,000 of them decide it."""
        patches = F.unfold(pictures[:4000], PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        mean = patches.mean(0)
        _, singular, right = torch.linalg.svd((patches - mean).double(), full_matrices=False)
        deviation = (singular[:NUM_COMPONENTS] / len(patches) ** 0.5).float()
        scale = deviation**0.3
        return cls(mean, right[:NUM_COMPONENTS].T.float(), scale * ((deviation / scale) ** 2).mean().sqrt())

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """`[B, 3, 32, 32]` to `[B, 8, 8, 8]`, standard deviation 1."""
        patches = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2)
        code = (patches - self.mean) @ self.basis / self.scale
        side = pictures.shape[-1] // PATCH
        return code.transpose(1, 2).reshape(len(code), NUM_COMPONENTS, side, side)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """`[B, 8, 8, 8]` to the pictures that have this code, `[B, 3, 32, 32]`; a little blurred."""
        patches = (code.flatten(2).transpose(1, 2) * self.scale) @ self.basis.T + self.mean
        return F.fold(patches.transpose(1, 2), world.SIZE, PATCH, stride=PATCH)
