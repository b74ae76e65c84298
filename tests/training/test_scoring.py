"""Choices ranked by likelihood, against the same likelihoods taken one document at a time by hand."""

import math

import numpy as np
import pytest
import torch

from data_pipeline.questions import Question
from model.config import ModelConfig
from tests.training.letters import BOS, OBJECTIVES, by_hand, model_of
from training import text_model
from training.scoring import log_likelihoods, score_questions
from training.text_model import execution

QUESTIONS = [
    Question("the sun", (" is", " was hot"), 0),
    Question("a", ("b", "cd", "efg"), 2),
    Question("", ("x", "yy"), 1),
]


@pytest.mark.parametrize("backend", ["flash", "varlen", "sdpa", "auto", "reference"])
def test_a_pinned_backend_gives_way_where_it_cannot_run_and_else_stays(backend, monkeypatch):
    config = ModelConfig(num_layers=1, d_model=32, num_heads=4, d_ff=64, attention_backend=backend, compile=True)
    runs_here, dtype = execution(config, torch.device("cpu"))
    assert (runs_here.compile, dtype) == (False, torch.float32)
    assert runs_here.attention_backend == ("auto" if backend in ("flash", "varlen") else backend)
    monkeypatch.setattr(text_model, "resolve_backend", lambda name, *where: name)
    runs_there, dtype = execution(config, torch.device("cpu"))
    assert runs_there.attention_backend == backend
    assert dtype == (torch.bfloat16 if backend in ("flash", "varlen") else torch.float32)


@pytest.mark.parametrize("row_length", [1, 24, 1000])
@pytest.mark.parametrize("shape", OBJECTIVES)
def test_likelihoods_are_those_of_each_choice_alone(shape, row_length):
    model = model_of(shape, row_length)
    found = log_likelihoods(model, QUESTIONS)
    for question, scores in zip(QUESTIONS, found, strict=True):
        query = [BOS, *question.query.encode()]
        expected = [by_hand(model.network, shape, query, list(choice.encode())) for choice in question.choices]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_the_likeliest_choice_answers_and_guessing_is_counted_by_the_number_of_choices():
    model = model_of("causal")
    scores = log_likelihoods(model, QUESTIONS)
    best = [int(np.argmax(each)) for each in scores]
    asked = [Question(q.query, q.choices, gold) for q, gold in zip(QUESTIONS, best, strict=True)]
    result = score_questions(model, asked)
    assert (result.questions, result.accuracy) == (3, 1.0)
    assert result.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    wrong = [Question(q.query, q.choices, (gold + 1) % len(q.choices)) for q, gold in zip(QUESTIONS, best, strict=True)]
    assert score_questions(model, wrong).accuracy == 0
    per_byte = [
        int(np.argmax([score / len(choice) for score, choice in zip(each, q.choices, strict=True)]))
        for each, q in zip(scores, QUESTIONS, strict=True)
    ]
    fraction = sum(a == b for a, b in zip(per_byte, best, strict=True)) / 3
    assert math.isclose(result.accuracy_per_byte, fraction)


def test_a_choice_without_tokens_is_refused():
    with pytest.raises(ValueError, match="question 1: choice '' has no token"):
        log_likelihoods(model_of("causal"), [Question("a", ("", "b"), 0)])


@pytest.mark.parametrize("shape", ["causal", "encdec"])
def test_a_question_longer_than_the_learned_positions_is_named(shape):
    model = model_of(shape, positions="learned", max_positions=8)
    with pytest.raises(ValueError, match=r"question 1: it takes \d+ tokens, and this model has 8 learned positions"):
        log_likelihoods(model, QUESTIONS)
