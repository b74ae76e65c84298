"""Text to ids and back, by whichever tokenizer lies in a folder.

    Tokenizer.load(folder or tokenizer section) -> what lies there (tokenizing/finding.py)
        -> sentencepiece, trained here or by others   (tokenizing/sentence_pieces.py)
        -> Hugging Face's tokenizer.json              (tokenizing/hugging_face.py)
        -> tiktoken's ranks, as a tokenizer.json      (tokenizing/tiktoken_ranks.py)
    -> encode, encode_documents, decode; record() for a dataset's manifest

The ids are those of the original library. A faster encoder stands in for it where it has given the same ids on awkward
strings and on samples of the very text (see `matches_reference`). No text ever becomes a special id. Pieces that
objectives need and the tokenizer lacks get ids after its own (`tokenizer.extend`).
"""

import abc
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xxhash

from common.mistakes import Mistake
from data_pipeline.building.tokenizer_training import MODEL_NAME, TokenizerReport, train_tokenizer
from data_pipeline.config import TokenizerConfig
from data_pipeline.flags import packed_flags
from data_pipeline.shards import token_dtype
from data_pipeline.tokenizing.words import Edges, is_inside_word

if TYPE_CHECKING:
    from data_pipeline.tokenizing.fast_encoder import FastEncoder

__all__ = ["AWKWARD_STRINGS", "FAST_ENCODER", "MODEL_NAME", "Tokenizer", "TokenizerReport", "train_tokenizer"]

FAST_ENCODER = "gigatoken"
"""What may stand in for the original library."""

AWKWARD_STRINGS = (
    "",
    " ",
    "  two leading blanks",
    "trailing blanks   ",
    "\t\ttabs\tand \t mixed",
    "line\nfeeds\n\n\nand\r\nreturns\r",
    "NUL \x00 and \x01\x7f controls",
    "form\x0cfeed, line\u2028separator, next\x85line, no\u00a0break, zero\u200bwidth, \ufeffmark",
    "emoji \U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\u4e2d\u6587\u5b57\u7b26\uff0c\u6ca1\u6709\u7a7a\u683c\u3002 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "e\u0301 \u00e9 \ufb01 \u00df \u0130",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "<unk><s></s><pad> <mask> [R][S][X] <extra_id_0> <0x0A>",
    "a" * 100 + " " * 37 + "=" * 64,
    "if x:\n        return [y**2 for y in range(10)]\n",
    "\u2581word mark\u2581",
)
"""Strings on which encoders are known to differ."""

ROLES = {"mask": "<mask>", "cls": "<cls>", "sep": "<sep>", "R": "[R]", "S": "[S]", "X": "[X]"}
"""Special pieces by what objectives call them, and how they are written where nobody says otherwise."""


class Tokenizer(abc.ABC):
    """Ids below `vocab_size`: the tokenizer's own, then what it was extended by."""

    reference: ClassVar[str]
    """Name of the library whose ids these are."""

    def __init__(
        self,
        model_path: Path,
        settings: TokenizerConfig,
        own_size: int,
        special: Mapping[str, int],
        roles: Mapping[str, str],
    ):
        """special: ids of its own special pieces by their text; roles: which of them is bos, eos, pad, unk, mask ..."""
        self.model_path = model_path
        self.own_size = own_size
        self._special = dict(special)
        found = {name: self._special[piece] for name, piece in roles.items() if piece in self._special}
        self.pad_id, self.unk_id = found.get("pad", -1), found.get("unk", -1)
        self.bos_id, self.eos_id = self._borders(settings, found)
        self._roles = {name: found.get(name, self._special.get(piece, -1)) for name, piece in ROLES.items()}
        self.added = self._lacking(settings.num_sentinels) if settings.extend else []
        self._special |= {piece: own_size + number for number, piece in enumerate(self.added)}
        for name, piece in ROLES.items():
            if piece in self.added:
                self._roles[name] = self._special[piece]
        self.vocab_size = own_size + len(self.added)
        self._names = {index: piece for piece, index in self._special.items()}
        self._fast: FastEncoder | None = None
        self.encoder_note = f"{self.reference} encodes because fast_encoder is off"

    @staticmethod
    def load(where: str | Path | TokenizerConfig, fast_encoder: str | None = None) -> "Tokenizer":
        """The tokenizer of a config section, of a folder or of a file; `fast_encoder` instead of the section's own.

        Raises ValueError when there is none, more than one, or it cannot be read.
        """
        from data_pipeline.tokenizing.finding import open_tokenizer  # knows the kinds, which build on this module

        settings = where if isinstance(where, TokenizerConfig) else TokenizerConfig(path=str(where))
        loaded = open_tokenizer(settings)
        if (fast_encoder or settings.fast_encoder) == "auto":
            loaded._use_fast_encoder()
        return loaded

    def _borders(self, settings: TokenizerConfig, found: dict[str, int]) -> tuple[int, int]:
        """Ids that begin and end documents: those of the config, else its own; where it has one, that does both."""
        for key, role in (("bos_token", "bos"), ("eos_token", "eos")):
            piece = getattr(settings, key)
            if piece is not None and piece not in self._special:
                some = ", ".join(itertools.islice(self._special, 8)) or "none"
                raise Mistake(f"tokenizer.{key}: {piece!r} is no special piece of {self.model_path}; it has {some}")
            if piece is not None:
                found[role] = self._special[piece]
        eos = found.get("eos", found.get("bos", -1))
        if eos < 0:
            raise Mistake(
                f"{self.model_path}: has no </s> to put at the borders of documents; name a special piece of it as "
                "tokenizer.eos_token, or train another with 'shardline tokenizer train CONFIG'"
            )
        return found.get("bos", eos), eos

    def _lacking(self, num_sentinels: int) -> list[str]:
        """Special pieces it does not have."""
        pieces = [piece for name, piece in ROLES.items() if self._roles[name] < 0]
        return pieces if self.sentinel_ids else pieces + [f"<extra_id_{number}>" for number in range(num_sentinels)]

    # ---- what each kind knows

    @abc.abstractmethod
    def _reference(self, text: str) -> np.ndarray:
        """Ids that the original library gives a text, none of them special but for what it has no piece for."""

    @abc.abstractmethod
    def _text(self, ids: list[int]) -> str:
        """Text of ids of which none is special."""

    @abc.abstractmethod
    def _edges(self, index: int) -> Edges:
        """First and last character of an own piece that is not special."""

    @abc.abstractmethod
    def _bytes(self, index: int) -> bytes:
        """Text of an own piece that is not special, as UTF-8."""

    @abc.abstractmethod
    def _content(self) -> Iterator[bytes]:
        """All that decides the ids of its own, for the fingerprint."""

    @abc.abstractmethod
    def _definition(self) -> str:
        """A tokenizer.json for the fast encoder in which no special piece matches text; ValueError if there is none."""

    def _references(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._reference(text) for text in texts]

    def _must_be_reference(self, text: str) -> bool:
        """Whether a text holds what only the original library knows how to cut."""
        return False

    def hugging_face_files(self) -> dict[str, bytes] | None:
        """Files by which transformers gives the same ids, None where a converter has to make them of `model_path`."""
        return None

    # ---- what a dataset records

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what decides the ids, xxh3_128 hex; not of the file."""
        digest = xxhash.xxh3_128()
        for part in self._content():
            digest.update(part)
        for piece in self.added:
            digest.update(f"{piece}\0added\0".encode())
        return digest.hexdigest()

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special pieces there are: pad, unk, mask, cls, sep, R, S and X."""
        ids = {"pad": self.pad_id, "unk": self.unk_id, **self._roles}
        return {name: index for name, index in ids.items() if index >= 0}

    @property
    def names(self) -> list[str]:
        """Its special pieces, as they are written."""
        return list(self._special)

    def special_id(self, piece: str) -> int:
        """Id of a special piece, as it is written."""
        return self._special[piece]

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>` ..., as many as there are."""
        found = (self._special.get(f"<extra_id_{number}>", -1) for number in itertools.count())
        ids = list(itertools.takewhile(lambda index: index >= 0, found))
        step = self._sentinel_step(ids)
        return [index for number, index in enumerate(ids) if index == ids[0] + step * number]

    @staticmethod
    def _sentinel_step(ids: Sequence[int]) -> int:
        """From one sentinel to the next: T5's count down."""
        return -1 if len(ids) > 1 and ids[1] < ids[0] else 1

    def record(self) -> dict[str, Any]:
        """What a dataset's manifest keeps of its tokenizer, by key."""
        starts, ends = self.word_borders
        return {
            "tokenizer_fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "dtype": token_dtype(self.vocab_size).name,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "special_ids": self.special_ids,
            "num_sentinels": len(self.sentinel_ids),
            "first_sentinel_id": next(iter(self.sentinel_ids), None),
            "sentinel_step": self._sentinel_step(self.sentinel_ids),
            "word_starts": packed_flags(starts),
            "word_ends": packed_flags(ends),
        }

    @functools.cached_property
    def word_borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether an id begins a word wherever it stands, and whether it ends one: bool [V] each.

        Words are runs of letters and digits, as in BERT's basic tokenizer: every mark and every Chinese character is
        one of its own. A byte that begins a character outside ASCII begins a word too.
        """
        edges = [(" ", " ") if index in self._names else self._edges(index) for index in range(self.vocab_size)]
        inner = np.array([[is_inside_word(first), is_inside_word(last)] for first, last in edges]).reshape(-1, 2)
        return ~inner[:, 0], ~inner[:, 1]

    @functools.cached_property
    def text_bytes(self) -> np.ndarray:
        """UTF-8 bytes of the text that each id stands for, int64 [V]: none for special ones."""
        sizes = (0 if index in self._names else len(self._bytes(index)) for index in range(self.vocab_size))
        return np.fromiter(sizes, np.int64, self.vocab_size)

    # ---- encoding and decoding

    @property
    def encoder(self) -> str:
        """Name of the encoder in use."""
        return FAST_ENCODER if self._fast else self.reference

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [T]; no special one among them, whatever the text says."""
        return self._encode_all([text])[0].astype(np.int32)

    def encode_documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of many documents, int32 [sum of lengths], and their lengths, int64 [N]; bos and eos are in both."""
        bos, eos = np.array([self.bos_id], np.uint32), np.array([self.eos_id], np.uint32)
        encoded = self._encode_all(texts)
        lengths = np.array([len(ids) + 2 for ids in encoded], np.int64)
        if self._fast:
            self._fast.bound_memory()
        if not encoded:
            return np.zeros(0, np.int32), lengths
        parts = [part for ids in encoded for part in (bos, ids, eos)]
        return np.concatenate(parts, dtype=np.int32, casting="unsafe"), lengths

    def decode(self, ids: Sequence[int] | np.ndarray, show_special: bool = False) -> str:
        """Text of ids; special ones are left out, or shown by name. Broken UTF-8 shows as U+FFFD."""
        numbers = [int(index) for index in ids]
        wrong = next((index for index in numbers if not 0 <= index < self.vocab_size), None)
        if wrong is not None:
            raise Mistake(f"token id {wrong} is not in the vocabulary of {self.vocab_size} of {self.model_path}")
        text: list[str] = []
        for name, run in itertools.groupby(numbers, self._names.get):
            if name is None:
                text.append(self._text(list(run)))
            elif show_special:
                text += [name for _ in run]
        return "".join(text)

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._fast is None:
            return self._references(texts)
        return [self._reference(t) if self._must_be_reference(t) else self._fast.encode(t) for t in texts]

    def matches_reference(self, texts: Sequence[str]) -> bool:
        """Whether the encoder in use gives the original library's ids on these texts."""
        return self._fast is None or all(np.array_equal(self.encode(text), self._reference(text)) for text in texts)

    def use_reference(self, reason: str) -> None:
        """Goes on with the original library, for the reason given."""
        self._fast = None
        self.encoder_note = reason

    def _use_fast_encoder(self) -> None:
        try:
            from data_pipeline.tokenizing.fast_encoder import FastEncoder
        except ModuleNotFoundError as error:
            self.use_reference(f"{self.reference} encodes because {error.name} is not installed; pip install '.[fast]'")
            return
        try:
            self._fast = FastEncoder(self._definition())
        except ValueError as error:
            self.use_reference(f"{self.reference} encodes, each text as a whole, because {error}")
            return
        self.encoder_note = f"gigatoken encodes, equal to {self.reference} on {len(AWKWARD_STRINGS)} awkward strings"
        if not self.matches_reference(AWKWARD_STRINGS):
            self.use_reference(f"{self.reference} encodes because gigatoken's ids differ on awkward strings")
