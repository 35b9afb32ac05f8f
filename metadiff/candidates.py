"""What `evaluate` chooses among: a candidate makes a classifier of each episode's support and scores the queries with it.

A score is what a temperature multiplies. What scores are measured from is chosen on validation like the candidate itself.
Shapes: G draws, E episodes, W ways, Q queries of an episode, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from metadiff.episodes import Episodes
from metadiff.evaluation import LogitsOf, RowsOf, WeightsOf, class_rows, cosines, learner_scores, learner_weights

Scores = dict[str, Tensor]  # by what they are measured from: (G, E, Q, W) on the CPU


class Candidate(Protocol):
    def adapt(self, features_ND: Tensor, episodes: Episodes) -> Tensor:
        """The classifier of each episode, from its support alone: its tensor begins with G and E."""

    def scores_by(self, made: Tensor, features_ND: Tensor, episodes: Episodes) -> Scores:
        """Of the queries, by what `adapt` made."""

    def scores(self, features_ND: Tensor, episodes: Episodes) -> Scores: ...


@dataclass(frozen=True)
class OfRows:
    """A row a class; the scores are cosines, seen from each centre (None: the origin)."""

    rows_of: RowsOf
    centres: Mapping[str, Tensor | None]

    def adapt(self, features_ND: Tensor, episodes: Episodes) -> Tensor:
        return class_rows(self.rows_of, features_ND, episodes)

    def scores_by(self, made: Tensor, features_ND: Tensor, episodes: Episodes) -> Scores:
        return {name: cosines(made, features_ND, episodes, centre_D=centre_D) for name, centre_D in self.centres.items()}

    def scores(self, features_ND: Tensor, episodes: Episodes) -> Scores:
        return self.scores_by(self.adapt(features_ND, episodes), features_ND, episodes)


@dataclass(frozen=True)
class OfWeights:
    """All weights of a base learner; the scores are its own logits, measured from nothing, but for their unit."""

    weights_of: WeightsOf
    logits_of: LogitsOf

    def adapt(self, features_ND: Tensor, episodes: Episodes) -> Tensor:
        return learner_weights(self.weights_of, features_ND, episodes)

    def scores_by(self, made: Tensor, features_ND: Tensor, episodes: Episodes) -> Scores:
        return {"": learner_scores(made, self.logits_of, features_ND, episodes)}

    def scores(self, features_ND: Tensor, episodes: Episodes) -> Scores:
        return self.scores_by(self.adapt(features_ND, episodes), features_ND, episodes)
