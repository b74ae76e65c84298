"""What the command says of the tokenizer of imported weights: whether the data pipeline takes it, and what it lacks."""

import pytest
import sentencepiece

from launcher.stages import examine_tokenizer
from launcher.views import imported_tokenizer
from tests.model.conftest import SPECIALS


def use_of_tokenizer(source, folder, vocab_size) -> str:
    return imported_tokenizer(examine_tokenizer(source, folder, vocab_size))


@pytest.fixture
def imported(tmp_path):
    """Makes out/tokenizer from a sentencepiece model of these settings."""

    def make(**changes):
        how = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "pad_id": 3}
        how |= {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "unk_id": 0, "bos_id": 1, "eos_id": 2}
        (tmp_path / "tokenizer").mkdir()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(f"def f{i}(x): return x + {i}" for i in range(300)),
            model_prefix=str(tmp_path / "tokenizer" / "tokenizer"),
            vocab_size=340,
            hard_vocab_limit=False,
            minloglevel=2,
            **how | changes,
        )
        return tmp_path / "tokenizer"

    return make


def test_one_that_fits_is_to_be_set_as_the_path(imported, tmp_path):
    folder = imported(control_symbols=SPECIALS)
    said = use_of_tokenizer(tmp_path, folder, 2000)
    assert said.startswith(f"its tokenizer: tokenizer.path: {folder}, for data build; it has the special tokens")


def test_what_it_lacks_is_said(imported, tmp_path):
    said = use_of_tokenizer(tmp_path, imported(), 2000)
    assert said.endswith(
        "it has no <mask>, <cls>, <sep>, <extra_id_0>, which tokenizer.extend: true gives it for other objectives than "
        "next_token and prefix_lm"
    )


def test_one_without_an_opening_token_as_t5s_ends_and_begins_documents_with_the_same(imported, tmp_path):
    folder = imported(bos_id=-1, pad_id=0, eos_id=1, unk_id=2)
    assert use_of_tokenizer(tmp_path, folder, 2000).startswith(
        f"its tokenizer: tokenizer.path: {folder}, for data build"
    )


def test_one_with_more_pieces_than_the_model_has_rows_cannot_be_used(imported, tmp_path):
    assert "pieces and the model's vocab_size is 100" in use_of_tokenizer(tmp_path, imported(), 100)


def test_a_folder_without_a_tokenizer_is_told_what_is_read(tmp_path):
    said = use_of_tokenizer(tmp_path, tmp_path / "tokenizer", 100)
    assert "has none in a form that is read (tokenizer.json, tokenizer.model)" in said


def test_a_file_that_is_no_sentencepiece_model_is_said_to_be_none(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_bytes(b"no model")
    assert "not a sentencepiece model" in use_of_tokenizer(tmp_path, tmp_path / "tokenizer", 100)
