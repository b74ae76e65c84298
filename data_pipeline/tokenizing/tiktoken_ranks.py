"""tiktoken's files of ranks (`cl100k_base.tiktoken`, Llama 3's `tokenizer.model`) as a tokenizer.json.

Such a file holds tokens in base64 and their ranks, and no more: by which regular expression text is cut, and which
special tokens follow, stands in the code of whoever made it. Those of the encodings that are met are listed here.
Text is cut, and of neighbouring tokens those whose union has the lowest rank become one; a merge for each way in which
a token is made of two others, in the order of ranks, says just that.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from common.files import read_file
from common.mistakes import Mistake, cut
from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizing.hugging_face import ALPHABET, Definition, special_token

END = "<|endoftext|>"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}"
QWEN = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{TAIL}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Encoding(NamedTuple):
    """What the code of an encoding says."""

    pattern: str
    """By which text is cut."""
    special: Mapping[str, int]
    """Special tokens; ids from the end of the ranks on where they are negative: -1 is the first."""
    bos: str | None = None
    eos: str = END


def _following(*names: str) -> dict[str, int]:
    return {name: -1 - number for number, name in enumerate(names)}


_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
_LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{n}|>" for n in range(2))]
_LLAMA3 += ["<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]
_LLAMA3 += ["<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{n}|>" for n in range(2, 247))]
ENCODINGS = {
    "gpt2": Encoding(GPT2, {END: 50256}),
    "r50k_base": Encoding(GPT2, {END: 50256}),
    "p50k_base": Encoding(GPT2, {END: 50256}),
    "cl100k_base": Encoding(CL100K, {END: 100257, **_FIM, "<|endofprompt|>": 100276}),
    "o200k_base": Encoding(O200K, {END: 199999, "<|endofprompt|>": 200018}),
    "llama3": Encoding(CL100K, _following(*_LLAMA3), "<|begin_of_text|>", "<|end_of_text|>"),
    "qwen": Encoding(QWEN, _following(END, "<|im_start|>", "<|im_end|>")),
}
"""By name, as `tokenizer.split_pattern` and files have it."""


def read_ranks(file: Path, settings: TokenizerConfig) -> Definition:
    """A file of ranks as a tokenizer.json. ValueError when it is broken or nobody says how text is cut."""
    ranks = dict(_ranks(file))
    encoding = _encoding(file, settings.split_pattern)
    special = {name: len(ranks) - 1 - index if index < 0 else index for name, index in encoding.special.items()}
    if len(set(ranks.values()) | set(special.values())) < len(ranks) + len(special):
        raise Mistake(
            f"tokenizer.split_pattern: the special tokens of this encoding have ids that {file} uses for text; "
            "name another encoding, or give the regular expression itself"
        )
    spelled = {token: "".join(ALPHABET[byte] for byte in token) for token in ranks}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {spelled[token]: rank for token, rank in ranks.items()},
        "merges": [[spelled[left], spelled[right]] for left, right in _merges(ranks)],
    }
    split = {"type": "Split", "pattern": {"Regex": encoding.pattern}, "behavior": "Isolated", "invert": False}
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            special_token(name, index) for name, index in sorted(special.items(), key=lambda pair: pair[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, in_bytes]},
        "post_processor": None,
        "decoder": in_bytes,
        "model": model,
    }
    roles = {"eos": encoding.eos} | ({"bos": encoding.bos} if encoding.bos else {})
    return Definition(file, tree, roles)


def _ranks(file: Path) -> Iterator[tuple[bytes, int]]:
    for number, line in enumerate(read_file(file).splitlines(), 1):
        try:
            token, rank = line.split()
            yield base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            if line.strip():
                raise Mistake(
                    f"{file}: line {number} is no token in base64 with its rank, but {cut(repr(line))}; "
                    "fetch the file again"
                ) from None


def _encoding(file: Path, asked: str | None) -> Encoding:
    name = asked or file.name.removesuffix(".tiktoken")
    if name in ENCODINGS:
        return ENCODINGS[name]
    if asked is None:
        raise Mistake(
            f"tokenizer.split_pattern: {file} does not say how text is cut; name its encoding "
            f"({', '.join(ENCODINGS)}), or give its regular expression"
        )
    return Encoding(asked, _following(END))


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every way in which a token is made of two others, in the order of the ranks of what is made."""
    for token in sorted(ranks, key=ranks.__getitem__):
        ways = [(token[:at], token[at:]) for at in range(1, len(token))]
        yield from sorted(
            ((left, right) for left, right in ways if left in ranks and right in ranks),
            key=lambda way: (ranks[way[0]], ranks[way[1]]),
        )
