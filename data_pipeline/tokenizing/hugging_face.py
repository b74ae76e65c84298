"""Hugging Face's tokenizer.json, through the `tokenizers` package: byte-level BPE, WordPiece, Unigram, Metaspace BPE.

    tokenizer.json, tokenizer_config.json -> Definition -> one in which no special piece matches text -> ids

Special pieces are taken out of what text is looked up in, under names that no text can have, since neither the flag of
`tokenizers` nor that of transformers keeps a Unigram model from finding `</s>` in a text. Added tokens that are not
special (`<tool_call>`) stay what they are: text with an id of its own, as in the original.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from common.files import read_file
from common.json_lines import parse_json
from common.mistakes import Mistake, cut
from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import ROLES, Tokenizer
from data_pipeline.tokenizing.sentence_piece_json import UNLIKELY
from data_pipeline.tokenizing.words import Edges, edges_of_bytes, edges_of_text

NAME, CONFIG, SPECIAL_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ROLE_NAMES = ("bos", "eos", "unk", "pad", "mask", "cls", "sep")
USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "[SEP]"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
"""How special pieces are called where no config beside the tokenizer names one of this role, not even as none."""
UNMATCHED = " "
"""What is put behind the name of a special piece: pre-tokenizers and normalizers leave no blank within a piece."""

OF_A_CLASS = ("auto_map", "tokenizer_class")
"""Keys of a tokenizer_config.json by which transformers would take a class that reads the files in its own way."""

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Definition:
    """A tokenizer.json, and what the files beside it say."""

    file: Path
    """Where it was read from."""
    tree: Json
    """The tokenizer.json."""
    roles: dict[str, str]
    """Special pieces by role: bos, eos, unk, pad, mask, cls and sep, those there are."""
    config: Json = dataclasses.field(default_factory=dict)
    """The tokenizer_config.json."""

    @property
    def added(self) -> list[Json]:
        """Its added tokens, those special that have a role."""
        named, tokens = set(self.roles.values()), self.tree["added_tokens"]
        return [token | {"special": token["special"] or token["content"] in named} for token in tokens]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Every piece and its id."""
        vocab = self.tree["model"]["vocab"]
        pieces = vocab if isinstance(vocab, dict) else {pair[0]: index for index, pair in enumerate(vocab)}
        return {**pieces, **{token["content"]: token["id"] for token in self.tree["added_tokens"]}}

    @functools.cached_property
    def special(self) -> dict[str, int]:
        """Its special pieces and their ids."""
        named = {piece for piece in self.roles.values() if piece in self.ids}
        flagged = [token["content"] for token in self.added if token["special"]]
        return {piece: self.ids[piece] for piece in dict.fromkeys([*flagged, *sorted(named)])}


def read_folder(file: Path) -> Definition:
    """A tokenizer.json and the files beside it. ValueError when they are not what they should be."""
    tree = _read(file)
    model = tree.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise Mistake(f"{file}: is no tokenizer.json, for it has no model with a vocabulary; save it anew")
    tree["added_tokens"] = tree.get("added_tokens") or []
    config = _read(file.parent / CONFIG) if (file.parent / CONFIG).is_file() else {}
    older = _read(file.parent / SPECIAL_MAP) if (file.parent / SPECIAL_MAP).is_file() else {}
    definition = Definition(file, tree, {}, config)
    try:
        roles = {role: _role(role, {**older, **config}, definition.ids) for role in ROLE_NAMES}
    except (TypeError, KeyError, AttributeError) as error:
        raise Mistake(f"{file}: is no tokenizer.json ({cut(repr(error))}); save it anew") from None
    return dataclasses.replace(definition, roles={role: piece for role, piece in roles.items() if piece is not None})


def _read(file: Path) -> Json:
    try:
        value = parse_json(read_file(file))
    except ValueError:
        raise Mistake(f"{file}: is no JSON; save the tokenizer anew") from None
    if not isinstance(value, dict):
        raise Mistake(f"{file}: is no JSON object; save the tokenizer anew")
    return value


def _role(role: str, config: Json, ids: dict[str, int]) -> str | None:
    key = f"{role}_token"
    if key in config:
        value = config[key]
        return value.get("content") if isinstance(value, dict) else value
    return next((piece for piece in USUAL[role] if piece in ids), None)


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json."""

    reference = "tokenizers"

    def __init__(self, definition: Definition, settings: TokenizerConfig):
        # a task of a build has one CPU
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.definition = definition
        self._safe = without_special(definition)
        try:
            self._tokenizers = tokenizers.Tokenizer.from_str(json.dumps(self._safe))
        except Exception as error:  # it has no narrower one
            raise Mistake(f"{definition.file}: the tokenizers package cannot read it ({cut(str(error))})") from None
        self._pieces = {index: piece for piece, index in definition.ids.items()}
        self._cut_out = [token["content"] for token in self._safe["added_tokens"]]
        super().__init__(definition.file, settings, max(self._pieces) + 1, definition.special, definition.roles)
        self._refuse_reachable()

    def _refuse_reachable(self) -> None:
        """ValueError when the name of a special piece, written in a text, still becomes its id."""
        names = [name for piece in self.definition.special for name in (piece, piece + UNMATCHED)]
        others = set(self.definition.special.values()) - {self.unk_id}
        for name, ids in zip(names, self._references(names), strict=True):
            if others.intersection(ids.tolist()):
                raise Mistake(f"{self.model_path}: the text {name!r} would be a special token; use another tokenizer")

    def _references(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._tokenizers.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.uint32) for each in found]

    def _reference(self, text: str) -> np.ndarray:
        return self._references([text])[0]

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizers.decode(ids, skip_special_tokens=False)
        return text

    def _edges(self, index: int) -> Edges:
        piece = self._pieces.get(index)
        if piece is None:
            return " ", " "
        if (raw := self._raw(piece)) is not None:
            return edges_of_bytes(raw)
        prefix = self._safe["model"].get("continuing_subword_prefix")
        first, last = edges_of_text(piece)
        return ("a" if piece.startswith(prefix) else " ", last) if prefix else (first, last)

    def _bytes(self, index: int) -> bytes:
        piece = self._pieces.get(index, "")
        if (raw := self._raw(piece)) is not None:
            return raw
        prefix = self._safe["model"].get("continuing_subword_prefix")
        return piece.removeprefix(prefix or "").replace("\u2581", " ").encode()

    def _raw(self, piece: str) -> bytes | None:
        """What a piece stands for that is bytes; None where it is characters."""
        if self._is_byte_level:
            return bytes_of(piece)
        is_byte = self._safe["model"].get("byte_fallback") and len(piece) == 6 and piece.startswith("<0x")
        return bytes([int(piece[3:5], 16)]) if is_byte else None

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps([self._safe.get("pre_tokenizer"), self._safe.get("normalizer")])

    def _content(self) -> Iterator[bytes]:
        keys = ("normalizer", "pre_tokenizer", "added_tokens", "model")
        yield json.dumps([self._safe.get(key) for key in keys], sort_keys=True).encode()
        yield json.dumps([self.definition.special, self.bos_id, self.eos_id, self.pad_id], sort_keys=True).encode()

    def _definition(self) -> str:
        plain: Json = {"added_tokens": [], "post_processor": None, "decoder": None}
        return json.dumps({**self._safe, **plain})

    def _must_be_reference(self, text: str) -> bool:
        return any(piece in text for piece in self._cut_out)

    def hugging_face_files(self) -> dict[str, bytes]:
        """The original files, with what was added."""
        added = [special_token(piece, self._special[piece]) for piece in self.added]
        tree = {**self.definition.tree, "added_tokens": [*self.definition.tree["added_tokens"], *added]}
        config = {key: value for key, value in self.definition.config.items() if key not in OF_A_CLASS}
        roles = self.definition.roles | {"bos": self._names[self.bos_id], "eos": self._names[self.eos_id]}
        roles |= {role: ROLES[role] for role in ("mask", "cls", "sep") if ROLES[role] in self.added}
        if added:
            config.pop("added_tokens_decoder", None)
        files = named_files(tree, roles, config)
        if not added and self.definition.file.name == NAME:
            files[NAME] = read_file(self.definition.file)
        return files


def named_files(tree: Json, roles: Mapping[str, str], config: Json | None = None) -> dict[str, bytes]:
    """A tokenizer.json and a tokenizer_config.json by which transformers reads it as it stands."""
    named = {f"{role}_token": piece for role, piece in roles.items()}
    config = {**(config or {}), **named, "tokenizer_class": "PreTrainedTokenizerFast"}
    files = {NAME: tree, CONFIG: config}
    return {name: json.dumps(value, ensure_ascii=False, indent=2).encode() for name, value in files.items()}


def special_token(content: str, index: int) -> Json:
    """An added token that is special, as a tokenizer.json has it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": content, **flags}


def without_special(definition: Definition) -> Json:
    """The tokenizer.json in which text finds no special piece, while every other piece keeps its id.

    Special pieces are in the vocabulary under names with a blank behind, which no text has once it is cut; added tokens
    that are not special are in it too, so that none moves to another id.
    """
    tree = {**definition.tree, "truncation": None, "padding": None, "post_processor": None}
    special, model = definition.special, dict(definition.tree["model"])
    renamed = {piece: piece + UNMATCHED for piece in special}
    tree["added_tokens"] = [token for token in definition.added if not token["special"]]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(piece, piece): index for piece, index in definition.ids.items()}
    else:
        pieces = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        later = sorted((index, piece) for piece, index in definition.ids.items() if index >= len(pieces))
        # Unknown characters score by the least of all: were that another, ties behind them would fall elsewhere.
        least = min((score for _, score in pieces), default=UNLIKELY)
        model["vocab"] = pieces + [
            [renamed.get(piece, piece), least if piece in special else UNLIKELY] for _, piece in later
        ]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not renamed.keys() & _parts(merge)]
    tree["model"] = model
    return tree


def _parts(merge: str | list[str]) -> set[str]:
    """What a merge joins, and what it makes."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return {left, right, left + right}


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's characters for bytes: printable ones stand for themselves, others are counted on from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}


ALPHABET = _byte_alphabet()
_BYTES = {character: byte for byte, character in ALPHABET.items()}


def bytes_of(piece: str) -> bytes:
    """Bytes that a piece of a byte-level vocabulary stands for; other characters, as in added tokens, as they are."""
    return b"".join(bytes([_BYTES[c]]) if c in _BYTES else c.encode() for c in piece)
