import pytest

from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.tokenizer import Tokenizer, train_tokenizer
from data_pipeline.tokenizing.finding import files_to_take_along
from tests.data_pipeline.tokenizing.made import RANKS, byte_level, save


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vocab.json", "save it as a tokenizer.json with transformers; or name another folder"),
        ("sentencepiece.bpe.model", "whose ids fairseq moves; take the tokenizer.json"),
    ],
)
def test_a_tokenizer_in_a_form_that_is_not_read_is_named_and_nothing_is_trained_beside_it(tmp_path, name, words):
    (tmp_path / name).write_text("{}")
    for act in (Tokenizer.load, lambda path: train_tokenizer(TokenizerConfig(path=str(path)), [])):
        with pytest.raises(ValueError, match=rf"tokenizer\.path: .* holds {name} and no tokenizer\.model: .*{words}"):
            act(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "ours.tiktoken"])
def test_nothing_is_trained_beside_a_tokenizer_of_others(tmp_path, name):
    (tmp_path / name).write_text("{}")
    config = TokenizerConfig(path=str(tmp_path))
    with pytest.raises(ValueError, match=rf"holds a {name} that was not trained here .*data build CONFIG' to use it"):
        train_tokenizer(config, [SourceConfig(path="any.jsonl")])


def test_between_tokenizers_of_others_the_user_chooses(tmp_path, stdlib_documents):
    save(byte_level(stdlib_documents[:5]), tmp_path)
    (tmp_path / "gpt2.tiktoken").write_bytes(RANKS)
    with pytest.raises(ValueError, match=r"holds tokenizer\.json \(hugging_face\) and gpt2\.tiktoken \("):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(TokenizerConfig(path=str(tmp_path), kind="hugging_face")).model_path.name == "tokenizer.json"
    assert Tokenizer.load(tmp_path / "tokenizer.json").own_size == 600
    with pytest.raises(ValueError, match=r"tokenizer\.kind: sentencepiece is not what .* holds: tokenizer\.json"):
        Tokenizer.load(TokenizerConfig(path=str(tmp_path), kind="sentencepiece"))


def test_one_trained_here_is_taken_whatever_lies_beside_it(tmp_path, stdlib_documents, tokenizer):
    save(byte_level(stdlib_documents[:5]), tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_path.read_bytes())
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert [file.name for file in files_to_take_along(tmp_path)] == ["tokenizer.model"]


def test_of_the_tokenizers_of_a_model_the_one_that_knows_all_ids_is_taken_along(tmp_path, stdlib_documents):
    assert files_to_take_along(tmp_path) == []
    (tmp_path / "spiece.model").write_bytes(b"a model of others")
    assert [file.name for file in files_to_take_along(tmp_path)] == ["spiece.model"]
    save(byte_level(stdlib_documents[:5]), tmp_path, eos_token="<|endoftext|>")
    assert [file.name for file in files_to_take_along(tmp_path)] == ["tokenizer.json", "tokenizer_config.json"]


def test_llama_3_s_ranks_are_known_though_they_are_called_a_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(RANKS)
    with pytest.raises(ValueError, match=r"tokenizer\.split_pattern: .* does not say how text is cut; name its"):
        Tokenizer.load(tmp_path)
    loaded = Tokenizer.load(TokenizerConfig(path=str(tmp_path), split_pattern="llama3"))
    assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (257, 258, 257 + 256)
    (tmp_path / "tokenizer.model").rename(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json: is no JSON"):
        Tokenizer.load(tmp_path)
