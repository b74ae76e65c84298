"""Where words begin and end in pieces of text, for objectives that hide whole words."""

import unicodedata

Edges = tuple[str, str]
"""First and last character of a piece; a letter stands for the inner part of one, a blank for the border of a word."""

CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
"""Blocks of characters that are words of their own."""


def is_inside_word(character: str) -> bool:
    """Whether a character may stand inside a word, next to another."""
    if any(first <= ord(character) <= last for first, last in CHINESE):
        return False
    return character.isalnum() or unicodedata.category(character)[0] == "M"


def edges_of_text(piece: str) -> Edges:
    """Of a piece that is whole characters."""
    return piece[:1] or " ", piece[-1:] or " "


def edges_of_bytes(piece: bytes) -> Edges:
    """Of a piece that may begin or end within a character: what begins one begins a word."""
    if not piece:
        return " ", " "
    return _first(piece), _last(piece)


def _first(piece: bytes) -> str:
    if 128 <= piece[0] < 192:
        return "a"
    length = _length(piece[0])
    return _character(piece[:length]) or " "


def _last(piece: bytes) -> str:
    start = max(len(piece) - 4, 0)
    lead = next((at for at in reversed(range(start, len(piece))) if not 128 <= piece[at] < 192), None)
    return "a" if lead is None else _character(piece[lead:]) or "a"


def _length(lead: int) -> int:
    """Bytes of the character in UTF-8 that a byte begins."""
    return 1 if lead < 128 else 2 if lead < 224 else 3 if lead < 240 else 4


def _character(data: bytes) -> str | None:
    """The character that bytes are, None if they are not one."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if len(text) == 1 else None
