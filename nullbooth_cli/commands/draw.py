"""Documents of the stages as lines and tables."""

from typing import Any

from nullbooth_cli.commands.tables import table
from nullbooth_cli.formatting import aligned, duration, operations, size


def draw_schedule(document: dict[str, Any]) -> Any:
    timesteps = aligned([step["timestep"] for step in document["steps"]])
    rows = [
        [str(step["index"]), step["key"], timestep, "" if step["sigma"] is None else f"{step['sigma']:.4f}"]
        for step, timestep in zip(document["steps"], timesteps, strict=True)
    ]
    return table(["step", "key", "timestep", "sigma"], rows, right=frozenset({0, 2, 3}))


def warnings_of(document: dict[str, Any]) -> list[str]:
    """What makes some of the projectors doubtful, each with the sites that it is said of."""
    sites: dict[str, list[str]] = {}
    for site in document.get("sites", []):
        for warning in site["warnings"]:
            at = "" if site["timestep"] is None else f" {site['key']}"
            sites.setdefault(warning, []).append(f"{site['layer']}.{site['feature']}{at}")
    return [
        f"{warning}: {names[0]}" + (f" and {len(names) - 1} more sites (--json names them)" if len(names) > 1 else "")
        for warning, names in sites.items()
    ]


def draw_summary(document: dict[str, Any]) -> str:
    totals, rule = document["totals"], document["rule"]
    held = totals["largest_heldout_leakage"]
    heldout = "" if held is None else f", on held-out prompts {held:.2g}"
    return (
        f"{document['store']}: {totals['sites']} sites for {totals['weights']} weights, {rule['name']} {rule['value']:g}: "
        f"{totals['null_dim']} of {totals['dim']} dimensions are null, leakage at most {totals['largest_leakage']:.2g}" + heldout
    )


def draw_stage(document: dict[str, Any]) -> str:
    return (
        f"{document['store']}: {document['stage']} {document['state']}, "
        f"{document['units_done']} of {document['units_total']} units, {size(document['bytes'])}"
    )


def draw_plans(document: dict[str, Any]) -> Any:
    rows = [
        [
            plan["stage"],
            str(plan["units_done"]),
            str(plan["units_total"] - plan["units_done"]),
            "?" if plan["seconds"] is None else duration(plan["seconds"]),
            "" if plan["operations"] is None else operations(plan["operations"]),
            size(plan["bytes_needed"]),
            "?" if plan["bytes_free"] is None else size(plan["bytes_free"]),
            plan["device"],
            size(plan["device_bytes_needed"]),
            size(plan["device_bytes_free"]),
        ]
        for plan in document["stages"].values()
    ]
    columns = ["stage", "done", "to do", "time", "operations", "needs", "free", "device", "sums there", "free there"]
    return table(
        columns, rows, right=frozenset({1, 2, 3, 4, 5, 6, 8, 9}), drop=("operations", "sums there", "free there", "device")
    )
