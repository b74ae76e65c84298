"""What a GGUF file says of a tokenizer, and which tokenizers llama.cpp reads as they are meant.

    sentencepiece, BPE      -> `llama`: pieces, scores and kinds; characters without a piece become bytes
    sentencepiece, unigram  -> `t5`: the same, with its map of characters
    tokenizer.json, byte-level BPE -> `gpt2`: pieces and merges, and by which name llama.cpp knows its expression that
                               cuts a text into words; it has those that are in it, so another one is refused
    none                    -> `none`: ids alone

Kinds of pieces have the numbers of sentencepiece's, which are llama.cpp's too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.mistakes import Mistake

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_2_WORDS = LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
"""Expressions that cut a text into words, in `tokenizer.json` files of these families."""


class Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp sees it."""

    model: str
    """`llama`, `t5`, `gpt2` or `none`."""
    tokens: Sequence[str] = ()
    types: Sequence[int] = ()
    """Kinds of the tokens."""
    scores: Sequence[float] = ()
    """Of sentencepiece's pieces."""
    merges: Sequence[str] = ()
    """Of byte-level BPE, `left right` each."""
    pre: str = "default"
    """By which name llama.cpp knows how a text is cut into words."""
    adds_blank: bool = False
    """Whether a blank is put before a text."""
    drops_blanks: bool = False
    """Whether blanks at the ends of a text and all but one in a row are dropped."""
    charsmap: bytes = b""
    """What characters are normalised by."""

    def padded(self, vocab_size: int) -> "Vocabulary":
        """The same with as many tokens as the model has rows, the last of which no text gives."""
        missing = vocab_size - len(self.tokens)
        if self.model == "none":
            return self
        if missing < 0:
            raise Mistake(f"tokenizer: it has {len(self.tokens)} tokens and the model only {vocab_size} rows")
        return self._replace(
            tokens=[*self.tokens, *(f"[PAD{len(self.tokens) + number}]" for number in range(missing))],
            types=[*self.types, *[UNUSED] * missing],
            scores=[*self.scores, *[-1000.0] * missing] if self.scores else (),
        )


def sentencepiece_vocabulary(
    pieces: Sequence[tuple[str, float, int]],
    model_type: str,
    *,
    byte_fallback: bool,
    adds_blank: bool,
    drops_blanks: bool,
    mark_ends_words: bool,
    charsmap: bytes,
) -> Vocabulary:
    """A sentencepiece model: (piece, score, kind) each, and how it treats a text.

    Raises ValueError for what llama.cpp would read otherwise.
    """
    obstacles = {
        f"its type is {model_type}": model_type not in ("BPE", "unigram"),
        "it marks blanks at the end of pieces": mark_ends_words,
        "it has no byte fallback": model_type == "BPE" and not byte_fallback,
        "it normalises the text": model_type == "BPE" and (drops_blanks or bool(charsmap)),
    }
    if found := next((name for name, there in obstacles.items() if there), None):
        raise Mistake(f"{found}, which llama.cpp has no form of")
    tokens, scores, kinds = zip(*pieces, strict=True)
    model = "llama" if model_type == "BPE" else "t5"
    return Vocabulary(model, tokens, kinds, scores, adds_blank=adds_blank, drops_blanks=drops_blanks, charsmap=charsmap)


def json_vocabulary(definition: bytes) -> Vocabulary:
    """A `tokenizer.json` that its own library has accepted. Raises ValueError unless it is byte-level BPE as known."""
    tree: dict[str, Any] = json.loads(definition)
    model = tree["model"]
    if model.get("type") != "BPE" or not _is_byte_level(tree):
        raise Mistake("it is no byte-level BPE, the only kind of tokenizer.json that llama.cpp reads")
    if tree.get("normalizer") is not None:
        raise Mistake("it normalises the text, which llama.cpp does not with byte-level BPE")
    pre = known_words(tree["pre_tokenizer"])
    if pre is None or bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        raise Mistake("llama.cpp has no name for the way in which it cuts a text into words")
    ids: dict[str, int] = dict(model["vocab"])
    kinds = dict.fromkeys(ids, NORMAL)
    for token in tree.get("added_tokens", []):
        ids[token["content"]] = token["id"]
        kinds[token["content"]] = CONTROL if token["special"] else USER_DEFINED
    names = {index: name for name, index in ids.items()}
    tokens = [names.get(index, f"[PAD{index}]") for index in range(max(names) + 1)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary("gpt2", tokens, [kinds.get(token, UNUSED) for token in tokens], merges=merges, pre=pre)


def known_words(pre_tokenizer: Mapping[str, Any]) -> str | None:
    """The name that llama.cpp has for a `pre_tokenizer`, None for one that is not known to be one of its own."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [step["type"] for step in steps]
    byte_level = steps[-1]
    if byte_level["type"] != "ByteLevel" or byte_level.get("add_prefix_space"):
        return None
    uses_own = byte_level.get("use_regex", True)
    if kinds == ["ByteLevel"] and uses_own:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and uses_own and steps[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not uses_own and not steps[0].get("invert"):
        known = {LLAMA_3_WORDS: "llama-bpe", QWEN_2_WORDS: "qwen2"}
        return known.get(steps[0]["pattern"].get("Regex")) if steps[0]["behavior"] == "Isolated" else None
    return None


def _is_byte_level(tree: Mapping[str, Any]) -> bool:
    pre_tokenizer = tree.get("pre_tokenizer")
    return pre_tokenizer is not None and "ByteLevel" in json.dumps(pre_tokenizer)
