"""The command `nullbooth remember`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nullbooth_cli.commands.options import AsJson, Common, ConfigFile, Device, Overrides, Quiet, StorePath, Verbose

if TYPE_CHECKING:
    from nullbooth_cli.commands.session import Session
    from nullbooth_cli.pipeline.remember import RememberRequest
    from nullbooth_cli.report.answers import ForgetAnswer, RememberAnswer, RememberPlan

Place = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="What was taught: a training output, checkpoint, edit, pipeline folder or LoRA."),
]
Prompts = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", help="Prompts that use it, or files of them (default: the captions of its training run)."),
]
Word = Annotated[
    str | None, typer.Option("--word", metavar="TEXT", help='Word and noun, such as "sks dog": adds some 150 prompts around it.')
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the task (default: that of the run, file or folder).")
]
Weight = Annotated[int, typer.Option("--weight", metavar="N", help="How many preserved tokens each token of it counts as.")]
Soft = Annotated[
    bool | None,
    typer.Option("--soft/--hard", help="Only later edits weigh it, or no change may move it. An edit: soft; all else: hard."),
]
Forget = Annotated[str | None, typer.Option("--forget", metavar="TASK", help="Take a task out of the store again, exactly.")]
Preview = Annotated[bool, typer.Option("--dry-run", help="Check the request, and show its prompts; write nothing.")]
SHOWN = 20  # prompts of a dry run


def remember(
    model: Place = None,
    prompts: Prompts = None,
    word: Word = None,
    name: Name = None,
    weight: Weight = 1,
    soft: Soft = None,
    forget: Forget = None,
    dry_run: Preview = False,
    config: ConfigFile = None,
    store: StorePath = None,
    overrides: Overrides = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Preserve what a model was taught or edited, for the next change.

    Records the prompts on the changed MODEL into the store, as a task, and computes the projectors again: what is taught next
    is constrained by the preserved prompts and by every task. The answer has the budget: what each task took of the null space,
    and how much of its own energy it met there.

    Example: nullbooth remember runs/dog -s run.zarr

    Example: nullbooth remember dog.safetensors "a photo of sks dog" --word "sks dog" --name dog -s run.zarr

    Example: nullbooth remember --forget dog -s run.zarr
    """
    from nullbooth_cli.commands import next_command
    from nullbooth_cli.commands.prompt_options import prompts_to_use
    from nullbooth_cli.commands.session import start
    from nullbooth_cli.commands.signals import follow
    from nullbooth_cli.editing.remember import request_of
    from nullbooth_cli.errors import ConfigError
    from nullbooth_cli.pipeline.remember import forget_events, remember_events
    from nullbooth_cli.report.answers import ForgetAnswer, RememberAnswer

    if (model is None) is (forget is None):
        raise ConfigError(
            "no model is named" if model is None else "--forget names a task, and no model",
            "name what was taught, or --forget a task" if model is None else "give one command for each",
        )
    common = Common(config=config, store=store, overrides=overrides or (), as_json=as_json, quiet=quiet, verbose=verbose)
    if forget is not None:
        if prompts or word or name or weight != 1 or soft is not None or dry_run:
            raise ConfigError("--forget takes the name of a task alone", "leave prompts and the other options out")
        session = start(common)
        follow(session.terminal, lambda interrupts: forget_events(session.config, forget, device=device, interrupts=interrupts))
        session.terminal.answer(ForgetAnswer(store=session.url, task=forget, tasks=session.tasks()), _draw)
    else:
        assert model is not None
        texts = prompts_to_use(prompts or [], None, "PROMPT")
        session = start(common)
        request = request_of(session.config, model, texts, word=word, name=name, weight=weight, soft=soft)
        if dry_run:
            _preview(session, request)
            return
        follow(session.terminal, lambda found: remember_events(session.config, request, device=device, interrupts=found))
        answer = RememberAnswer(**_asked(session, request), tasks=session.tasks())
        session.terminal.answer(answer, _draw)
    session.terminal.next(*next_command.after_a_stage({}, session.options, session.url))


def _asked(session: "Session", request: "RememberRequest") -> dict[str, Any]:
    """The request, as both answers have it."""
    return {
        "store": session.url,
        "task": request.name,
        "kind": request.kind,
        "weight": request.weight,
        "prompts": request.prompts,
    }


def _preview(session: "Session", request: "RememberRequest") -> None:
    """Answer with what would be done."""
    from nullbooth_cli.pipeline.remember import plan_remember
    from nullbooth_cli.report.answers import RememberPlan

    state = plan_remember(session.config, request)
    session.terminal.answer(RememberPlan(**_asked(session, request), state=state), _draw_plan)


def _draw_plan(plan: "RememberPlan") -> list[Any]:
    from nullbooth_cli.formatting import counted

    does = {
        "new": "would remember",
        "unfinished": "would resume",
        "damaged": "would record again",
        "remembered": "remembers already",
    }[plan.state]
    more = [f"  and {len(plan.prompts) - SHOWN} more"] if len(plan.prompts) > SHOWN else []
    return [
        f"{plan.store} {does} {plan.task} ({plan.kind}, weight {plan.weight}) by {counted(len(plan.prompts), 'prompt')}:",
        *(f"  {prompt}" for prompt in plan.prompts[:SHOWN]),
        *more,
    ]


def _draw(answer: "RememberAnswer | ForgetAnswer") -> list[Any]:
    from nullbooth_cli.commands.draw_tasks import budget_line, draw_tasks

    line = budget_line(answer.tasks)
    return [*(draw_tasks(answer.tasks) or [f"{answer.store} remembers no task"]), *([line] if line else [])]
