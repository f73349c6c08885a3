"""The options that commands share, each declared once.

Typer reads options from the signature of a command, so every command names the options that it takes, and passes them on in a
`Common` (and a `Control`, if it runs a stage).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "-c", "--config", metavar="FILE", help="Config; else $NULLBOOTH_CONFIG, ./nullbooth.yaml, ./configs/nullbooth.yaml."
    ),
]
StorePath = Annotated[
    str | None,
    typer.Option(
        "-s", "--store", metavar="PATH", help="Store; else $NULLBOOTH_STORE, else the config's. It contains its config."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, such as project.null_dim=40. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; errors as JSON on stderr.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Report which config and store are used.")]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; else CUDA if there is one.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report units, time and bytes of the run; write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Compute again, and replace existing results.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before replacing.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Stop after N units; run again to resume.")]
Repair = Annotated[bool, typer.Option("--repair", help="Read everything that this stage wrote, and redo damaged units.")]
AutoBatch = Annotated[
    bool, typer.Option("--auto-batch", help="Find the largest batch that fits the device, instead of collect.batch_size.")
]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="K/N", help="Do part K of N; run the N jobs on one store, in any order or at once."),
]
Release = Annotated[bool, typer.Option("--release", help="Afterwards, remove the features that the moments were made from.")]
Explore = Annotated[
    bool, typer.Option("--explore", help="Write nothing; show the null spaces that a ladder of thresholds would give.")
]
Sites = Annotated[bool, typer.Option("--sites", help="With --explore: also show every site at every threshold.")]
Plot = Annotated[
    str | None, typer.Option("--plot", metavar="FILE", help="With --explore: draw leakage against null_dim (.png, .svg, .pdf).")
]


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that nearly every command has: config, store, and the form of the answer."""

    config: str | None = None
    store: str | None = None
    overrides: Sequence[str] = ()
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class Control:
    """The options of a command that runs stages."""

    device: str | None = None
    dry_run: bool = False
    force: bool = False
    yes: bool = False
    limit: int | None = None
    repair: bool = False
    auto_batch: bool = False
    shard: str | None = None
    release: bool = False
    explore: bool = False
    sites: bool = False
    plot: str | None = None
