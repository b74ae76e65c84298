import base64

import numpy as np
import pytest
import tiktoken

from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import AWKWARD_STRINGS, Tokenizer
from data_pipeline.tokenizing.hugging_face import bytes_of
from tests.data_pipeline.tokenizing.made import RANKS, byte_level

PUBLISHED = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    "cl100k_base": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s""",
    "o200k_base": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
}
"""The expressions by which tiktoken itself cuts text."""


@pytest.fixture(scope="module")
def ranks(stdlib_documents):
    """800 tokens learnt from text by the `tokenizers` package, as ranks: the bytes first, then what merges make."""
    trained = byte_level([*stdlib_documents[:12], "\u4e2d\u6587\u5b57\u7b26 " * 50], "llama3", 800)
    special = {"<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"}
    pieces = sorted(trained.get_vocab().items(), key=lambda pair: pair[1])
    tokens = [bytes_of(piece) for piece, _ in pieces if piece not in special]
    return {token: rank for rank, token in enumerate(tokens)}


def save(ranks, file, **settings) -> Tokenizer:
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return Tokenizer.load(TokenizerConfig(path=str(file.parent), **settings))


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_are_those_of_tiktoken(ranks, name, tmp_path, stdlib_documents):
    special = {"<|endoftext|>": 900}
    original = tiktoken.Encoding(name, pat_str=PUBLISHED[name], mergeable_ranks=ranks, special_tokens=special)
    ours = save(ranks, tmp_path / f"{name}.tiktoken")
    assert ours.encoder == "gigatoken", ours.encoder_note
    for text in (*AWKWARD_STRINGS, *stdlib_documents[:40], "a <|endoftext|> b"):
        expected = original.encode_ordinary(text)
        assert ours.encode(text).tolist() == expected
        assert np.array_equal(ours._reference(text), expected)
        assert ours.decode(expected) == text


def test_special_tokens_of_known_encodings_have_the_ids_they_are_published_with(tmp_path):
    many = {bytes([byte]): byte for byte in range(256)}
    cl100k = save(many, tmp_path / "cl100k_base.tiktoken")
    assert (cl100k.bos_id, cl100k.eos_id, cl100k.vocab_size) == (100257, 100257, 100277)
    assert cl100k.decode([100257, 100276], show_special=True) == "<|endoftext|><|endofprompt|>"
    (tmp_path / "cl100k_base.tiktoken").unlink()
    llama = save(many, tmp_path / "tokenizer.model", split_pattern="llama3")
    assert llama.vocab_size == 256 + 256
    assert llama.decode([256, 257, 256 + 9], show_special=True) == "<|begin_of_text|><|end_of_text|><|eot_id|>"


def test_any_regular_expression_can_cut_the_text(tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    ours = save(ranks, tmp_path / "own.tiktoken", split_pattern="a|b")
    assert ours.encode("ab").tolist() == [97, 98]
    assert (ours.eos_id, ours.vocab_size) == (257, 258)
    assert ours.special_ids == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (RANKS + b"not a rank\n", r"line 258 is no token in base64 with its rank, but b'not a rank'"),
        (RANKS.replace(b" 256", b" 50256"), r"the special tokens of this encoding have ids that .* uses for text"),
    ],
)
def test_ranks_that_cannot_be_are_one_sentence(tmp_path, content, words):
    (tmp_path / "gpt2.tiktoken").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Tokenizer.load(tmp_path)
