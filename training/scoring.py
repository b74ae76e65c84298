"""Zero-shot multiple choice: the choice whose tokens the model finds likeliest is its answer, for every shape alike.

questions -> examples in the form the model was trained on (reading/ranking.py) -> layout of the shape, packed
          -> log-likelihood of each choice -> answers -> accuracy
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch

from common.mistakes import Mistake
from data_pipeline.config import ObjectiveConfig
from data_pipeline.questions import Question
from data_pipeline.reading.packing import IGNORED, LAYOUTS, Layout, PackedBatch, Row, pack_layout
from data_pipeline.reading.ranking import Encode, ranking
from data_pipeline.vocabulary import Vocabulary
from model.config import ModelConfig
from model.kernels.attention import resolve_backend
from model.network.transformer import Transformer
from training.step import Patterns, model_inputs

HALF_PRECISION_BACKENDS = ("flash", "varlen")


@dataclasses.dataclass(frozen=True)
class ChoiceResult:
    """How a model did on some questions."""

    questions: int
    accuracy: float
    """Share answered rightly by the likeliest choice."""
    accuracy_per_byte: float
    """The same with likelihoods taken per UTF-8 byte of the choice, so that short choices have no advantage."""
    chance: float
    """What guessing scores on average."""


def execution(config: ModelConfig, device: torch.device) -> tuple[ModelConfig, torch.dtype]:
    """How a trained model is asked on a device: its config with what runs there, and the dtype of its weights.

    A backend that takes half precision only and runs here is kept, in bf16 as in training; in all other cases weights
    are fp32 and such a backend gives way to `auto`.
    """
    config = config.run_plainly()
    if config.attention_backend not in HALF_PRECISION_BACKENDS:
        return config, torch.float32
    try:
        resolve_backend(config.attention_backend, device, torch.bfloat16, config.head_size, config.positions)
    except Mistake:
        return config.model_copy(update={"attention_backend": "auto"}), torch.float32
    return config, torch.bfloat16


def score_questions(
    model: Transformer,
    questions: list[Question],
    encode: Encode,
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    row_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> ChoiceResult:
    """Asks a model in memory; `row_length` is how many tokens it reads at once (a longer question is read alone).

    `progress` is called with (tokens done, tokens in all). Raises ValueError when a choice is no token at all, or when
    a question is longer than the model's learned positions.
    """
    likelihoods = log_likelihoods(model, questions, encode, vocabulary, objective, row_length, progress)
    right = per_byte = 0
    for question, scores in zip(questions, likelihoods, strict=True):
        sizes = np.array([len(choice.encode()) for choice in question.choices])
        right += int(np.argmax(scores)) == question.gold
        per_byte += int(np.argmax(scores / sizes)) == question.gold
    num = len(questions)
    return ChoiceResult(num, right / num, per_byte / num, sum(1 / len(each.choices) for each in questions) / num)


def log_likelihoods(
    model: Transformer,
    questions: list[Question],
    encode: Encode,
    vocabulary: Vocabulary,
    objective: ObjectiveConfig,
    row_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Log-likelihood in nats of every choice of every question, float64 [choices] each."""
    ranked = ranking(questions, encode, vocabulary, objective, model.config.shape)
    layout = LAYOUTS[model.config.shape](ranked.examples, vocabulary.bos)
    _check_positions(layout, ranked.question, model.config.max_positions)
    result = [np.zeros(len(question.choices)) for question in questions]
    done = example = 0
    for batch in _batches(layout, row_length, vocabulary.pad):
        for score in _sums(model, batch).tolist():
            result[ranked.question[example]][ranked.choice[example]] += score
            example += 1
        done += len(batch.tokens)
        if progress:
            progress(done, len(layout.tokens))
    return result


def _check_positions(layout: Layout, question: np.ndarray, max_positions: int | None) -> None:
    """ValueError when an example, of question[j] each, is longer than the table of learned positions, if any."""
    lengths = layout.lengths if layout.encoder is None else np.maximum(layout.lengths, layout.encoder.lengths)
    longest = int(np.argmax(lengths))
    if max_positions is not None and lengths[longest] > max_positions:
        raise Mistake(
            f"question {question[longest] + 1}: it takes {lengths[longest]} tokens, and this model has "
            f"{max_positions} learned positions; shorten it or leave it out"
        )


def _batches(layout: Layout, row_length: int, pad_id: int) -> Iterator[PackedBatch]:
    """All documents of a layout in order, as many in a row as fit."""
    streams = [layout.lengths] if layout.encoder is None else [layout.lengths, layout.encoder.lengths]
    sizes, used = [0], np.zeros(len(streams), np.int64)
    for lengths in zip(*(stream.tolist() for stream in streams), strict=True):
        if sizes[-1] and (used + lengths).max() > row_length:
            sizes.append(0)
            used[:] = 0
        sizes[-1] += 1
        used += lengths
    for part in layout.split(np.array(sizes)):
        row = Row.empty(len(part.tokens), None if part.encoder is None else len(part.encoder.tokens))
        yield pack_layout(part, np.zeros(len(part.lengths), bool), pad_id, row)


def _sums(model: Transformer, batch: PackedBatch) -> torch.Tensor:
    """Log-likelihood of the labels of each document, float64 [N]."""
    device = next(model.parameters()).device
    patterns = Patterns.of(batch)
    tokens, positions, pattern, encoder = model_inputs(batch.to(device), patterns.to(device))
    with torch.no_grad():
        logits = model(tokens, positions, pattern, encoder=encoder)
    scored = batch.labels != IGNORED
    chosen = logits[scored.to(device)].float().log_softmax(-1).gather(1, batch.labels[scored].to(device)[:, None])
    document = torch.repeat_interleave(torch.arange(len(batch.cu_seqlens) - 1), batch.cu_seqlens.diff().long())
    sums = torch.zeros(len(batch.cu_seqlens) - 1, dtype=torch.float64)
    return sums.index_add_(0, document[scored], chosen[:, 0].double().cpu())
