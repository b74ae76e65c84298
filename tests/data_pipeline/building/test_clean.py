import unicodedata

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.building import clean
from data_pipeline.building.clean import clean_batches, cleaned, is_validation
from data_pipeline.building.sources import Rejects, Unit
from data_pipeline.config import DataConfig
from data_pipeline.filters.chain import make_steps
from data_pipeline.filters.document import Dropped
from data_pipeline.filters.settings import FilterList


def run(texts, **settings):
    rejects = Rejects()
    rejects.unit = Unit(0, "a.jsonl", "jsonl", None, 1)
    batches = list(clean_batches(enumerate(texts, start=1), DataConfig(path="unused", **settings), rejects))
    return batches, rejects


def test_documents_outside_the_lengths_are_dropped_and_counted():
    batches, rejects = run(["a", "abc", "abcdef", "\U0001f600" * 3], min_characters=2, max_characters=4)
    assert [text for batch in batches for text in batch.texts] == ["abc", "\U0001f600" * 3]
    assert rejects.by_reason() == {"too_long": 1, "too_short": 1}


def test_a_lone_surrogate_is_counted_as_invalid():
    batches, rejects = run(["good", "bad \ud800"])
    assert [batch.texts for batch in batches] == [["good"]]
    assert rejects.by_reason() == {"invalid_utf8": 1}


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_unicode_forms_are_python_s_own(form):
    texts = ["e\u0301", "\ufb01 \u2460", "plain", "\u1100\u1161"]
    batches, _ = run(texts, unicode_normalization=form)
    assert batches[0].texts == [unicodedata.normalize(form, text) for text in texts]
    assert run(texts)[0][0].texts == texts


@given(texts=st.lists(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])), max_size=30))
def test_keys_and_sizes_are_those_of_the_utf8_bytes(texts):
    batches, _ = run(texts)
    for batch in batches:
        for index, text in enumerate(batch.texts):
            high, low = (int(half) for half in batch.keys[:, index])
            assert high << 64 | low == xxhash.xxh3_128_intdigest(text.encode())
            assert batch.sizes[index] == len(text.encode())
    assert [text for batch in batches for text in batch.texts] == texts


def test_batches_end_by_bytes_or_by_number(monkeypatch):
    monkeypatch.setattr(clean, "BATCH_BYTES", 10)
    monkeypatch.setattr(clean, "BATCH_DOCUMENTS", 3)
    assert [len(batch.texts) for batch in run(["x" * 12, "y", "y", "y", "z" * 9, "z"])[0]] == [1, 3, 2]


def test_the_held_out_share_follows_the_fraction_and_nothing_else():
    keys = np.random.default_rng(0).integers(0, 2**64, (2, 100_000), dtype=np.uint64, endpoint=False)
    for fraction in (0.0, 0.01, 0.5, 1 - 2**-53):
        assert is_validation(keys, fraction).mean() == pytest.approx(fraction, abs=0.005)
    held_out = is_validation(keys, 0.01)
    assert np.array_equal(is_validation(keys[:, ::-1], 0.01), held_out[::-1])
    assert not (held_out & ~is_validation(keys, 0.02)).any()


def test_a_document_that_filters_leave_empty_or_too_short_is_dropped():
    steps = make_steps(FilterList.validate_python([{"name": "c4", "min_sentences": None}]))
    for least, reason in ((0, "empty"), (1, "too_short")):
        config = DataConfig(path="unused", min_characters=least)
        assert cleaned("no line of it ends", config, steps) == Dropped(reason)
    assert cleaned("This is kept.\nnot this", DataConfig(path="unused"), steps).text == "This is kept."
