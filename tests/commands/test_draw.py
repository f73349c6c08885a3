"""Reports as lines."""

from types import SimpleNamespace
from typing import Any

from nullbooth_cli.commands.draw import warning_lines
from tests.support.reports import site_report


def report_of(*sites: Any) -> Any:
    return SimpleNamespace(sites=sites)


def test_warnings_that_differ_in_numbers_only_are_one_line() -> None:
    """The site that leaks most stands for all of them."""
    sites = [
        site_report(layer=f"layer{number}", leakage=leakage, warnings=(f"leakage {leakage:.2g}, more than 0.1", *others))
        for number, (leakage, others) in enumerate([(0.16, ()), (0.21, ("7,680 vectors",)), (0.12, ()), (0.12, ())])
    ]
    assert warning_lines(report_of(*sites)) == [
        "leakage 0.21, more than 0.1: layer1.q and 3 more sites (--json names them)",
        "7,680 vectors: layer1.q",
    ]


def test_a_site_without_warnings_has_no_line() -> None:
    assert warning_lines(report_of(site_report(warnings=()))) == []
