"""What several training seeds say together: a mean, and the half width of its 95 % interval.

``by_seed`` has for each seed an array over what classifiers were asked: accuracies, or paired differences of two of them.

Where all seeds are asked the same, an interval is over what they are asked and over seeds, the root of the sum of both squares:
1.96 standard errors of what was asked, averaged over seeds; Student's factor times the standard error of the seeds' means.

Where a seed splits the data too, each is asked something else. The means of such seeds differ by what they were asked as well
as by how they were trained, so Student's factor times their standard error is the whole interval: to add the spread of a seed's
tasks would count it twice. Nor need the tasks of a seed be independent, as those that share a sentence are not. Of one seed
alone there are but 1.96 standard errors of its tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metadiff.evaluation import mean_and_ci95

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 0.975 quantiles, from one degree of freedom on
MOST_SEEDS = len(STUDENT) + 1

Values = NDArray[np.float64]


def interval(name: str, half: str, by_seed: Sequence[Values], *, same: bool) -> dict[str, float]:
    """A row's columns of these names; ``same``: all seeds are asked the same."""
    means_S = np.array([values.mean() for values in by_seed])
    within = 0.0
    if same or len(by_seed) == 1:
        within = mean_and_ci95(np.mean(by_seed, axis=0))[1]
    return {name: round(float(means_S.mean()), 3), half: round(float(np.hypot(within, half_over_seeds(means_S))), 3)}


def half_over_seeds(means_S: Values) -> Values:
    """Of the 95 % interval, for each column of (S, ...); of one seed there is none."""
    seeds = len(means_S)
    half: Values = STUDENT[seeds - 2] * means_S.std(axis=0, ddof=1) / seeds**0.5 if seeds > 1 else np.zeros_like(means_S[0])
    return half
