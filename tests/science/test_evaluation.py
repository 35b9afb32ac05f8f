"""Accuracy and its interval, against scikit-learn, SciPy and easyfsl."""

import numpy as np
import pytest
import torch
from easyfsl.methods import PrototypicalNetworks
from scipy import stats
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid

from metadiff.baselines.ncm import mean_rows
from metadiff.episodes import Episodes, draw_episodes
from metadiff.errors import NumericError
from metadiff.evaluation import (
    TEMPERATURES,
    RowsOf,
    accuracy,
    best_temperature,
    calibration,
    class_rows,
    correct_counts,
    cosines,
    log_probabilities,
    mean_and_ci95,
    negative_log_likelihood,
    targets,
)
from metadiff.view import View
from tests.science.test_episodes import rows

DATA = rows([20] * 6)


def features(separation: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(6, 16, generator=generator)
    return separation * centres[torch.from_numpy(DATA.label).long()] + torch.randn(120, 16, generator=generator)


def counts_of(rows_of: RowsOf, x: torch.Tensor, drawn: Episodes) -> np.ndarray:
    return correct_counts(cosines(class_rows(rows_of, x, drawn), x, drawn)[0], targets(drawn))


CENTRE, MAP = torch.linspace(-1, 1, 16), torch.randn(16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("centre", "basis"), [(None, None), (CENTRE, None), (CENTRE, MAP)], ids=["origin", "centre", "map"])
def test_ncm_is_the_cosine_to_the_mean_of_the_support(centre: torch.Tensor | None, basis: torch.Tensor | None) -> None:
    x = features(1.0)
    drawn = draw_episodes(DATA, "test", way=5, shot=4, query=6, episodes=3, seed=0)
    scores = cosines(class_rows(mean_rows, x, drawn), x, drawn, view=View(centre, basis))
    assert scores.shape == (1, 3, 30, 5)
    for episode in range(3):
        query, support = x[drawn.query_EWQ[episode].ravel()].double(), x[drawn.support_EWS[episode]].double()
        origin = 0 if centre is None else centre.double()
        turned = torch.eye(16).double() if basis is None else basis.double()
        expected = cosine_similarity((query - origin) @ turned, (support.mean(1) - origin) @ turned)
        np.testing.assert_allclose(scores[0, episode], expected, atol=1e-6)


def test_ncm_agrees_with_easyfsl_on_features_of_unit_length() -> None:
    """On unit vectors and one shot the nearest prototype by distance is the nearest by cosine."""
    x = torch.nn.functional.normalize(features(0.7), dim=1)
    drawn = draw_episodes(DATA, "test", way=5, shot=1, query=6, episodes=20, seed=0)
    model = PrototypicalNetworks(torch.nn.Identity())
    for episode, count in enumerate(counts_of(mean_rows, x, drawn)):
        model.process_support_set(x[drawn.support_EWS[episode].ravel()], torch.arange(5))
        guess = model(x[drawn.query_EWQ[episode].ravel()]).argmax(1)
        assert int((guess == torch.arange(5).repeat_interleave(6)).sum()) == count


def test_counts_agree_with_scikit_learn_one_episode_at_a_time() -> None:
    x = torch.nn.functional.normalize(features(0.5), dim=1)
    drawn = draw_episodes(DATA, "test", way=5, shot=3, query=7, episodes=300, seed=1)
    counts = counts_of(mean_rows, x, drawn)
    assert accuracy(mean_rows, x, drawn) == pytest.approx(100 * counts.mean() / 35)
    for episode in range(0, 300, 29):
        centroid = NearestCentroid().fit(x[drawn.support_EWS[episode].ravel()], np.repeat(range(5), 3))
        guess = cosine_similarity(x[drawn.query_EWQ[episode].ravel()], centroid.centroids_).argmax(1)
        assert (guess == np.repeat(range(5), 7)).sum() == counts[episode]


def test_a_classifier_without_information_scores_one_in_way() -> None:
    def guess(support: torch.Tensor, _batch: int) -> torch.Tensor:
        return torch.randn(1, *support.shape[:2], support.shape[3], generator=generator)

    generator = torch.Generator().manual_seed(0)
    drawn = draw_episodes(DATA, "test", way=5, shot=1, query=10, episodes=1500, seed=2)
    mean, ci95 = mean_and_ci95(counts_of(guess, features(1.0), drawn) / 50)
    assert abs(mean - 0.2) < 2 * ci95


def test_the_order_of_the_classes_changes_nothing() -> None:
    x = features(0.6)
    drawn = draw_episodes(DATA, "test", way=5, shot=2, query=5, episodes=40, seed=3)
    turned = type(drawn)(*(np.ascontiguousarray(part[:, ::-1]) for part in vars(drawn).values()))
    assert (counts_of(mean_rows, x, drawn) == counts_of(mean_rows, x, turned)).all()


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).uniform(size=2000)
    mean, ci95 = mean_and_ci95(values)
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean())
    assert ci95 == pytest.approx((high - low) / 2, rel=1e-4)  # 1.96 for 1.959964
    with pytest.raises(ValueError, match="at least two"):
        mean_and_ci95(values[:1])


def test_draws_are_averaged_as_probabilities() -> None:
    scores = torch.randn(4, 3, 10, 5, generator=torch.Generator().manual_seed(0))
    expected = (7.0 * scores.double()).softmax(-1).mean(0)
    torch.testing.assert_close(log_probabilities(scores, 7.0).exp(), expected)


def test_likelihood_is_that_of_scikit_learn() -> None:
    drawn = draw_episodes(DATA, "test", way=5, shot=1, query=6, episodes=20, seed=0)
    x = features(0.8)
    log_EQW = log_probabilities(cosines(class_rows(mean_rows, x, drawn), x, drawn), 5.0)
    found = negative_log_likelihood(log_EQW, targets(drawn))
    for episode in range(20):
        assert found[episode] == pytest.approx(log_loss(targets(drawn), log_EQW[episode].exp(), labels=range(5)))


def test_the_temperature_is_the_likeliest_of_those_tried() -> None:
    """Labels drawn from the probabilities at one temperature are likeliest at that one."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, 4000, 5, 5, generator=generator)
    for want in (4.0, 32.0):
        drawn = torch.multinomial((want * scores[0]).softmax(-1).flatten(0, 1), 1, generator=generator).view(4000, 5, 1)
        # put the drawn label where the targets expect it: way q for query q
        ways = torch.arange(5)
        swapped = scores[0].clone()
        swapped.scatter_(2, drawn, scores[0].gather(2, ways.view(1, 5, 1).expand(4000, 5, 1)))
        swapped.scatter_(2, ways.view(1, 5, 1).expand(4000, 5, 1), scores[0].gather(2, drawn))
        assert best_temperature(swapped[None], ways) == want


@pytest.mark.parametrize("draws", [1, 5])
@pytest.mark.parametrize("spread", [0.02, 0.3, 3.0])
def test_the_best_temperature_is_that_of_trying_all(draws: int, spread: float) -> None:
    stream = torch.Generator().manual_seed(draws)
    target = torch.arange(5).repeat_interleave(4)
    scores = spread * (torch.randn(draws, 60, 20, 5, generator=stream) + 1.5 * torch.eye(5)[target])
    losses = {t: negative_log_likelihood(log_probabilities(scores, t), target).mean() for t in TEMPERATURES}
    assert best_temperature(scores, target) == min(losses, key=losses.__getitem__)


def test_the_calibration_error_is_the_textbooks() -> None:
    generator = torch.Generator().manual_seed(0)
    log_EQW = (3 * torch.randn(40, 10, 5, generator=generator, dtype=torch.float64)).log_softmax(-1)
    target = torch.arange(5).repeat_interleave(2)
    confidence, guess = log_EQW.exp().max(-1)
    right = (guess == target).numpy().ravel()
    p = confidence.numpy().ravel()
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (p > low) & (p <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - right[inside].mean())
    found = calibration(log_EQW, target)
    assert found.count_B.sum() == 400
    assert found.error == pytest.approx(expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_rows_that_diverged_are_refused(value: float) -> None:
    """The highest of scores that are no numbers would be the first: exactly chance, and no sign of it."""
    drawn = draw_episodes(DATA, "test", way=5, shot=1, query=6, episodes=3, seed=0)
    with pytest.raises(NumericError, match="the sampler diverged"):
        accuracy(lambda support, _batch: support.mean(2)[None] * 0 + value, features(1.0), drawn)
