"""The model card of a training run: README.md in its output, and in the repository that it is pushed to.

It has the base, the tags and the prompt as the hub reads them, code that loads the result, and what the result preserves.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from nullbooth_cli.evaluation.verdict import Verdict
from nullbooth_cli.formatting import counted, percent
from nullbooth_cli.model.after import After
from nullbooth_cli.model.families import family_of
from nullbooth_cli.model.sources import SAFE
from nullbooth_cli.model.trained_files import Base
from nullbooth_cli.model.words import WORD_FILE, tokenizer_of
from nullbooth_cli.settings.recipe import Recipe
from nullbooth_cli.training import durable
from nullbooth_cli.training.output import TrainingResult

CARD = "README.md"
INVERTIBLE = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "FluxPipeline")  # they have `load_textual_inversion`


def write(recipe: Recipe, result: TrainingResult, verdicts: Sequence[Verdict] = ()) -> Path:
    """Write the card into the output; one that is there is replaced. Raises ResourceError if that fails."""
    path = Path(recipe.output) / CARD
    with durable.replacing(path) as partial:
        partial.write_text(model_card(recipe, result, verdicts), encoding="utf-8")
    return path


def model_card(recipe: Recipe, result: TrainingResult, verdicts: Sequence[Verdict] = (), place: str | None = None) -> str:
    """The card, whose code loads the result from `place`: a hub id, or (None) the folder that it was written to."""
    from huggingface_hub import ModelCard, ModelCardData

    is_on_hub = "/" in recipe.model and not Path(recipe.model).expanduser().exists()
    data = ModelCardData(
        base_model=recipe.model if is_on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "diffusers", *(["lora"] if result.method == "lora" else []), "dreambooth", "nullbooth"],
        instance_prompt=result.instance_prompt,
    )
    kind = "a LoRA" if result.method == "lora" else "a pipeline"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_in_line(result.instance_prompt)}",
        f"This is {kind} of {recipe.model}, taught a subject with nullbooth in {counted(result.steps, 'step')}."
        + (f" Write {_in_line(result.token)} in prompts." if result.token else "")
        + (f" It was trained after {_in_line(before.place)}, and goes on top of it." if (before := _below(result)) else ""),
        f"## Load it\n\n```python\n{_code(recipe, result, place or result.output)}\n```",
        f"## What it preserves\n\n{_preserved(result)}",
    ]
    if verdicts:
        parts.append("## Learned and forgotten\n\n" + "\n".join(f"- {verdict.text}" for verdict in verdicts))
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _in_line(text: str) -> str:
    """A text as Markdown's code, on one line: outside of code, `<sks>` would be a tag."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inside = " ".join(text.split())
    return f"{fence} {inside} {fence}" if "`" in text else f"{fence}{inside}{fence}"


def _literal(text: str) -> str:
    """A text as Python writes it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)  # the escapes of JSON for an emoji are two halves to Python


def _word(token: str, parts: Mapping[str, str], file: str) -> list[str]:
    """Code that gives each text encoder its row of a word."""
    rows = dict.fromkeys([token], *parts.values()) if len(parts) == 1 else parts
    each = [f"({_literal(row)}, pipe.{tokenizer_of(part)}, pipe.{part})" for row, part in rows.items()]
    return [
        f"words = load_file({file})",
        f"for row, tokenizer, encoder in [{', '.join(each)}]:",
        f"    tokenizer.add_tokens({_literal(token)})",
        "    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)",
        f"    token = tokenizer.convert_tokens_to_ids({_literal(token)})",
        "    encoder.get_input_embeddings().weight.data[token] = words[row][0]",
    ]


def _below(result: TrainingResult) -> After | None:
    """The earlier model that a result goes on top of; a pipeline has all of it, and needs none."""
    return result.after if result.method == "lora" else None


def _code(recipe: Recipe, result: TrainingResult, place: str) -> str:
    draws = [f"picture = pipe({_literal(result.instance_prompt)}).images[0]", 'picture.save("picture.png")']
    if _below(result):
        named = {key: value for key, value in asdict(Base.of(recipe)).items() if value is not None}
        base = ", ".join(f"{key}={_literal(value)}" for key, value in named.items())
        imports = [
            "from nullbooth_cli.collect.edited_model import load_edited",
            "from nullbooth_cli.settings.config import Config",
        ]
        loads = [f"pipe = load_edited(Config({base}), {_literal(place)}, None)  # with what it was trained after"]
        return "\n".join([*imports, "", *loads, *draws])
    loads = [f"pipe = {result.pipeline}.from_pretrained({_literal(place)}, dtype=torch.float32)"]
    imports = ["import torch", f"from diffusers import {result.pipeline}"]
    if result.method == "lora":
        base, how = _literal(recipe.model), "from_pretrained"
        if recipe.model == "toy":
            imports.append("from nullbooth_cli import toy")
            base = "toy.FOLDER"
        elif recipe.model.endswith(SAFE):
            how = "from_single_file"
        named = {"revision": recipe.revision, "variant": recipe.variant, "config": recipe.pipeline_config}
        options = "".join(f", {key}={_literal(value)}" for key, value in named.items() if value is not None)
        loads = [
            f"pipe = {result.pipeline}.{how}({base}{options}, dtype=torch.float32)",
            f"pipe.load_lora_weights({_literal(place)})"
            if family_of(result.pipeline).loads_lora
            else f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {_literal(place)})",
        ]
        if not family_of(result.pipeline).loads_lora:
            imports.append("from peft import PeftModel")
        if result.token and result.pipeline in INVERTIBLE and len(result.word_in or "1") == 1:
            loads.append(f"pipe.load_textual_inversion({_literal(place)}, weight_name={_literal(WORD_FILE)})")
        elif result.token and result.word_in:
            imports.append("from safetensors.torch import load_file")
            file = _literal(f"{place}/{WORD_FILE}")
            if place != result.output:
                imports.append("from huggingface_hub import hf_hub_download")
                file = f"hf_hub_download({_literal(place)}, {_literal(WORD_FILE)})"
            loads += _word(result.token, result.word_in, file)
    return "\n".join([*imports, "", *loads, *draws])


def _preserved(result: TrainingResult) -> str:
    if result.preserved is None or result.largest_drift is None:
        return "Nothing was preserved: it was trained without a constraint."
    threshold = f", cut at {result.preserved.threshold}" if result.preserved.threshold else ""
    return (
        f"The outputs of the trained weights on {counted(result.preserved.prompts, 'prompt')}, by the projectors in "
        f"{result.constrained_by}{threshold}. They moved by {percent(result.largest_drift)} of their size at most."
    )
