"""Write what is generated: `python docs/generate.py` (`--check` fails if a file is out of date, and writes nothing).

configs/nullbooth.yaml and docs/reference/config.md come from the fields of the config, docs/reference/cli.md from `--help`,
docs/reference/models.md and the first lines of the other configs from the config files of their models (architectures.py).
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import architectures
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
YAML_HEADER = """\
# The embedded model, end to end: about two minutes on two cores, 0.7 GB on disk.
# Every key is here with its default, except collect.batch_size (8) and heldout_prompts (null).
# docs/reference/config.md has the same as a table. Paths start at the current folder.

"""
# The embedded model is so small that larger batches are faster on any machine; prompts to measure leakage on ship with it.
TOY = ["collect.batch_size=24", "heldout_prompts=nullbooth:toy_heldout.txt"]


def config_rows(model: BaseModel, prefix: str = "") -> Iterator[str]:
    """A row of a table for every key, those of sections with their section's name."""
    from nullbooth_cli.settings.commented import fields, scalar

    for name, value, description in fields(model):
        if isinstance(value, BaseModel):
            yield from config_rows(value, f"{prefix}{name}.")
        else:
            yield f"| `{prefix}{name}` | `{scalar(value)}` | {description.replace('|', '/')} |"


def config_page() -> str:
    """docs/reference/config.md."""
    from nullbooth_cli.settings import limits
    from nullbooth_cli.settings.config import Config

    rows = "\n".join(config_rows(Config()))
    return f"""\
# Config

A config is one YAML file. `nullbooth` reads the first of `-c FILE`, `$NULLBOOTH_CONFIG`, `./nullbooth.yaml` and
`./configs/nullbooth.yaml`. An existing store has its config inside, so `-s` alone is enough. Without any of these, a
command that names a store (`-s`) or sets a key has the defaults below for everything else. `--set key=value` overrides one key,
and the store records it. Unknown keys are refused. Files are YAML 1.2: `1e-5` is a number, and `no` is a word.
[The glossary](glossary.md) defines the words.

Exactly one threshold rule of `project` is in force. `--set` of one replaces those in the file or the store. If both
`nullspace_threshold` and `threshold_percent` are set, the percentile is used, and the run reports it.

In paths, `~` and `$NAME` or `${{NAME}}` are expanded as in a shell, and a variable that is not set is an error; URLs stay as they
are. Relative paths start at the current folder.

| key | default | meaning |
| --- | --- | --- |
{rows}

## Limits

They keep a damaged or hostile file from exhausting memory.

| what | at most |
| --- | --- |
| a config, a recipe, a file of edits | {limits.SETTINGS_BYTES // 10**6} MB, nested {limits.LEVELS} levels deep |
| the same, once every YAML alias is written out | {limits.EXPANDED // 10**6} million characters |
| a file of prompts or captions | {limits.TEXT_BYTES // 10**9} GB |
| a path | {limits.PATH_BYTES} bytes, {limits.NAME_BYTES} in each name |
| a seed | {limits.SEED} (32 bits) |
| denoising steps | {limits.STEPS:,} |
| a side of an image | {limits.PIXELS:,} pixels |
| a batch | {limits.BATCH:,} |
| the rank of a LoRA | {limits.RANK:,} |
| a learning rate, a weight decay | {limits.RATE:,.0f} |
| the weight of a loss, a scale of guidance | {limits.FACTOR:,.0f} |
| other numbers of steps, prompts or tokens | {limits.COUNT:,} |

Refused too: NUL characters, a key that appears twice, and every YAML tag but `!!str`, `!!int`, `!!float`, `!!bool`, `!!null`,
`!!seq` and `!!map`.

No value of `storage_options` is shown or stored, nor is that of a key that sounds like a secret (`token`, `password`,
`access_key`). A URL with a password is refused.
"""


def cli_page() -> str:
    """docs/reference/cli.md: the help of every command."""
    from typer.testing import CliRunner

    from nullbooth_cli.cli import app

    def help_of(*command: str) -> str:
        text = (
            CliRunner(env={"COLUMNS": "110", "TERMINAL_WIDTH": "110"})
            .invoke(app, [*command, "--help"], prog_name="nullbooth")
            .stdout
        )
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    names = [command.name for command in app.registered_commands if command.name]
    sections = "\n".join(f"\n## nullbooth {name}\n\n```text\n{help_of(name)}\n```" for name in names)
    return f"# Command line\n\n[The glossary](glossary.md) defines the words.\n\n```text\n{help_of()}\n```\n{sections}\n"


def yaml_file() -> str:
    """configs/nullbooth.yaml."""
    from nullbooth_cli.settings.commented import commented_yaml
    from nullbooth_cli.settings.config import build_config

    return YAML_HEADER + commented_yaml(build_config({}, TOY))


def recipe_page() -> str:
    """docs/reference/train.md."""
    from nullbooth_cli.settings.recipe import Recipe
    from nullbooth_cli.training.record import CHANGEABLE, FREE

    rows = "\n".join(config_rows(Recipe()))
    free, changeable = (", ".join(f"`{key}`" for key in keys) for keys in (FREE, CHANGEABLE))
    return f"""\
# Training

`nullbooth train -c FILE` reads a recipe: one YAML file, of which configs/train has two. Without `-c` it is ./train.yaml, as
`nullbooth init` writes it. `--set key=value` overrides one key; unknown keys are refused. Paths and [limits](config.md#limits)
are those of a config. What a run writes is [below](#the-output). [The glossary](glossary.md) defines the words.

| key | default | meaning |
| --- | --- | --- |
{rows}

## Will it work?

If a store constrains weights that read the text, a run first reports how much of the subject's input lies where these
weights may change. train.json has the same as `estimate`:

```text
the null space has 44 of 96 dimensions and 0.4 % of the energy of the subject's captions, 6.45 times as much as 0.061 %
of held-out prompts
the subject may be learned: with a trained word, 18 of 24 pairs of subject and threshold were on the embedded model
```

The share of energy of vectors K in the null space is norm(P K)^2 / norm(K)^2. It is compared for two sets of vectors: all
tokens of the pictures' captions, as the text encoder gives them before the first step, and the moments of the held-out
prompts (of the collected ones in a store without), which contain the empty prompt of guidance. Padding counts in both,
because Stable Diffusion does not mask it.

Learned means in half of the pictures. Of 24 pairs of a subject of the embedded model and a threshold from 1e-5 to 1e-2:

- **Without `word`**, 14 of 21 pairs were learned at a ratio of 2 and more. Below 2 was one subject, a style, and it was not
  learned; nor was it by free training without a word. Under 2 the answer is that it will probably not be.
- **With `word`**, 18 of 24 were learned, whatever the ratio, because the word moves into the null space. It needs
  dimensions: 16 of 96 were enough for five of six subjects, 1 for none. Under 16 the answer is that they may be too few.

So these numbers rule out and promise nothing.
[Of seven candidates](../explanation/forgetting.md#will-it-be-learned) none had a rank correlation above 0.38.

## Optimizers and averages

| `optimizer` | learning rate | state, bytes for each parameter | needs |
| --- | --- | --- | --- |
| `adamw` | `learning_rate` | 8 | |
| `adamw8bit` | `learning_rate`, as for `adamw` | 2; 8 in tensors of fewer than 4096 | `pip install 'nullbooth[8bit]'` |
| `prodigy` | found by itself, times `learning_rate` | 16 | `pip install 'nullbooth[train]'` |

For Prodigy set `learning_rate` to 1.0, and `word_learning_rate` too: it has one step size for all parameters, and a recipe with
two rates is refused. A learning rate far below 1.0 is reported. The `learning_rate` of train.jsonl is the step size that
Prodigy has found, times the learning rate.

With `ema_decay`, the result, the validation pictures and the trained files of a checkpoint have moving averages of what trains;
training itself continues from the last values, and a checkpoint has both. After step n the average moves by 1 - min(`ema_decay`,
n / (9 + n)) towards the new values. A constraint holds for the averages as it does for the values: W0 + X P is linear in X, and
X is what is averaged.

## Precision and memory

| what | dtype |
| --- | --- |
| weights that train, LoRA, embeddings of words, averages, optimizer's state (not `adamw8bit`), projection P | float32 |
| the other weights of the denoiser, text encoders | `dtype` |
| autoencoder | float32: those of Stable Diffusion and SDXL overflow in float16 |

With `dtype: bfloat16` or `float16`, `mixed_precision` is `bf16` or `fp16`: forwards run under autocast, anything else is refused.
The denoiser is loaded in float32 first, with that much host memory, for `method: full`, and for a store that was collected in
another dtype, whose weights it is compared with. `pipeline/` has the weights that trained in float32 and the others as they were.

Captions and pictures are encoded with one part of the model on the accelerator at a time. Then only the denoiser is there: text
encoders and autoencoder wait in host memory until validation pictures are drawn, or are dropped if a LoRA needs them no more.
While a word trains, they stay, because its captions change in every step; a text encoder in which it does not train (T5, with
`word_encoders: clip`) runs once for each caption.

`--dry-run` counts the memory of each phase on the meta device, from the config files of the model: nothing is loaded. For
Stable Diffusion 1.5 it counts 10.0 and 8.7 GB where [10.1 and 8.6 GB](../benchmarks.md#on-a-gpu) were measured on an H200. What
one operation needs for itself and what the allocator loses between blocks is not in it, nor the context of CUDA, about half a
GB. A step is timed where it fits into the memory that is free. [Memory of each
model](../how-to/teach-other-models.md#memory).

## The output

| file or folder | what it is |
| --- | --- |
| pipeline/ | the result of `method: full`: a pipeline folder of diffusers, in float32 |
| lora/ | the result of `method: lora`: the files of `trained/` below |
| README.md | a model card for the hub: base, tags, prompt, code that loads the result, what it preserves and how far that moved |
| train.json | the result, the recipe, the captions (`prompts`) and the drift of every weight; written last |
| train.jsonl | a line for each step: `{{"step", "loss", "learning_rate", "seconds"}}`, of the first process |
| checkpoint-000200/ | the state to resume from, and a manifest with a digest of each file |
| checkpoint-000200/trained/ | the [trained files](glossary.md#use) of that step; `evaluate` and `sample` take them |
| validation/ | the pictures of the validation prompts at each checkpoint |
| logs/ | those of TensorBoard, if `report_to` names it |

trained/ has the LoRA as diffusers saves it, or `denoiser.safetensors` with the trained weights in float32; the embedding of the
[word](#the-word-in-several-text-encoders); and base.json, which names the base, the step, the token and the captions. It costs
four bytes for each trained parameter: 77 MB for k and v of Stable Diffusion 1.5, whose checkpoint is 3.6 GB without it.

## The word in several text encoders

`word` trains a row of the token embedding in each text encoder that `word_encoders` chooses, and all have one name for it in
prompts. A preserved prompt that has the word in any of them is refused.

| model | `clip` | `all` |
| --- | --- | --- |
| Stable Diffusion 1 and 2 | the text encoder | the same |
| SDXL | CLIP-L and CLIP-G | the same |
| SD3, SD3.5 | CLIP-L and CLIP-G | T5 too |
| Flux | CLIP-L, which gives one vector for a whole prompt: a note advises `all` | T5 too, which Flux reads word by word |
| PixArt | T5, with a note: there is no CLIP | T5 |

learned_embeds.safetensors has `{{"<sks>": [1, D]}}` for one text encoder, which `pipe.load_textual_inversion(FILE)` of diffusers
reads. For several it has `{{"clip_l": [1, D], "clip_g": [1, D], "t5": [1, D]}}`, as files for SDXL do; base.json has the token.
nullbooth reads both. With `rows = safetensors.torch.load_file(FILE)` diffusers reads the second in one call for each:

- SDXL: `pipe.load_textual_inversion(rows["clip_l"], token="<sks>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)`,
  and `rows["clip_g"]` with `text_encoder_2` and `tokenizer_2`.
- Flux: the same with `rows["clip_l"]`, and `rows["t5"]` with `text_encoder_2` and `tokenizer_2`.
- SD3 and PixArt have no such method. For each text encoder: `tokenizer.add_tokens("<sks>")`,
  `encoder.resize_token_embeddings(len(tokenizer))`, and
  `encoder.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("<sks>")] = rows["t5"][0]`.

A token that the vocabulary has already (`sks` in CLIP, with `method: full`) is refused by `load_textual_inversion`: load the
pipeline folder.

## The model of any checkpoint

`nullbooth train -c FILE --finish 200` does not train. It writes the result of the checkpoint after 200 steps: pipeline/ or lora/,
README.md and train.json. That works after Ctrl-C, which prints the command, and on any number of processes. Later the same
recipe without `--finish` resumes from the newest checkpoint. Checkpoints of at most 100 MB (those of the embedded model have
2 MB) all stay; of larger ones the last 5 stay. `checkpoints_total_limit` sets another number.

`--push-to-hub ID` uploads the result folder with its card, at the end of a run, or at once if the run is complete. A new
repository is private.
The token and the network are checked before anything is trained. If the upload fails (exit 2 or 5), the same command tries
again and does not train.

## Running again

The same command resumes from the last checkpoint. If all steps are done it says so and exits with 0. A larger
`max_train_steps` continues a finished run, a smaller one is refused. A learning rate that depends on the number of
steps (`lr_scheduler: linear`, `cosine`) follows the new number from there.

- **Ctrl-C and SIGTERM** finish the step and write a checkpoint, on all processes of a launch at the same step; the
  exit code is 130 or 143. A second one stops at once, and loses the steps since the last checkpoint.
- **train.jsonl** loses the lines of steps after the checkpoint, because they are done again. Apart from `seconds` it ends up
  as in a run that was not interrupted.
- **What decides the weights is compared**: settings, pictures and captions, class prompts, the projectors of the
  store, the weights of the model, the number of processes. If one has changed, the run is refused (exit 2) with the
  field, the old and the new value. Inputs are compared by their content, so model, store, pictures and output may be
  moved. These keys do not change the weights, and may differ: {free}.
- **A change on purpose**: `--resume-with learning_rate=1e-4` resumes with another value, and train.json lists every
  such change. It takes {changeable}.
- **A checkpoint is on disk before an older one is removed**, with a digest of each file. A damaged one is refused with
  exit 4, which names the file and what to resume from. When the disk is full, the run ends with exit 5, and earlier ones stay.
- **One run writes an output**: its lock is the file train.lock in it. Other files and folders in it are left alone.
- **Equal to the bit**: a resumed run on the same hardware gives the weights of an uninterrupted one, with every optimizer,
  with a constraint or without.
"""


FILES: dict[str, Callable[[], str]] = {
    "configs/nullbooth.yaml": yaml_file,
    "docs/reference/config.md": config_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/train.md": recipe_page,
    "docs/reference/models.md": architectures.models_page,
    **{f"configs/{name}.yaml": partial(architectures.config_file, name) for name in architectures.NAMES},
}


def main(check: bool) -> int:
    """Write (or check) all files; returns 1 if a check finds one that is out of date."""
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "110"
    made = {name: make() for name, make in FILES.items()}
    old = [name for name, text in made.items() if not (ROOT / name).exists() or (ROOT / name).read_text() != text]
    if not check:
        for name in old:
            (ROOT / name).write_text(made[name])
    for name in old:
        print(f"{name} {'is out of date: run python docs/generate.py' if check else 'written'}")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
