"""Text to ids and back, by a sentencepiece BPE model with byte fallback that keeps every character of a text.

    Tokenizer.load(folder) -> encode, encode_documents, decode

The ids are sentencepiece's. A faster encoder stands in for it where it has given the same ids on awkward strings
and on samples of the very text (see `matches_reference`). Training is in tokenizer_training.
"""

import functools
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sentencepiece
import xxhash

from common.mistakes import Mistake, cut
from data_pipeline.building.tokenizer_training import (
    MODEL_NAME,
    SPECIAL,
    TokenizerReport,
    refuse_other_tokenizers,
    train_tokenizer,
)
from data_pipeline.flags import packed_flags
from data_pipeline.shards import token_dtype
from data_pipeline.tokenizing.model_file import ModelFacts

if TYPE_CHECKING:
    from data_pipeline.tokenizing.fast_encoder import FastEncoder

__all__ = ["AWKWARD_STRINGS", "MODEL_NAME", "Tokenizer", "TokenizerReport", "train_tokenizer"]

LONG_TEXT = 1 << 20
"""Characters above which a text is encoded in pieces, so that memory does not grow with the longest document."""

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


CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
"""Blocks of characters that are words of their own."""


def _is_inside_word(character: str) -> bool:
    """Whether a character may stand inside a word, next to another."""
    if any(first <= ord(character) <= last for first, last in CHINESE):
        return False
    return character.isalnum() or unicodedata.category(character)[0] == "M"


class Tokenizer:
    """A trained tokenizer; ids below `vocab_size`."""

    def __init__(self, model_path: Path, fast_encoder: str = "auto"):
        self.model_path = model_path
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.Load(str(model_path))
        except (RuntimeError, OSError) as error:
            raise Mistake(
                f"{model_path}: not a sentencepiece model ({cut(str(error)) or type(error).__name__}); "
                "delete it and run 'shardline tokenizer train CONFIG'"
            ) from None
        self.vocab_size: int = self._model.get_piece_size()
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()
        self.pad_id, self.unk_id = self._model.pad_id(), self._model.unk_id()
        for name, index in (("<s>", self.bos_id), ("</s>", self.eos_id)):
            if index < 0:
                raise Mistake(
                    f"{model_path}: has no {name} to put at the borders of documents; "
                    "train another with 'shardline tokenizer train CONFIG'"
                )
        self._facts = ModelFacts.of(self._model.serialized_model_proto())
        self._fast: FastEncoder | None = None
        self.encoder_note = "sentencepiece encodes because fast_encoder is off"
        if self._facts.peculiarity:
            self.encoder_note = f"sentencepiece encodes, each text as a whole, because {self._facts.peculiarity}"
        elif fast_encoder == "auto":
            self._use_fast_encoder()

    def refuse_peculiar(self) -> None:
        """ValueError when the model is of another kind than those trained here, which exports have to reproduce."""
        if self._facts.peculiarity:
            raise Mistake(
                f"tokenizer.path: {self.model_path} is of a kind that no export reproduces exactly "
                f"({self._facts.peculiarity}); train another with 'shardline tokenizer train CONFIG'"
            )

    @classmethod
    def load(cls, path: str | Path, fast_encoder: str = "auto") -> "Tokenizer":
        """Loads the tokenizer of a folder (TokenizerConfig.path) or a .model file.

        Raises ValueError when there is none or it is not a sentencepiece model.
        """
        path = Path(path)
        model = path / MODEL_NAME if path.is_dir() else path
        if not model.is_file():
            refuse_other_tokenizers(path)
            raise Mistake(f"tokenizer.path: {path} holds no {MODEL_NAME}; run 'shardline tokenizer train CONFIG' first")
        return cls(model, fast_encoder)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of pieces, scores and types, xxh3_128 hex: of what decides the ids, not of the file."""
        digest = xxhash.xxh3_128()
        for index in range(self.vocab_size):
            digest.update(
                f"{self._model.id_to_piece(index)}\0{self._model.get_score(index)!r}\0{self._kind(index)}\0".encode()
            )
        if self._facts.peculiarity:
            digest.update(repr(self._facts).encode())
        return digest.hexdigest()

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special pieces there are: pad, unk, mask, cls, sep, R, S and X."""
        names = {"pad": self.pad_id, "unk": self.unk_id}
        names |= {name.strip("<>[]"): self._control_id(name) for name in SPECIAL}
        return {name: index for name, index in names.items() if index >= 0}

    @functools.cached_property
    def sentinel_ids(self) -> list[int]:
        """Ids of `<extra_id_0>`, `<extra_id_1>` ..., as many as there are."""
        found = (self._control_id(f"<extra_id_{number}>") for number in range(self.vocab_size))
        return list(itertools.takewhile(lambda index: index >= 0, found))

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
            "word_starts": packed_flags(starts),
            "word_ends": packed_flags(ends),
        }

    @functools.cached_property
    def word_borders(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether an id begins a word wherever it stands, and whether it ends one: bool [V] each.

        Words are runs of letters and digits, as in BERT's basic tokenizer: every mark and every Chinese character is
        one of its own. A byte that begins a character outside ASCII begins a word too.
        """
        edges = [self._edges(index) for index in range(self.vocab_size)]
        inner = np.array([[_is_inside_word(first), _is_inside_word(last)] for first, last in edges]).reshape(-1, 2)
        return ~inner[:, 0], ~inner[:, 1]

    def _edges(self, index: int) -> tuple[str, str]:
        """First and last character of a piece, as letters where they are parts of one; blanks for special pieces."""
        if self._model.is_byte(index):
            byte = int(self._model.id_to_piece(index)[3:5], 16)
            return ("a" if 128 <= byte < 192 else " ", "a") if byte >= 128 else (chr(byte), chr(byte))
        if self._model.is_control(index) or self._model.is_unknown(index):
            return " ", " "
        piece = self._model.id_to_piece(index)
        return piece[:1], piece[-1:]

    def _control_id(self, piece: str) -> int:
        index: int = self._model.piece_to_id(piece)
        return index if self._model.is_control(index) else -1

    @property
    def encoder(self) -> str:
        """Name of the encoder in use."""
        return "gigatoken" if self._fast else "sentencepiece"

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [T]; no special one among them, whatever the text says."""
        parts = [self._encode(piece) for piece in self._pieces(text)]
        return np.concatenate(parts, dtype=np.int32, casting="unsafe") if parts else np.zeros(0, np.int32)

    def encode_documents(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of many documents, int32 [sum of lengths], and their lengths, int64 [N]; bos and eos are in both."""
        bos, eos = np.array([self.bos_id], np.uint32), np.array([self.eos_id], np.uint32)
        parts: list[np.ndarray] = []
        lengths = np.empty(len(texts), np.int64)
        for index, text in enumerate(texts):
            first = len(parts)
            parts.append(bos)
            parts += [self._encode(piece) for piece in self._pieces(text)]
            parts.append(eos)
            lengths[index] = sum(map(len, parts[first:]))
        if self._fast:
            self._fast.bound_memory()
        if not parts:
            return np.zeros(0, np.int32), lengths
        return np.concatenate(parts, dtype=np.int32, casting="unsafe"), lengths

    def decode(self, ids: Sequence[int] | np.ndarray, show_special: bool = False) -> str:
        """Text of ids; special ones are left out, or shown by name. Broken UTF-8 shows as U+FFFD."""
        numbers = [int(index) for index in ids]
        wrong = next((index for index in numbers if not 0 <= index < self.vocab_size), None)
        if wrong is not None:
            raise Mistake(f"token id {wrong} is not in the vocabulary of {self.vocab_size} of {self.model_path}")
        text: list[str] = []
        run: list[int] = []
        for index in numbers:
            if self._model.is_control(index) or self._model.is_unknown(index):
                text.append(self._model.decode(run))
                run = []
                if show_special:
                    text.append(self._model.id_to_piece(index))
            else:
                run.append(index)
        return "".join([*text, self._model.decode(run)])

    def matches_reference(self, texts: Sequence[str]) -> bool:
        """Whether the encoder in use gives sentencepiece's ids on these texts."""
        return self._fast is None or all(
            np.array_equal(self.encode(text), self._model.EncodeAsNumpy(text)) for text in texts
        )

    def use_reference(self, reason: str) -> None:
        """Goes on with sentencepiece itself, for the reason given."""
        self._fast = None
        self.encoder_note = reason

    def _use_fast_encoder(self) -> None:
        try:
            from data_pipeline.tokenizing.fast_encoder import FastEncoder
        except ModuleNotFoundError as error:
            self.use_reference(f"sentencepiece encodes because {error.name} is not installed; pip install '.[fast]'")
            return
        self._fast = FastEncoder(self._model)
        self.encoder_note = f"gigatoken encodes, equal to sentencepiece on {len(AWKWARD_STRINGS)} awkward strings"
        if not self.matches_reference(AWKWARD_STRINGS):
            self.use_reference("sentencepiece encodes because gigatoken's ids differ on awkward strings")

    def _encode(self, text: str) -> np.ndarray:
        return self._fast.encode(text) if self._fast else self._model.EncodeAsNumpy(text)

    def _kind(self, index: int) -> str:
        model = self._model
        kinds = {"control": model.is_control, "byte": model.is_byte, "unk": model.is_unknown, "unused": model.is_unused}
        return next((name for name, test in kinds.items() if test(index)), "normal")

    @functools.cached_property
    def _pairs(self) -> set[str]:
        """Every pair of neighbouring characters inside any piece."""
        pieces = (self._model.id_to_piece(index) for index in range(self.vocab_size))
        return {piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1)}

    def _pieces(self, text: str) -> Iterator[str]:
        """Cuts a long text where no piece of the vocabulary can lie across, so that the ids stay the same.

        A merge makes a piece of the vocabulary, hence none ever joins two characters that no piece has side by side.
        """
        start = 0
        while len(text) - start > LONG_TEXT and not self._facts.peculiarity:
            cut = self._next_cut(text, start + LONG_TEXT)
            yield text[start:cut]
            start = cut
        if start < len(text):
            yield text[start:] if start else text

    def _next_cut(self, text: str, position: int) -> int:
        for at in range(position, len(text)):
            if text[at - 1 : at + 1].replace(" ", "\u2581") not in self._pairs:
                return at
        return len(text)
