"""The table of checks: each needs only checks before it, and none is there twice."""

from nullbooth_cli.pipeline.doctor.checks import CHECKS


def test_a_check_needs_only_checks_before_it() -> None:
    order = list(CHECKS)
    assert {
        (name, need) for name, (_, needs) in CHECKS.items() for need in needs if need not in order[: order.index(name)]
    } == set()


def test_every_function_is_one_check() -> None:
    functions = [function for function, _ in CHECKS.values()]
    assert len(set(functions)) == len(functions)
    assert [function.__name__ for function in functions] == [
        name.replace("held-out prompts", "heldout").replace(" ", "_") for name in CHECKS
    ]
