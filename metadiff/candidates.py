"""What `evaluate` chooses among: a candidate makes a classifier of each episode's support and scores the queries with it.

A score is what a temperature multiplies. What scores are measured from is chosen on validation like the candidate itself.
Shapes: G draws, E episodes, W ways, Q queries of an episode, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metadiff.episodes import Episodes
from metadiff.evaluation import BATCH, LogitsOf, RowsOf, WeightsOf, class_rows, cosines, learner_scores, learner_weights
from metadiff.pictures import Pictures
from metadiff.view import View

Scores = dict[str, Tensor]  # by the view that they are measured in: (G, E, Q, W) on the CPU


class Candidate(Protocol):
    def adapt(self, pictures: Pictures, episodes: Episodes) -> Tensor:
        """The classifier of each episode, from its support alone: its tensor begins with G and E."""

    def scores_by(self, made: Tensor, pictures: Pictures, episodes: Episodes) -> Scores:
        """Of the queries, by what `adapt` made."""

    def scores(self, pictures: Pictures, episodes: Episodes) -> Scores: ...


@dataclass(frozen=True)
class OfRows:
    """A row a class; the scores are cosines, in each view."""

    rows_of: RowsOf
    views: Mapping[str, View]

    def adapt(self, pictures: Pictures, episodes: Episodes) -> Tensor:
        return class_rows(self.rows_of, pictures.features, episodes)

    def scores_by(self, made: Tensor, pictures: Pictures, episodes: Episodes) -> Scores:
        return {name: cosines(made, pictures.features, episodes, view=view) for name, view in self.views.items()}

    def scores(self, pictures: Pictures, episodes: Episodes) -> Scores:
        return self.scores_by(self.adapt(pictures, episodes), pictures, episodes)


@dataclass(frozen=True)
class OfWeights:
    """All weights of a base learner; the scores are its own logits, measured from nothing, but for their unit."""

    weights_of: WeightsOf
    logits_of: LogitsOf

    def adapt(self, pictures: Pictures, episodes: Episodes) -> Tensor:
        return torch.cat([*learner_weights(self.weights_of, pictures, episodes)], dim=1)

    def scores_by(self, made: Tensor, pictures: Pictures, episodes: Episodes) -> Scores:
        return {"": learner_scores(torch.split(made, BATCH, dim=1), self.logits_of, pictures, episodes)}

    def scores(self, pictures: Pictures, episodes: Episodes) -> Scores:
        """The weights of a batch of episodes are not kept."""
        weights = learner_weights(self.weights_of, pictures, episodes)
        return {"": learner_scores(weights, self.logits_of, pictures, episodes)}
