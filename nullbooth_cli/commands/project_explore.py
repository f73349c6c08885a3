"""`nullbooth project --explore`: a ladder of thresholds, and nothing written."""

from typing import Any

from nullbooth_cli.commands.session import Session
from nullbooth_cli.commands.tables import shortened, table
from nullbooth_cli.formatting import aligned
from nullbooth_cli.pipeline.project import decomposing, decomposition_basis
from nullbooth_cli.pipeline.state import require, stage_states
from nullbooth_cli.report import documents


def explore(session: Session, device: str | None, plot: str | None) -> None:
    from nullbooth_cli.model.device import pick_device
    from nullbooth_cli.nullspace.decompose import spectra
    from nullbooth_cli.report.plots import canvas, ladder

    if plot:
        canvas.check_picture(plot)
    store = session.open()
    require(stage_states(session.config, session.prompts, store), "covariance", session.url)
    current = store.records.get("decomposition") == decomposition_basis(session.config, store)
    found = spectra(
        store,
        pick_device(device),
        decomposing(session.config, store),
        stored=current and bool(store.progress.done("decomposition").all()),
    )
    document = documents.explore_document(session.config, store, found)
    if plot:
        ladder.draw_ladder(document, plot)
        session.terminal.note(f"drawn: {plot}")
    session.terminal.answer(document, _draw)


def _draw(document: dict[str, Any]) -> Any:
    rule, rungs = document["rule"]["name"], document["ladder"]
    layers, ending = shortened([site["layer"] for site in rungs[0]["sites"]])
    values = aligned([rung["value"] for rung in rungs])
    rows, last = [], len(rungs[0]["sites"]) - 1
    for i, layer in enumerate(layers):
        for rung, value in zip(rungs, values, strict=True):
            site = rung["sites"][i]
            rows.append(
                [
                    layer,
                    site["feature"],
                    site["key"],
                    value,
                    str(site["null_dim"]),
                    str(site["dim"]),
                    *_leakages(site),
                ]
            )
        if i != last:
            rows.append([""] * len(rows[0]))
    columns = ["layer", "feature", "timestep", rule, "null_dim", "dim", "leakage", "held-out", ""]
    by_site = table(columns, rows, right=frozenset({3, 4, 5, 6, 7}), drop=("dim", "timestep", "held-out"))
    totals = [
        [
            value + (" *" if rung["value"] == document["rule"]["value"] else "  "),
            str(rung["null_dim"]),
            f"{100 * rung['null_dim'] / rung['dim']:.1f} %",
            *_leakages(
                {"leakage": rung["largest_leakage"], "heldout_leakage": rung["largest_heldout_leakage"], "below_noise": 0}
            )[:2],
            str(rung["empty"]),
            str(rung["below_noise"]),
        ]
        for rung, value in zip(rungs, values, strict=True)
    ]
    in_total = table(
        [rule, "null_dim", "share", "largest leakage", "held-out", "empty sites", "below noise"],
        totals,
        right=frozenset(range(7)),
        drop=("share", "empty sites"),
    )
    notes = [f"layers end in {ending}"] if ending else []
    if not document["heldout"]:
        notes.append(
            "no held-out prompts: set heldout_prompts and collect again to measure leakage on prompts that were not collected"
        )
    return [by_site, *notes, "", f"{document['store']}, all sites (* is in force):", in_total]


def _leakages(site: dict[str, Any]) -> list[str]:
    heldout = "" if site["heldout_leakage"] is None else f"{site['heldout_leakage']:.2e}"
    return [f"{site['leakage']:.2e}", heldout, "below the noise floor" if site["below_noise"] else ""]
