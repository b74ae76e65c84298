import io

import numpy as np
import pytest
import sentencepiece

from data_pipeline.building.build import build_dataset
from data_pipeline.config import DataConfig, SourceConfig, TokenizerConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
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
    ("changes", "words"),
    [
        ({"model_type": "unigram"}, "its type is unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises the text"),
        ({"remove_extra_whitespaces": True}, "it normalises the text"),
        ({"add_dummy_prefix": True}, "it adds a blank to each text"),
        ({"byte_fallback": False}, "it has no byte fallback"),
        ({"user_defined_symbols": ["<tool>"]}, "it has user-defined symbols"),
        ({"treat_whitespace_as_suffix": True}, "it marks blanks at the end of pieces"),
    ],
)
def test_models_of_other_kinds_are_encoded_by_sentencepiece_itself(make_model, changes, words, monkeypatch):
    monkeypatch.setattr("data_pipeline.tokenizer.LONG_TEXT", 50)
    path = make_model(**changes)
    theirs = Tokenizer.load(path)
    assert theirs.encoder == "sentencepiece"
    assert words in theirs.encoder_note
    text = "a  <tool> def f(x):\n" * 30
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert np.array_equal(theirs.encode(text), reference.EncodeAsNumpy(text))
    with pytest.raises(
        ValueError, match=rf"^tokenizer\.path: .*their\.model is of a kind .*\({words}.*\); train another"
    ):
        theirs.refuse_peculiar()


@pytest.mark.parametrize(("key", "name"), [("bos_id", "<s>"), ("eos_id", "</s>")])
def test_a_model_without_borders_of_documents_is_refused(make_model, key, name):
    path = make_model(**{key: -1})
    with pytest.raises(ValueError, match=rf"their\.model: has no {name} .*; train"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"add_dummy_prefix": True}, "it adds a blank"), ({"bos_id": -1}, "has no <s>")],
)
def test_a_build_refuses_them_before_it_looks_at_its_sources(make_model, tmp_path, changes, words):
    make_model(**changes).rename(tmp_path / "tokenizer.model")
    config = DataConfig(path=str(tmp_path / "data"), sources=[SourceConfig(path=str(tmp_path / "nothing"))])
    with pytest.raises(ValueError, match=words):
        build_dataset(config, TokenizerConfig(path=str(tmp_path)))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tokenizer.json", "a tokenizer of Hugging Face, which is not read here; or name another folder"),
        ("spiece.model", "copy it to tokenizer.model in a folder of its own"),
    ],
)
def test_a_tokenizer_in_another_form_is_named_and_nothing_is_trained_beside_it(tmp_path, name, words):
    (tmp_path / name).write_text("{}")
    for act in (Tokenizer.load, lambda path: train_tokenizer(TokenizerConfig(path=str(path)), [])):
        with pytest.raises(ValueError, match=rf"tokenizer\.path: .* holds {name} and no tokenizer\.model: .*{words}"):
            act(tmp_path)
