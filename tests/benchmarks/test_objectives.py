"""The peer of the objectives benchmark makes the same kind of batch as ours."""

import numpy as np
import pytest

from benchmarks import objectives
from benchmarks.objectives import BOS, EOS, VOCABULARY, Collator, lean_segments, measure, their_segments
from data_pipeline.reading.denoising import t5_lengths

TEXT = VOCABULARY.first_sentinel + VOCABULARY.num_sentinels


@pytest.mark.parametrize("segments", [their_segments, lean_segments])
def test_the_peer_hides_spans_as_t5_does(segments):
    texts = np.arange(TEXT, TEXT + 8 * 568).reshape(8, 568)
    batch = Collator(segments)(texts)
    assert (568, batch["labels"].shape[1]) == t5_lengths(512, 0.15, 3)
    assert batch["input_ids"].shape[1] == 512
    for text, inputs, labels, read in zip(texts, *batch.values(), strict=True):
        assert inputs[-1] == labels[-1] == EOS and read[0] == BOS
        assert read[1:].tolist() == labels[:-1].tolist()
        assert sorted([*inputs[inputs >= TEXT], *labels[labels >= TEXT]]) == text.tolist()
        sentinels = [[token for token in row if VOCABULARY.first_sentinel <= token < TEXT] for row in (inputs, labels)]
        assert sentinels[0] == sentinels[1] == list(range(VOCABULARY.first_sentinel, VOCABULARY.first_sentinel + 28))


def test_a_small_run_measures_both(monkeypatch):
    monkeypatch.setattr(objectives, "BATCH", 4)
    rows = measure([64], 1, 1)
    assert [row.peer_name for row in rows] == ["HF T5 collator", "HF T5 collator", "the same made leaner"]
    assert all(row.ours > 0 and row.peer > 0 for row in rows)
    assert [row.goal for row in rows] == [None, 5.0, None]
