"""Random inputs that no user should write: configs, recipes and prompt files, mutated from valid ones by a seed.

`odd_case(seed)` is one case: the files that it is made of, and what reads them.
"""

import json
import os
import random
import string
from dataclasses import dataclass
from pathlib import Path

ODD_TEXTS = (
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\x1b[31mred\x1b[0m", "\u202eabc", "\u2028", "\x85"),
    *("\x0b\x0c\x1c", "\ufeff", "~", "~nobody-of-this-name/x", "$NOT_SET_ANYWHERE", "${NOT_SET_ANYWHERE}/x", "$", "${"),
    *("$$", "~/x", "/", ".", "..", "a" * 300, "a/" * 3000, "é" * 200, "/dev/zero", "/dev/null", "/proc/self/mem"),
    *("/proc/self/environ", "FIFO", "FOLDER", "EMPTY", "s3://", "s3://b/\0", "s3://user:word@bucket/x", "https://x"),
    *("://", "file:///tmp", "[red]x[/red]", "{x}", "%s%n", "*", "!!int", "prompts.csv#", "prompts.csv#\0", "#"),
    *("prompts.txt#x", "1" * 400, "1e400", "nan", "-1", "0x10", "null", "true"),
)
ODD_NUMBERS = (
    *("0", "-1", "1e400", "-1e400", ".nan", ".inf", "-.inf", "1e-400", "9" * 18, "9" * 25, "9" * 5000, "-" + "9" * 30),
    *("1.5", "0.0", "1e5", "010", "0x1F", "1_000", "12:30:45", "2147483648", "4294967296", "9223372036854775807"),
    *("18446744073709551616",),
)
ODD_VALUES = (
    *("[]", "{}", "[[]]", "[null]", "[1, a]", "{a: {b: c}}", "!!binary aGVsbG8=", "!!set {a, b}"),
    *("!!timestamp 2020-01-01", "!!omap [a: 1]", "!!int abc", "!!bool maybe", "!!float x", "!!null x"),
    *("!!python/object:os.system x", "!!python/name:os.system", "!!str [1]", "!!map [1]", "!!seq x", "!custom x"),
    *("!<tag:x> y", "&a [*a]", "&a {b: *a}", "*missing", "&a 1", "? x", "? [1]\n: 2", "| \n  x\n y", "> x", "'", '"'),
    *('"\\ud800"', '"\\0"', '"\\x1b[2J"', '"\\u202e"', '"\\ud83d\\ude00"', "@x", "`x", "%x", "#", "- x", "a: b: c"),
    *("\tx", "...", "---", "--- 1", "[" * 3000, "{a: " * 3000, "- " * 3000, "[" * 40 + "]" * 40, "[" * 60 + "]" * 60),
    *("&a a", "<<: *a", "{<<: {model: x}}"),
)
ODD_KEYS = (
    *("x" * 300, "x" * 100_000, "storage_options.secret", "1", "null", "", "a.b.c", "'\\0'", "? [a]", "<<", "modle", "*"),
    *("é",),
)
CONFIG_LINES = (
    *("model: toy", "revision: null", "variant: fp16", "dtype: float32", "store: runs/x.zarr"),
    *("storage_options: {region: x}", "original_knowledge_prompts: prompts.txt"),
    *("original_knowledge_prompts: [a dog, a cat]", "heldout_prompts: heldout.csv#name"),
    *("schedule:\n  num_denoising_steps: 4", "schedule: {sampler_strategy: DDIM, seed: 3}"),
    *("covariance: {centred: true}", "collect:\n  batch_size: 2\n  height: 64\n  width: 64"),
    *("collect: {latents: images, images: FOLDER}", "collect: {seed: 1}"),
    *("collect: {attention_prompts: [a dog], tokens_per_prompt: 8}",),
    *("project:\n  null_dim: 4\n  relative_threshold: null", "project: {scope: timestep}"),
    *("project: {timesteps: [200, 600]}", "project: {energy: 0.9}", "local_files_only: true"),
)
RECIPE_LINES = (
    *("model: toy", "output: runs/trained", "store: null", "instance_images: FOLDER", "instance_prompt: a dog"),
    *("method: lora", "features: [k, v]", "rank: 8", "class_prompts: prompts.txt", "class_images: 4", "distill_captions: empty"),
    *("learning_rate: 1e-3", "word: sks", "lr_scheduler: constant", "max_train_steps: 10", "train_batch_size: 2"),
    *("adam_weight_decay: 0.01", "seed: 0", "max_grad_norm: 1.0", "mixed_precision: bf16", "checkpointing_steps: 5"),
    *("validation_prompts: [a dog]", "guidance_scale: 7.5"),
)
PROMPT_FILES = {
    "p.txt": "a dog\na cat\n\na bird on a roof\n",
    "p.csv": 'id,prompt\n1,"a dog, running"\n2,a cat\n',
    "p.tsv": 'id\tprompt\n1\ta dog, running\n2\t"a cat"\n',
    "p.jsonl": '{"prompt": "a dog"}\n"a cat"\n',
    "p.json": '{"annotations": [{"caption": "a dog"}, {"caption": "a cat"}]}',
    "list.json": '["a dog", {"prompt": "a cat"}]',
    "p.yaml": "- a dog\n",
    "captions/metadata.jsonl": '{"file_name": "a.png", "text": "a dog"}\n',
}
ODD_BYTES = (
    *(b"\0", b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"\x0b", b"\x1b[2J", b"\r"),
    *(b"\xef\xbb\xbf", b'"', b"\t", b","),
)

ODD_LINES = (
    *('{"prompt": 1}', '{"prompt": "\\ud800"}', '{"prompt": "a", "prompt": "b"}', '"\\u0000"', "NaN", "9" * 5000),
    *("[" * 100_000, '{"a":' * 100_000, '[["a"]]', '{"annotations": {}}', '{"annotations": [[]]}', "a,b,c,d"),
    *("a\tb\tc\td", '"' * 3, "x" * 200_000, "a dog\x85a cat", "a dog\u2028a cat", "a dog\x0ba cat", "a dog\x1ca cat"),
    *("(word:1.3)", "((word))", "BREAK", "<lora:x:1>"),
)


@dataclass(frozen=True)
class Case:
    """One input: `kind` is config, recipe or prompts, `name` its file, `content` its bytes, `overrides` its `--set` values."""

    kind: str
    name: str
    content: bytes
    overrides: tuple[str, ...] = ()


def odd_case(seed: int) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    kind = draw.choice(("config", "config", "recipe", "prompts", "prompts"))
    if kind == "prompts":
        name = draw.choice(list(PROMPT_FILES))
        content = draw.choice((_mutated_bytes, _mutated_prompts))(draw, PROMPT_FILES[name])
        return Case(kind, name, content)
    lines = draw.sample(CONFIG_LINES if kind == "config" else RECIPE_LINES, draw.randint(1, 7))
    text = draw.choice((_odd_line, _odd_line, _odd_line, _explosive, _as_it_is))(draw, lines)
    content = _mutated_bytes(draw, text) if draw.random() < 0.2 else text.encode("utf-8", "surrogatepass")
    overrides = tuple(_override(draw, lines) for _ in range(draw.choice((0, 0, 1, 2))))
    return Case(kind, f"{kind}.yaml", content, overrides)


def make_odd_places(folder: Path) -> None:
    """What the names FOLDER, FIFO and EMPTY of the cases mean, with good prompt files beside them."""
    (folder / "FOLDER").mkdir()
    (folder / "EMPTY").write_text("")
    (folder / "captions").mkdir()
    os.mkfifo(folder / "FIFO")
    (folder / "prompts.txt").write_text(PROMPT_FILES["p.txt"])
    (folder / "heldout.csv").write_text("name\na fox\n")


def _as_it_is(_: random.Random, lines: list[str]) -> str:
    return "\n".join(lines)


def _odd_value(draw: random.Random) -> str:
    found = draw.choice((ODD_TEXTS, ODD_NUMBERS, ODD_VALUES, ODD_TEXTS))
    value = draw.choice(found)
    if found is ODD_TEXTS and draw.random() < 0.5:
        return json.dumps(value)  # also reaches the characters that YAML takes only as escapes
    return value


def _odd_line(draw: random.Random, lines: list[str]) -> str:
    """One to three lines changed: another value, another key, a repetition, a line in the wrong place."""
    made = list(lines)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(made))
        made[place] = _changed(draw, made[place], draw.choice(made))
    return "\n".join(made)


def _changed(draw: random.Random, line: str, other: str) -> str:
    key, _, value = line.partition(":")
    match draw.randrange(8):
        case 0 | 1:
            return f"{key}: {_odd_value(draw)}"
        case 2:
            return f"{value.strip() or key}: {{{_odd_value(draw)}: {_odd_value(draw)}}}"
        case 3:
            return f"{_odd_key(draw)}:{value}"
        case 4:
            return f"{key}: {{{_odd_key(draw)}: {_odd_value(draw)}}}"
        case 5:
            return f"{line}\n{other}"
        case 6:
            return line.replace(":", draw.choice((": ", ":", " :", "=", ":\t")), 1)
        case _:
            return f"  {line}"


def _override(draw: random.Random, lines: list[str]) -> str:
    """A value of `--set`, nearly always odd in its key, its value, or its form."""
    key = draw.choice(
        (draw.choice(lines).partition(":")[0], _odd_key(draw)[:400], "collect.height", "project.null_dim", "a." * 500)
    )
    return draw.choice(
        (f"{key}={_odd_value(draw)}", f"{key}.x={_odd_value(draw)}", key, f" {key} = {_odd_value(draw)}", f"={key}")
    )


def _odd_key(draw: random.Random) -> str:
    return draw.choice(ODD_KEYS)


def _explosive(draw: random.Random, lines: list[str]) -> str:
    """Small files that are large once they are read."""
    count = draw.randint(2, 60)
    bomb = ["l0: &l0 [x, x, x]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, count))]
    wide = (
        [f"k{i}: {i}" for i in range(20_000)]
        if draw.random() < 0.3
        else [f"{draw.choice(string.ascii_letters)}: 1" for _ in range(9)]
    )
    deep = [f"{' ' * i}k:" for i in range(draw.randint(20, 400))]
    long = [f"model: {'x' * 1_000_000}"]
    aliases = ["model: &m " + "y" * 100_000, f"heldout_prompts: [{', '.join(['*m'] * 400)}]"]
    return "\n".join([*draw.choice((bomb, bomb, wide, deep, long, aliases)), *draw.sample(lines, draw.randint(0, len(lines)))])


def _mutated_bytes(draw: random.Random, text: str) -> bytes:
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw.randint(1, 4)):
        place = draw.randint(0, len(data))
        what = draw.randrange(6)
        if what == 0:
            data[place:place] = draw.choice(ODD_BYTES) * draw.choice((1, 1, 300))
        elif what == 1:
            del data[place : place + draw.randint(1, 20)]
        elif what == 2 and data:
            data[min(place, len(data) - 1)] = draw.randrange(256)
        elif what == 3:
            data[place:place] = data[draw.randint(0, len(data)) :][:200]
        elif what == 4:
            data = bytearray(data.decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-16-le", "utf-8-sig", "utf-32"))))
        else:
            del data[place:]
    return bytes(data)


def _mutated_prompts(draw: random.Random, text: str) -> bytes:
    odd = draw.choice(ODD_TEXTS + ODD_LINES)
    where = draw.randrange(4)
    made = (odd, text + odd, odd + "\n" + text, text.replace("a dog", odd))[where]
    return made.encode("utf-8", "surrogatepass")
