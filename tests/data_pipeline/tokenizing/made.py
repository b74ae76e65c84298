"""Tokenizers trained in the style of public ones: the same normalizers, pre-tokenizers, decoders and added tokens."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
RANKS = b"".join(
    base64.b64encode(token) + b" %d\n" % rank
    for rank, token in enumerate([*(bytes([byte]) for byte in range(256)), b"th"])
)
"""The 256 bytes and one token more, as tiktoken keeps them."""


def save(tokenizer: tokenizers.Tokenizer, folder: Path, **config) -> Path:
    """Writes the files that transformers writes."""
    tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_level(texts: Iterable[str], style: str = "gpt2", size: int = 600) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3, Qwen or SmolLM2 have it."""
    made = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3 if style == "llama3" else LLAMA3.replace("{1,3}", "")), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "smollm": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    }.get(style) or pre_tokenizers.Sequence([split, plain])
    if style == "qwen":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    first = {"smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "gpt2": ["<|endoftext|>"]}.get(style, [])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=first)
    made.train_from_iterator(texts, trainer)
    if style == "llama3":
        made.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
        begin = made.token_to_id("<|begin_of_text|>")
        made.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
        )
    if style == "qwen":
        made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        made.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in ("<tool_call>", "<think>")])
    return made


def bert(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """WordPiece as BERT has it."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    made.enable_truncation(128)
    return made


def unigram(texts: Iterable[str], size: int = 600) -> tokenizers.Tokenizer:
    """Unigram as T5's and XLM-R's files have it, special pieces in the vocabulary with a score of 0."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([f"<extra_id_{number}>" for number in reversed(range(10))])
    return made
