"""`nullbooth inspect --lora`: what finished LoRAs and trained weights do to the preserved prompts of a store, by module."""

import csv
import io
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullbooth_cli.commands import next_command
from nullbooth_cli.commands.session import Session
from nullbooth_cli.commands.tables import table

if TYPE_CHECKING:
    from nullbooth_cli.evaluation.lora_drift import LoraDrift, ModuleDrift
    from nullbooth_cli.report.lora import LoraDocument

MOST = 20  # modules of one file in the table


def answer_loras(session: Session, files: list[str], *, device: str | None, as_csv: bool) -> None:
    """Answer with the drift of each file's modules on the prompts of a finished store."""
    from nullbooth_cli.collect.edited_model import open_before
    from nullbooth_cli.collect.open_model import open_base
    from nullbooth_cli.evaluation.lora_drift import measure
    from nullbooth_cli.report.lora import LoraDocument

    store = session.open_finished()
    base = open_base(session.config, device)
    before, allow_pickle = partial(open_before, session.config, device=device), session.config.allow_pickle
    found = [measure(store, Path(file), base, allow_pickle=allow_pickle, open_before=before) for file in files]
    if as_csv:
        session.terminal.text(_csv(found))
    else:
        session.terminal.answer(LoraDocument(store=session.url, loras=tuple(found)), _draw)
        worst = max(found, key=lambda each: each.largest_drift or 0)
        session.terminal.next(
            *next_command.after_lora(worst.path, session.options, helps=worst.measured > 0 and not worst.is_good)
        )


def _draw(document: "LoraDocument") -> list[Any]:
    from nullbooth_cli.report.lora import lora_lines

    drawn: list[Any] = []
    for lora in document.loras:
        measured = sorted((m for m in lora.modules if m.drift is not None), key=lambda m: -(m.drift or 0))
        if measured:
            drawn.append(_table(measured[:MOST]))
        if len(measured) > MOST:
            drawn.append(f"the {MOST} modules of {len(measured)} that drift most; --json and --csv list all")
        drawn += lora_lines(lora)
    return drawn


def _table(modules: "list[ModuleDrift]") -> Any:
    rows = [
        [
            module.module,
            module.kind,
            "" if module.drift is None else f"{module.drift:.2e}",
            "" if module.heldout_drift is None else f"{module.heldout_drift:.2e}",
            "" if module.inside is None else f"{module.inside:.3f}",
        ]
        for module in modules
    ]
    columns = ["module", "kind", "drift", "held-out", "inside"]
    if not any(row[3] for row in rows):
        columns, rows = columns[:3] + columns[4:], [row[:3] + row[4:] for row in rows]
    return table(columns, rows, right=frozenset(range(2, len(columns))), drop=("kind", "held-out"))


def _csv(loras: "list[LoraDrift]") -> str:
    """A line for each module of each file."""
    from nullbooth_cli.report.json_document import to_json

    text = io.StringIO()
    rows = [
        {"path": lora.path, **to_json(module), "weights": " ".join(module.weights)} for lora in loras for module in lora.modules
    ]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
