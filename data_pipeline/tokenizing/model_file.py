"""What a sentencepiece model file says about how it makes pieces of a text.

The processor does not tell, and the message classes that come with sentencepiece cannot be loaded beside those of
transformers. The few numbers needed are read from the file's protobuf encoding here.
"""

import dataclasses
from collections.abc import Iterator

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_USER_DEFINED = 4
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}

Value = int | bytes


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Settings of a sentencepiece model that decide how it encodes."""

    model_type: str
    """unigram, BPE, word or character."""
    byte_fallback: bool
    """Whether characters without a piece become bytes."""
    changes_text: bool
    """Whether it normalises characters or drops blanks."""
    adds_blank: bool
    """Whether it puts a blank before or after each text."""
    user_defined: int
    """Pieces that are cut out of the text before all others."""
    mark_ends_words: bool = dataclasses.field(default=False, repr=False)
    """Whether the mark of a blank stands at the end of pieces."""
    drops_blanks: bool = dataclasses.field(default=False, repr=False)
    """Whether it drops blanks at the ends of a text and all but one of a row of them."""
    charsmap: bytes = dataclasses.field(default=b"", repr=False)
    """What it normalises characters by; empty if it leaves them."""

    @classmethod
    def of(cls, serialized: bytes) -> "ModelFacts":
        """Reads them from a model that sentencepiece itself has accepted."""
        fields = list(_fields(serialized))
        trainer = _merged(fields, _TRAINER)
        normalizer = _merged(fields, _NORMALIZER)
        kinds = _kinds(fields)
        keeps = not normalizer.get(2) and not normalizer.get(4, 1) and normalizer.get(5, 1)
        return cls(
            model_type=_MODEL_TYPES.get(int(trainer.get(3, 1)), "unknown"),
            byte_fallback=bool(trainer.get(35, 0)),
            changes_text=not keeps,
            adds_blank=bool(normalizer.get(3, 1)),
            user_defined=kinds.count(_USER_DEFINED),
            mark_ends_words=bool(trainer.get(24, 0)),
            drops_blanks=bool(normalizer.get(4, 1)),
            charsmap=_bytes(normalizer.get(2, b"")),
        )

    @staticmethod
    def kinds(serialized: bytes) -> list[int]:
        """What each piece is: 1 text, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte, as in its protobuf."""
        return _kinds(list(_fields(serialized)))

    @property
    def peculiarity(self) -> str | None:
        """What sets it apart from the models that are trained here, None if nothing does."""
        if self.model_type != "BPE":
            return f"its type is {self.model_type}, not BPE"
        if self.changes_text:
            return "it normalises the text"
        if self.adds_blank:
            return "it adds a blank to each text"
        if not self.byte_fallback:
            return "it has no byte fallback"
        if self.user_defined:
            return "it has user-defined symbols"
        return "it marks blanks at the end of pieces" if self.mark_ends_words else None

    @property
    def only_adds_blank(self) -> bool:
        """Whether it is set apart from those that are trained here by the blank that it adds, if by anything."""
        return dataclasses.replace(self, adds_blank=False).peculiarity is None

    @property
    def only_has_symbols(self) -> bool:
        """Whether it is set apart from those that are trained here by its user-defined symbols, if by anything."""
        return dataclasses.replace(self, user_defined=0).peculiarity is None


def _kinds(fields: list[tuple[int, Value]]) -> list[int]:
    return [int(dict(_fields(value)).get(3, 1)) for number, value in fields if number == _PIECE and value]


def _bytes(value: Value) -> bytes:
    assert isinstance(value, bytes)
    return value


def _merged(fields: list[tuple[int, Value]], number: int) -> dict[int, Value]:
    return dict(_fields(b"".join(value for found, value in fields if found == number and isinstance(value, bytes))))


def _fields(data: Value) -> Iterator[tuple[int, Value]]:
    """Numbers and values of the fields of a message, in their order; numbers of fixed width come as bytes."""
    assert isinstance(data, bytes)
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[kind]
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7
