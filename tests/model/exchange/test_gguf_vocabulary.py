import json

import pytest
import tokenizers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from common.mistakes import Mistake
from model.exchange.gguf.file import GgufFile
from model.exchange.gguf.vocabulary import (
    CONTROL,
    LLAMA_3_WORDS,
    QWEN_2_WORDS,
    UNUSED,
    USER_DEFINED,
    json_vocabulary,
    known_words,
    sentencepiece_vocabulary,
)
from model.exchange.parity import AWKWARD_TEXTS
from tests.data_pipeline.tokenizing.made import LLAMA3, bert, byte_level
from tests.model.exchange.gguf_files import gguf_model, write

PLAIN = {
    "model_type": "BPE",
    "byte_fallback": True,
    "adds_blank": False,
    "drops_blanks": False,
    "mark_ends_words": False,
    "charsmap": b"",
}
PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("\u2581a", -1.0, 1)]


@pytest.fixture(scope="module")
def texts(request):
    return request.getfixturevalue("stdlib_documents")[:20]


def made(texts, style):
    found = byte_level(texts, style, size=500)
    if style == "llama3":
        found.model.ignore_merges = True  # as its own file has it
    return found


@pytest.mark.parametrize("style", ["gpt2", "llama3"])
def test_transformers_gives_the_same_ids_from_the_file(style, texts, tmp_path, tokenizer_model):
    original = made(texts, style)
    vocabulary = json_vocabulary(original.to_str().encode())
    file = tmp_path / "model.gguf"
    end = original.token_to_id({"gpt2": "<|endoftext|>", "llama3": "<|end_of_text|>"}[style])
    ids = dict.fromkeys(("bos_id", "eos_id", "pad_id"), end)
    write(gguf_model("causal", num_layers=1), file, tokenizer_model, vocabulary=vocabulary, texts=None, ids=ids)
    assert GgufFile(file).keys["tokenizer.ggml.pre"] == {"gpt2": "gpt-2", "llama3": "llama-bpe"}[style]
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf", local_files_only=True)
    for text in (*AWKWARD_TEXTS, texts[0][:2000], "12345 + 6789"):
        expected = original.encode(text, add_special_tokens=False).ids
        assert theirs.encode(text, add_special_tokens=False) == expected


def test_special_and_added_tokens_are_told_apart(texts):
    original = made(texts, "llama3")
    original.add_tokens([tokenizers.AddedToken("<tool>")])
    found = json_vocabulary(original.to_str().encode()).padded(700)
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert len(found.tokens) == len(found.types) == 700
    assert kinds["<|eot_id|>"] == CONTROL and kinds["<tool>"] == USER_DEFINED and kinds["[PAD699]"] == UNUSED
    assert [found.tokens[original.token_to_id(name)] for name in ("<tool>", "<|eot_id|>")] == ["<tool>", "<|eot_id|>"]
    with pytest.raises(Mistake, match="the model only 100 rows"):
        found.padded(100)


@pytest.mark.parametrize(("style", "name"), [("gpt2", "gpt-2"), ("smollm", "smollm"), ("llama3", "llama-bpe")])
def test_ways_to_cut_words_are_known_by_their_names_in_llama_cpp(style, name, texts):
    assert known_words(json.loads(made(texts, style).to_str())["pre_tokenizer"]) == name


def test_expressions_are_those_of_the_published_files():
    assert LLAMA_3_WORDS == LLAMA3 and QWEN_2_WORDS == PRETOKENIZE_REGEX


def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(texts):
    with pytest.raises(Mistake, match="no byte-level BPE"):
        json_vocabulary(bert(texts).to_str().encode())
    with pytest.raises(Mistake, match="normalises the text"):
        json_vocabulary(made(texts, "qwen").to_str().encode())
    with pytest.raises(Mistake, match="no name for the way"):
        json_vocabulary(byte_level(texts, "llama3", size=500).to_str().encode())
    odd = json.loads(made(texts, "llama3").to_str())
    odd["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"
    with pytest.raises(Mistake, match="no name for the way"):
        json_vocabulary(json.dumps(odd).encode())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "word"}, "type is word"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"drops_blanks": True}, "normalises"),
        ({"charsmap": b"x"}, "normalises"),
        ({"mark_ends_words": True}, "marks blanks at the end"),
    ],
)
def test_sentencepiece_models_that_llama_cpp_would_read_otherwise_are_refused(changes, text):
    with pytest.raises(Mistake, match=text):
        sentencepiece_vocabulary(PIECES, **PLAIN | changes)


def test_a_unigram_model_takes_its_map_of_characters_along():
    changes = {"model_type": "unigram", "byte_fallback": False, "charsmap": b"map", "drops_blanks": True}
    found = sentencepiece_vocabulary(PIECES, **PLAIN | changes | {"adds_blank": True})
    assert (found.model, found.charsmap, found.adds_blank, found.drops_blanks) == ("t5", b"map", True, True)
    assert list(found.scores) == [0.0, 0.0, -1.0]
