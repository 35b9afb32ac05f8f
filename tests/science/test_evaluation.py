"""Accuracy and its interval, against scikit-learn, SciPy and easyfsl."""

import numpy as np
import pytest
import torch
from easyfsl.methods import PrototypicalNetworks
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

from metadiff.baselines.ncm import cosine_ncm
from metadiff.episodes import draw_episodes
from metadiff.evaluation import correct_counts, mean_and_ci95
from tests.science.test_episodes import rows

DATA = rows([20] * 6)


def features(separation: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(6, 16, generator=generator)
    return separation * centres[torch.from_numpy(DATA.label).long()] + torch.randn(120, 16, generator=generator)


def test_ncm_is_the_cosine_to_the_mean_of_the_support() -> None:
    generator = torch.Generator().manual_seed(0)
    support, query = torch.randn(3, 5, 4, 8, generator=generator), torch.randn(3, 10, 8, generator=generator)
    scores = cosine_ncm(support, query)
    for episode in range(3):
        expected = cosine_similarity(query[episode].double(), support[episode].double().mean(1))
        np.testing.assert_allclose(scores[episode], expected, atol=1e-6)


def test_ncm_agrees_with_easyfsl_on_features_of_unit_length() -> None:
    """On unit vectors and one shot the nearest prototype by distance is the nearest by cosine."""
    x = torch.nn.functional.normalize(features(0.7), dim=1)
    drawn = draw_episodes(DATA, "test", way=5, shot=1, query=6, episodes=20, seed=0)
    model = PrototypicalNetworks(torch.nn.Identity())
    for episode, count in enumerate(correct_counts(cosine_ncm, x, drawn)):
        model.process_support_set(x[drawn.support_EWS[episode].ravel()], torch.arange(5))
        guess = model(x[drawn.query_EWQ[episode].ravel()]).argmax(1)
        assert int((guess == torch.arange(5).repeat_interleave(6)).sum()) == count


def test_counts_agree_with_scikit_learn_one_episode_at_a_time() -> None:
    x = torch.nn.functional.normalize(features(0.5), dim=1)
    drawn = draw_episodes(DATA, "test", way=5, shot=3, query=7, episodes=300, seed=1)
    counts = correct_counts(cosine_ncm, x, drawn)
    for episode in range(0, 300, 29):
        centroid = NearestCentroid().fit(x[drawn.support_EWS[episode].ravel()], np.repeat(range(5), 3))
        guess = cosine_similarity(x[drawn.query_EWQ[episode].ravel()], centroid.centroids_).argmax(1)
        assert (guess == np.repeat(range(5), 7)).sum() == counts[episode]


def test_a_classifier_without_information_scores_one_in_way() -> None:
    def guess(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(query), query.shape[1], support.shape[1], generator=generator)

    generator = torch.Generator().manual_seed(0)
    drawn = draw_episodes(DATA, "test", way=5, shot=1, query=10, episodes=1500, seed=2)
    mean, ci95 = mean_and_ci95(correct_counts(guess, features(1.0), drawn) / 50)
    assert abs(mean - 0.2) < 2 * ci95


def test_the_order_of_the_classes_changes_nothing() -> None:
    x = features(0.6)
    drawn = draw_episodes(DATA, "test", way=5, shot=2, query=5, episodes=40, seed=3)
    turned = type(drawn)(*(np.ascontiguousarray(part[:, ::-1]) for part in vars(drawn).values()))
    assert (correct_counts(cosine_ncm, x, drawn) == correct_counts(cosine_ncm, x, turned)).all()


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).uniform(size=2000)
    mean, ci95 = mean_and_ci95(values)
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean())
    assert ci95 == pytest.approx((high - low) / 2, rel=1e-4)  # 1.96 for 1.959964
    with pytest.raises(ValueError, match="at least two"):
        mean_and_ci95(values[:1])
