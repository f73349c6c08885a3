"""The table of an evaluation: one row a quantity, every model side by side."""

from dataclasses import replace

from nullbooth_cli.evaluation.answer import InstanceLoss, InstanceSimilarity
from nullbooth_cli.evaluation.summary import QUANTITIES, SummaryRow, summary
from tests.support.evaluations import comparison, edit_scores, of_subject, report


def test_models_are_side_by_side() -> None:
    rows = summary(report(["p", "q"], ["one", "two"], [0.5, 0.25]))
    assert SummaryRow("preserved", "latent MSE", (2.0, 0.5, 0.25)) in rows
    assert SummaryRow("subject", "latent MSE, of another seed's", (1.0, 0.25, 0.125)) in rows
    assert SummaryRow("preserved", "captions drawn right (base 1)", (0.25, 0.25, 0.25)) in rows
    assert {row.quantity for row in rows} >= {f"latents: {label}" for label in QUANTITIES.values()}


def test_what_nothing_has_is_left_out() -> None:
    quantities = {row.quantity for row in summary(report(["p"], ["one"], [0.5]))}
    assert not quantities & {"LPIPS", "PSNR, dB", "CLIP: cosine with the prompt"}


def test_what_one_model_has_is_shown() -> None:
    found = report(["p"], ["one"], [0.5])
    rows = summary(replace(found, preservation={"preserved": replace(found.preservation["preserved"], psnr=30.0)}))
    assert SummaryRow("preserved", "PSNR, dB", (None, 30.0)) in rows


def test_instances_are_rows_of_the_subject() -> None:
    found = report(["p"], ["one"], [0.5])
    cosines = [{"latents": InstanceSimilarity(0.1, value, 0.8)} for value in (0.2, 0.9)]
    baseline, subject = (of_subject(comparison(["s"], 1.0), each) for each in cosines)
    rows = summary(replace(found, subject=subject, baseline={**found.baseline, "subject": baseline}))
    assert SummaryRow("subject", "latents: cosine with the instances (base 0.1)", (0.2, 0.9)) in rows
    assert not [row for row in rows if row.prompts == "preserved" and "instances" in row.quantity]


def test_what_was_learned_is_in_the_rows_of_the_subject() -> None:
    found = report(["p"], ["one"], [0.5])
    loss = InstanceLoss(base=0.4, edited=0.2, fall=0.5, standard_error=0.01, draws=512)
    rows = summary(replace(found, subject=replace(found.subject, instance_loss=loss)))
    assert SummaryRow("subject", "subject drawn (base 0)", (0.5, 0.5)) in rows
    assert SummaryRow("subject", "denoising loss on the instances (base 0.4)", (None, 0.2)) in rows


def test_the_scores_of_an_edit_come_first() -> None:
    found = report(["p"], ["one", "two"], [0.5, 0.25])
    pairs = {"a": "b", "c": ""}
    second = replace(found.against[0], edit=edit_scores(pairs, 0.25))
    rows = summary(replace(found, edit=edit_scores(pairs, 1.0), against=(second,)))
    assert rows[:6] == [
        SummaryRow("edited", "pictures", (None, 2, 2)),
        SummaryRow("edited", "draw a target (base 0.125, targets 1)", (None, 1.0, 0.25)),
        SummaryRow("edited", "latents: nearer to a target", (None, 0.75, 0.75)),
        SummaryRow("rest", "stay (base 0.875)", (None, 0.5, 0.5)),
        SummaryRow("rest", "latents: nearer to the base than another seed", (None, 0.25, 0.25)),
        SummaryRow("preserved", "pictures", (1, 1, 1)),
    ], "no harmonic mean without paraphrases"
