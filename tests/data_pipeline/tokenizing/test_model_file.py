import io

import numpy as np
import pytest
import sentencepiece

from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, SourceConfig, TokenizerConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizing.model_file import ModelFacts

PLAIN = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "vocab_size": 600,
}


@pytest.fixture
def make_model(tmp_path, stdlib_documents):
    """Function that trains a sentencepiece model with settings that are not ours; returns its path."""

    def make(**changes):
        model = io.BytesIO()
        lines = iter("\n".join(stdlib_documents[:5]).split("\n"))
        settings = {**PLAIN, **changes}
        sentencepiece.SentencePieceTrainer.Train(sentence_iterator=lines, model_writer=model, minloglevel=2, **settings)
        path = tmp_path / "their.model"
        path.write_bytes(model.getvalue())
        return path

    return make


def test_our_own_models_have_no_peculiarity(tokenizer):
    facts = ModelFacts.of(tokenizer.model_path.read_bytes())
    assert facts == ModelFacts("BPE", True, False, False, 0)
    assert facts.peculiarity is None


@pytest.mark.parametrize(
    "behind",
    [
        b"\x12\x05\x1d\x01\x02\x03\x04",  # the trainer's model_type as a number of fixed width
        b"\x12\x04\x1a\x02un",  # ... as text
        b"\x12\x02\x18\x4d",  # ... as a type that does not exist
        b"\xa3\x06\x12\x02\x18\x01\xa4\x06",  # a trainer inside of a group
        b"\x1a\x05\x15\x01\x02\x03\x04",  # the map of characters as a number
    ],
)
def test_fields_that_sentencepiece_passes_over_change_nothing(tokenizer, behind, tmp_path):
    whole = tokenizer.model_path.read_bytes()
    (tmp_path / "changed.model").write_bytes(whole + behind)
    changed = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "changed.model"))
    facts = ModelFacts.of(changed.serialized_model_proto())
    assert (facts, facts.charsmap) == (ModelFacts.of(whole), b"")
    assert ModelFacts.kinds(whole + behind) == ModelFacts.kinds(whole)
    assert changed.encode("def f(x):\n") == tokenizer.encode("def f(x):\n").tolist()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "unigram"}, "its type is unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises the text"),
        ({"remove_extra_whitespaces": True}, "it normalises the text"),
        ({"byte_fallback": False}, "it has no byte fallback"),
        ({"user_defined_symbols": ["<tool>"]}, "it has user-defined symbols"),
        ({"treat_whitespace_as_suffix": True}, "it marks blanks at the end of pieces"),
    ],
)
def test_models_of_other_kinds_are_encoded_by_sentencepiece_itself(make_model, changes, words, monkeypatch):
    monkeypatch.setattr("data_pipeline.tokenizing.sentence_pieces.LONG_TEXT", 50)
    path = make_model(**changes)
    theirs = Tokenizer.load(path)
    assert theirs.encoder == "sentencepiece"
    assert words in theirs.encoder_note
    text = "a  <tool> def f(x):\n" * 30
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert np.array_equal(theirs.encode(text), reference.EncodeAsNumpy(text))


def test_a_blank_before_each_text_is_added_by_the_fast_encoder_too(make_model, monkeypatch, stdlib_documents):
    monkeypatch.setattr("data_pipeline.tokenizing.sentence_pieces.LONG_TEXT", 50)
    path = make_model(add_dummy_prefix=True)
    theirs = Tokenizer.load(path)
    assert theirs.facts.peculiarity == "it adds a blank to each text"
    assert theirs.encoder == "gigatoken"
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in stdlib_documents[:30]:
        assert np.array_equal(theirs.encode(text), reference.EncodeAsNumpy(text))


def test_where_a_model_has_one_border_of_documents_it_serves_as_both(make_model):
    theirs = Tokenizer.load(make_model(bos_id=-1, eos_id=1))
    assert theirs.bos_id == theirs.eos_id == 1
    tokens, lengths = theirs.encode_documents(["a"])
    assert (tokens[0], tokens[-1], lengths[0]) == (1, 1, len(tokens))


def test_a_model_without_borders_of_documents_is_refused(make_model):
    path = make_model(bos_id=-1, eos_id=-1, control_symbols=["<end>"])
    with pytest.raises(ValueError, match=r"their\.model: has no </s> .*; name a special piece of it as"):
        Tokenizer.load(path)
    theirs = Tokenizer.load(TokenizerConfig(path=str(path), eos_token="<end>"))
    assert theirs.decode([theirs.bos_id, theirs.eos_id], show_special=True) == "<end><end>"
    with pytest.raises(ValueError, match=r"tokenizer\.bos_token: '<s>' is no special piece of .*; it has <unk>, <end>"):
        Tokenizer.load(TokenizerConfig(path=str(path), eos_token="<end>", bos_token="<s>"))


def test_a_build_refuses_a_tokenizer_before_it_looks_at_its_sources(make_model, tmp_path):
    make_model(bos_id=-1, eos_id=-1).rename(tmp_path / "tokenizer.model")
    config = DataConfig(path=str(tmp_path / "data"), sources=[SourceConfig(path=str(tmp_path / "nothing"))])
    with pytest.raises(ValueError, match=r"has no </s>"):
        build_dataset(config, TokenizerConfig(path=str(tmp_path)))
    assert not (tmp_path / "data").exists()
