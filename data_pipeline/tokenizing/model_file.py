"""What a sentencepiece model file says about how it makes pieces of a text.

The processor does not tell, and the message classes that come with sentencepiece cannot be loaded beside those of
transformers. The few numbers needed are read from the file's protobuf encoding here.
"""

import dataclasses
from collections.abc import Container

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_USER_DEFINED = 4
_VARINT, _BYTES, _GROUP, _END_OF_GROUP = 0, 2, 3, 4
_WIDTHS = {1: 8, 5: 4}
_KINDS = range(1, 7)
_MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "character"}

Fields = list[tuple[int, int | bytes]]
"""Numbers and values of the fields of a message, in their order."""


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
        fields = _fields(serialized)
        trainer, normalizer = _merged(fields, _TRAINER), _merged(fields, _NORMALIZER)
        charsmap, drops_blanks = _bytes(normalizer, 2), bool(_number(normalizer, 4, 1))
        return cls(
            model_type=_MODEL_TYPES[_number(trainer, 3, 1, _MODEL_TYPES)],
            byte_fallback=bool(_number(trainer, 35, 0)),
            changes_text=bool(charsmap) or drops_blanks or not _number(normalizer, 5, 1),
            adds_blank=bool(_number(normalizer, 3, 1)),
            user_defined=_kinds(fields).count(_USER_DEFINED),
            mark_ends_words=bool(_number(trainer, 24, 0)),
            drops_blanks=drops_blanks,
            charsmap=charsmap,
        )

    @staticmethod
    def kinds(serialized: bytes) -> list[int]:
        """What each piece is: 1 text, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte, as in its protobuf."""
        return _kinds(_fields(serialized))

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


def _kinds(fields: Fields) -> list[int]:
    pieces = [value for number, value in fields if number == _PIECE and isinstance(value, bytes) and value]
    return [_number(_fields(piece), 3, 1, _KINDS) for piece in pieces]


def _number(fields: Fields, number: int, default: int, known: Container[int] | None = None) -> int:
    """The last value of a field that is a number, and one that is known: protobuf passes over the others."""
    found = [value for each, value in fields if each == number and isinstance(value, int)]
    return next((value for value in reversed(found) if known is None or value in known), default)


def _bytes(fields: Fields, number: int) -> bytes:
    found = [value for each, value in fields if each == number and isinstance(value, bytes)]
    return found[-1] if found else b""


def _merged(fields: Fields, number: int) -> Fields:
    return _fields(b"".join(value for found, value in fields if found == number and isinstance(value, bytes)))


def _fields(data: bytes) -> Fields:
    """Those that are numbers or bytes; those of fixed width, and whatever stands in groups, are of no use here."""
    found: Fields = []
    at = depth = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes | None = None
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif kind in _WIDTHS:
            at += _WIDTHS[kind]
        else:
            depth += {_GROUP: 1, _END_OF_GROUP: -1}[kind]
        if value is not None and depth == 0:
            found.append((number, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7
