"""A sentencepiece model as Hugging Face's tokenizer.json: for the fast encoder, and to hand a model of others on.

BPE's merges are written out of the pieces and their scores; what the model does to a text before becomes a chain of
normalizers. Control symbols such as `<s>` are in the vocabulary and in no merge, so that no text becomes one.
"""

import base64
import json
from collections import Counter
from typing import Any

import sentencepiece

from data_pipeline.tokenizing.model_file import ModelFacts

MARK = "\u2581"
"""What sentencepiece writes for a blank."""

UNLIKELY = -1e6
"""Score of a unigram piece that no text is to be cut into."""

Json = dict[str, Any]


def definition(model: sentencepiece.SentencePieceProcessor, facts: ModelFacts) -> Json:
    """The model without added tokens. ValueError where it is neither BPE nor unigram."""
    if facts.model_type not in ("BPE", "unigram"):
        raise ValueError(f"its type is {facts.model_type}")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _normalizer(facts),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(facts),
        "model": _bpe(model, facts) if facts.model_type == "BPE" else _unigram(model, facts),
    }


def for_fast_encoder(model: sentencepiece.SentencePieceProcessor, facts: ModelFacts) -> str:
    """The model for the fast encoder. ValueError where nobody has seen it give sentencepiece's ids."""
    if facts.peculiarity and not facts.only_adds_blank:
        raise ValueError(facts.peculiarity)
    return json.dumps({**definition(model, facts), "decoder": None})


def begins_with(piece: str, index: int) -> Json:
    """The post-processor that puts a special piece before every text."""
    sequence = [{"SpecialToken": {"id": piece, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = {"Sequence": {"id": "B", "type_id": 0}}
    names = {piece: {"id": piece, "ids": [index], "tokens": [piece]}}
    return {"type": "TemplateProcessing", "single": sequence, "pair": [*sequence, second], "special_tokens": names}


def _normalizer(facts: ModelFacts) -> Json:
    steps: list[Json] = []
    if facts.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(facts.charsmap).decode()})
    if facts.drops_blanks:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if facts.adds_blank:
        steps.append({"type": "Prepend", "prepend": MARK})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": MARK})
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}


def _decoder(facts: ModelFacts) -> Json:
    steps: list[Json] = [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if facts.adds_blank:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _bpe(model: sentencepiece.SentencePieceProcessor, facts: ModelFacts) -> Json:
    numbers = range(model.get_piece_size())
    pieces = model.id_to_piece(list(numbers))
    special = {pieces[i] for i in numbers if model.is_control(i) or model.is_byte(i) or model.is_unknown(i)}
    normal = set(pieces) - special
    scores = dict(zip(pieces, model.get_score(list(numbers)), strict=True))
    scores = {piece: score for piece, score in scores.items() if piece in normal}
    # of merges with one score sentencepiece takes the leftmost, so where several pieces have it (runs of blanks in
    # Llama's and Mistral's models), the one that has grown longest from the left goes on growing
    several = Counter(scores.values())
    merges = [
        (-score, cut if several[score] == 1 else -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    merges.sort(key=lambda merge: merge[:2])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.id_to_piece(model.unk_id()),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": facts.byte_fallback,
        "ignore_merges": False,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "merges": [[left, right] for _, _, left, right in merges],
    }


def _unigram(model: sentencepiece.SentencePieceProcessor, facts: ModelFacts) -> Json:
    numbers = list(range(model.get_piece_size()))
    # what sentencepiece finds in no text would be the likeliest of all here, with a score of 0
    scores = [
        UNLIKELY if model.is_control(index) or model.is_unknown(index) else model.get_score(index) for index in numbers
    ]
    vocab = [list(pair) for pair in zip(model.id_to_piece(numbers), scores, strict=True)]
    return {"type": "Unigram", "unk_id": model.unk_id(), "vocab": vocab, "byte_fallback": facts.byte_fallback}
