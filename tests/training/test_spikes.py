"""The rule by which steps are passed over, and what a checkpoint keeps of it."""

import json
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.runs import tiny_config
from training.guards_config import GuardsConfig
from training.spikes import LEAST, NORMAL, Guard, GuardState, limits

CPU = torch.device("cpu")
CONFIG = GuardsConfig(spikes="skip", window=8, min_steps=4)
FIGURES = st.floats(0.1, 10.0)
STEPS = st.lists(st.tuples(FIGURES | st.sampled_from([1e4, math.inf, math.nan]), FIGURES), max_size=30)


def verdicts(guard: Guard, steps: list[tuple[float, float]]) -> list[bool]:
    """Which of these steps a guard passes over."""
    sound, numbers = torch.tensor(False), [torch.tensor(step, dtype=torch.float64) for step in steps]
    return [bool(guard.judge(loss, norm, sound)) for loss, norm in numbers]


def through_json(guard: Guard) -> Guard:
    """A guard that goes on from what a checkpoint would keep of another."""
    losses, norms = json.loads(json.dumps(guard.window()))
    return Guard(guard.config, CPU, GuardState(tuple(losses), tuple(norms)))


@given(st.lists(FIGURES, min_size=4, max_size=8))
def test_the_limit_is_the_median_and_so_many_deviations(losses):
    window = torch.tensor([losses, losses], dtype=torch.float64)
    median = statistics.median_low(losses)
    distance = statistics.median_low([abs(loss - median) for loss in losses])
    expected = median + 6 * max(NORMAL * distance, LEAST * median)
    assert limits(window, CONFIG).tolist() == pytest.approx([expected] * 2)


@given(st.lists(FIGURES, min_size=5, max_size=5), st.lists(st.floats(1e3, 1e9), max_size=3))
def test_less_than_half_of_a_window_cannot_raise_the_limit_beyond_what_the_others_spread(sound, spikes):
    limit = limits(torch.tensor([sound + spikes] * 2, dtype=torch.float64), CONFIG)[0]
    assert limit <= max(sound) + 6 * max(NORMAL * (max(sound) - min(sound)), LEAST * max(sound)) + 1e-9


@given(STEPS)
def test_what_is_passed_over_is_no_part_of_what_is_usual(steps):
    guard = Guard(CONFIG, CPU)
    kept = [step for step, held in zip(steps, verdicts(guard, steps), strict=True) if not held][-8:]
    assert list(zip(*guard.window(), strict=True)) == kept
    assert all(math.isfinite(figure) for step in kept for figure in step)


@settings(max_examples=50)
@given(STEPS, st.integers(0, 30))
def test_a_guard_that_goes_on_from_a_checkpoint_judges_as_one_that_never_stopped(steps, stop):
    straight, before = Guard(CONFIG, CPU), Guard(CONFIG, CPU)
    expected = verdicts(straight, steps)
    seen = verdicts(before, steps[:stop])
    after = through_json(before)
    assert seen + verdicts(after, steps[stop:]) == expected
    assert after.window() == straight.window()


def test_a_spike_in_loss_or_norm_is_passed_over_once_there_are_enough_steps():
    usual = [(2.0, 1.0), (2.1, 1.1), (1.9, 0.9), (2.0, 1.0)]
    assert verdicts(Guard(CONFIG, CPU), [*usual[:3], (50.0, 1.0)]) == [False] * 4
    assert verdicts(Guard(CONFIG, CPU), [*usual, (50.0, 1.0), (2.0, 50.0), (2.0, 1.0)]) == [False] * 4 + [True] * 2 + [
        False
    ]


@pytest.mark.parametrize("loss, norm, unsound", [(math.nan, 1, 0), (1, math.inf, 0), (1, -1, 0), (1, 1, 1)])
def test_what_is_no_number_on_any_rank_is_passed_over_whatever_the_config(loss, norm, unsound):
    figures = (torch.tensor(float(figure), dtype=torch.float64) for figure in (loss, norm))
    assert Guard(GuardsConfig(), CPU).judge(*figures, torch.tensor(bool(unsound)))


def test_a_window_that_would_never_fill_is_refused():
    with pytest.raises(ValueError, match="min_steps: 64 steps never fit into a window of 32"):
        tiny_config("none", guards={"window": 32})
