"""The reason that each missing quantity of an evaluation was not measured."""

from nullbooth_cli.evaluation.answer import EDITED, PARAPHRASES, SUBJECT, ModelAnswer
from nullbooth_cli.evaluation.compare import FEWEST
from nullbooth_cli.evaluation.draw_models import DrawnBase
from nullbooth_cli.evaluation.encoders import FeatureSpaces
from nullbooth_cli.evaluation.instance_loss import NO_LOSS
from nullbooth_cli.evaluation.request import OF_EDIT, EvaluationRequest
from nullbooth_cli.evaluation.subject import NO_PICTURES, NO_PROMPT


def not_measured(
    request: EvaluationRequest, spaces: FeatureSpaces, first: ModelAnswer, *, is_toy: bool, base: DrawnBase
) -> dict[str, str]:
    """The reasons by quantity, for the first edited model. An edit without a subject is not asked what it learned."""
    why = dict(spaces.missing)
    if spaces.alignment is None and "clip" not in why:
        why["text_alignment"] = "the CLIP folder has no tokenizer"
    if not is_toy:
        why["captions_right"] = "only drawings of the embedded model can be read back exactly"
    if SUBJECT in request.sets or EDITED not in request.sets:
        why |= _of_subject(request, first, base)
    if first.edit is not None and PARAPHRASES not in request.sets:
        why["generalisation"] = "there is no paraphrase of an edited prompt"
    if first.edit is not None and first.edit.specificity is None:
        why["specificity"] = "every other prompt contains an edited prompt"
    if base.no_drift is not None:
        why["drift"] = base.no_drift
    for name, specs in request.sets.items():
        if len(specs) < FEWEST and name not in OF_EDIT:
            why[f"distributions of {name}"] = f"{len(specs)} pictures are too few to compare distributions: it takes {FEWEST}"
    return why


def _of_subject(request: EvaluationRequest, first: ModelAnswer, base: DrawnBase) -> dict[str, str]:
    why = {}
    if SUBJECT not in request.sets:
        why["subject"] = NO_PROMPT
    elif not request.instances:
        why["instances"] = request.no_instances or NO_PICTURES
    elif not base.has_loss:
        why["instance_loss"] = NO_LOSS
    if not any(verdict.question == "learned" for verdict in first.verdicts):
        no_scale = f"no feature space gives a scale for the pictures of the subject, and {NO_LOSS}"
        why["learned"] = why.get("subject") or why.get("instances") or no_scale
    return why
