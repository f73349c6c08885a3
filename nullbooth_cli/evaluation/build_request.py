"""Builds the request of an evaluation from what a caller names: models, prompts, a subject, an edit, another base."""

from collections.abc import Mapping, Sequence

from nullbooth_cli.datatypes import Prompt
from nullbooth_cli.evaluation.edited_prompts import EditedPrompts
from nullbooth_cli.evaluation.pictures import PictureSpec
from nullbooth_cli.evaluation.request import NUM_PROMPTS, SUBJECT_IMAGES, EvaluationRequest, edited_specs, picture_sets
from nullbooth_cli.evaluation.subject import Subject, taught_subject
from nullbooth_cli.model.edit_file import edited_pairs


def build_request(
    edited: Sequence[str],
    preserved: Mapping[str, Sequence[Prompt]],
    *,
    subject: Subject,
    edits: EditedPrompts | None = None,
    base: str | None = None,
    num_prompts: int = NUM_PROMPTS,
    subject_images: int = SUBJECT_IMAGES,
    encoders: Mapping[str, str],
    device: str | None,
    batch_size: int,
) -> EvaluationRequest:
    """The request with the sets of `picture_sets`; with a `base`, also one of what it was taught or edited before.

    Raises as `EvaluationRequest`, and as `taught_subject` for the base.
    """
    everything = [prompt for prompts in preserved.values() for prompt in prompts]
    earlier: tuple[PictureSpec, ...] = ()
    if base is not None:
        earlier = earlier_specs(base, subject.prompts, edits, num_prompts=num_prompts, subject_images=subject_images)
    return EvaluationRequest(
        edited=tuple(edited),
        sets=picture_sets(
            preserved,
            subject.prompts,
            num_prompts=num_prompts,
            subject_images=subject_images,
            edits=edits,
            earlier=earlier,
        ),
        base=base,
        num_left_out=0 if edits is None else len(everything) - len(edits.rest(everything)),
        encoders=encoders,
        instances=subject.instances,
        no_instances=subject.missing,
        device=device,
        batch_size=batch_size,
    )


def earlier_specs(
    base: str, subject: Sequence[Prompt], edits: EditedPrompts | None, *, num_prompts: int, subject_images: int
) -> tuple[PictureSpec, ...]:
    """Pictures of what a base was taught and edited before: as many as `picture_sets` has of a subject and of an edit.

    Without the prompts of the `subject` that is measured, and without prompts that the `edits` gave other targets.
    """
    taught = [prompt for prompt in taught_subject([base]).prompts if prompt not in subject]
    changed = {} if edits is None else edits.pairs
    pairs = {source: of for source, of in (edited_pairs(base) or {}).items() if changed.get(source, of) == of}
    drawn = (PictureSpec(prompt, number) for prompt in taught for number in range(subject_images))
    return (*drawn, *edited_specs(pairs, num_prompts, subject_images))
