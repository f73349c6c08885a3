"""The command `nullbooth evaluate`."""

from typing import Annotated

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

Edited = Annotated[
    str,
    typer.Argument(metavar="EDITED", help="A pipeline folder, hub id, training run, checkpoint, or LoRAs (LORA@0.8, ONE+OTHER)."),
]
Against = Annotated[
    list[str] | None, typer.Option("--against", metavar="OTHER", help="Another edited model beside it. Repeatable.")
]
PromptsFile = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE", help="Measure preservation on these, not on the preserved and held-out prompts."),
]
Subject = Annotated[
    list[str] | None,
    typer.Option("--subject", metavar="TEXT", help="A prompt of the subject that the model learned. Repeatable."),
]
SubjectFile = Annotated[str | None, typer.Option("--subject-prompts", metavar="FILE", help="The same, from a file.")]
Instances = Annotated[str | None, typer.Option("--instances", metavar="DIR", help="Pictures that the subject was learned from.")]
EditsFile = Annotated[
    str | None,
    typer.Option("--edits", metavar="FILE", help="The edited prompts, as for edit --pairs; else those in its edit.json."),
]
Paraphrases = Annotated[
    str | None,
    typer.Option("--paraphrases", metavar="FILE", help="Other wordings of them, as for edit --pairs; else made ones."),
]
BaseModel = Annotated[
    str | None, typer.Option("--base", metavar="MODEL", help="Compare with this model, which may be an edited one itself.")
]
NumPrompts = Annotated[
    int, typer.Option("--num-prompts", min=1, metavar="N", help="At most N preserved and at most N held-out prompts.")
]
SubjectImages = Annotated[
    int, typer.Option("--subject-images", min=1, max=1000, metavar="N", help="Pictures of each subject prompt.")
]
Features = Annotated[
    list[str] | None,
    typer.Option("--features", metavar="NAME=FOLDER", help="Weights of clip or dino; else those in the hub's cache."),
]
Checkpoints = Annotated[
    bool, typer.Option("--checkpoints", help="Measure every checkpoint of EDITED, a training output, and name the best.")
]
Html = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write one page with tables and pictures.")]
Images = Annotated[str | None, typer.Option("--images", metavar="DIR", help="Write every picture into a folder.")]


def evaluate(
    edited: Edited,
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    against: Against = None,
    prompts: PromptsFile = None,
    subject: Subject = None,
    subject_prompts: SubjectFile = None,
    instances: Instances = None,
    edits: EditsFile = None,
    paraphrases: Paraphrases = None,
    base: BaseModel = None,
    num_prompts: NumPrompts = 48,
    subject_images: SubjectImages = 16,
    features: Features = None,
    checkpoints: Checkpoints = False,
    html: Html = None,
    images: Images = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what an edited model forgot and learned.

    The edited model and its base draw the same prompts from the same noise; a distance of 1 is that between two seeds of the
    base.

    For a model that `nullbooth train` made, the subject, its pictures and, where no config is there, the store are known. For any
    other, name the subject and its pictures to measure what was learned.

    For a model that `nullbooth edit` made, the answer has efficacy (edited prompts draw their targets), generalisation
    (paraphrases do) and specificity (other prompts stay).

    Example: nullbooth evaluate runs/toy-sks -s runs/words.zarr --html report.html

    Example: nullbooth evaluate trained -s runs/toy.zarr --subject "a sks circle on a red background" --instances pictures

    Example: nullbooth evaluate runs/toy-sks -s runs/words.zarr --checkpoints

    Example: nullbooth evaluate edited -s runs/toy.zarr

    Example: nullbooth evaluate runs/cat --base runs/dog -s runs/pets.zarr
    """
    from nullbooth_cli.commands.evaluate_models import EvaluateOptions, evaluate_models

    options = EvaluateOptions(
        models=(edited, *(against or ())),
        prompts=prompts,
        subject=tuple(subject or ()),
        subject_prompts=subject_prompts,
        instances=instances,
        edits=edits,
        paraphrases=paraphrases,
        base=base,
        num_prompts=num_prompts,
        subject_images=subject_images,
        features=tuple(features or ()),
        checkpoints=checkpoints,
        html=html,
        images=images,
        device=device,
    )
    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    evaluate_models(common, options)
