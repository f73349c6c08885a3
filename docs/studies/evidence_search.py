"""The search of the study of evidence: the same for every way, by a rule that was fixed before the reported runs.

Every way is trained with one seed on two subjects, a circle and a crescent, at every rate of `RATES`, and measured at every
number of steps of `LENGTHS`, from other noise than in the report, with other pictures of training, and on other captions beside
those of the subject. Of the settings that learn at least `ENOUGH` in the mean over both subjects, the one that moved least is
chosen; if no setting does, the one that learned most.
"""

from collections.abc import Sequence

import numpy as np

from docs.studies.evidence_runs import Searched, Setting
from docs.studies.evidence_ways import LENGTHS, WAYS

SEARCHED_ON = ("circle", "crescent")
ENOUGH = 0.75


def means(searched: Sequence[Searched], way: str) -> dict[Setting, tuple[float, float]]:
    """(learned, moved) of every setting of a way, the mean over the subjects; only settings that all subjects have."""
    found: dict[Setting, list[tuple[float, float]]] = {}
    for each in searched:
        if each.way == way:
            for steps, learned, moved in zip(LENGTHS, each.learned, each.moved, strict=True):
                found.setdefault(Setting(rate=each.rate, steps=steps), []).append((learned, moved))
    return {
        setting: (float(np.mean([one for one, _ in scores])), float(np.mean([other for _, other in scores])))
        for setting, scores in found.items()
        if len(scores) == len(SEARCHED_ON)
    }


def chosen(searched: Sequence[Searched], way: str) -> tuple[Setting, float, float]:
    """The setting that the rule chooses, with its (learned, moved) of the search."""
    found = means(searched, way)
    enough = {setting: scores for setting, scores in found.items() if scores[0] >= ENOUGH}
    if enough:
        setting = min(enough, key=lambda each: (enough[each][1], each.rate, each.steps))
    else:
        setting = max(found, key=lambda each: (found[each][0], -found[each][1]))
    return setting, *found[setting]


def every(searched: Sequence[Searched]) -> dict[str, Setting]:
    """The setting of every way, by its name."""
    return {way.name: chosen(searched, way.name)[0] for way in WAYS}
