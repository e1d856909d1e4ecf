import itertools
import math

import pytest
import torch

from assay.claims.experiments import experiments
from assay.claims.experiments.flatness import MarkovModel


def test_the_least_loss_is_that_of_summing_over_all_paths():
    language = MarkovModel(3, 4, seed=0)
    symbols = torch.tensor([[0, 3, 1, 2]])

    def probability(length):
        total = 0.0
        for path in itertools.product(range(3), repeat=length):
            p = 1 / 3
            for place, state in enumerate(path):
                p *= language.emissions[state, symbols[0, place]].item()
                if place + 1 < length:
                    p *= language.transitions[state, path[place + 1]].item()
            total += p
        return total

    expected = -math.log(probability(4) / probability(1)) / 3
    assert language.least_loss(symbols) == pytest.approx(expected)


def test_samples_follow_the_transitions_and_emissions():
    language = MarkovModel(3, 4, seed=1)
    symbols, states = language.sample(4000, 6)
    for state in range(3):
        here = states[:, :-1] == state
        following = torch.bincount(states[:, 1:][here], minlength=3) / here.sum()
        torch.testing.assert_close(following.double(), language.transitions[state], atol=0.03, rtol=0)
        seen = torch.bincount(symbols[states == state], minlength=4) / (states == state).sum()
        torch.testing.assert_close(seen.double(), language.emissions[state], atol=0.03, rtol=0)


def test_a_short_run_learns_and_repeats():
    options = {"early": 5, "steps": 60, "states": 4, "symbols": 6, "length": 8, "hidden_size": 16, "depth": 1}
    options |= {"draws": 8, "probed": 200, "batch_size": 16}
    found = experiments["flatness-after-convergence"](0, **options)
    assert found["early.gap"] > found["late.gap"] > 0
    assert found["trace.ratio"] == found["late.trace"] / found["early.trace"]
    assert found == experiments["flatness-after-convergence"](0, **options)
