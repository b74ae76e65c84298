"""Tells a user's mistake, which deserves one sentence, from a fault, which deserves a traceback and another try.

Mistake, or an OSError that only the user can mend -> one sentence, exit code 2, no restart
all else                                            -> a traceback, exit code 1, a scheduler's job starts again
"""

import errno
import reprlib
from typing import Any

SHOWN_CHARACTERS, SHOWN_PATH, SENTENCE = 80, 400, 1500
"""How much of a value and of a path an error echoes, and how long it is in all."""

MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}
"""What a machine answers that stays so until the user does something; others (EIO, ESTALE, ETIMEDOUT) may pass."""


class Mistake(ValueError):
    """Something the user can mend; its message is the sentence that says what, where and how."""


def is_mistake(error: BaseException) -> bool:
    """Whether an error is the user's to mend: a `Mistake`, or a disk that is full, a file that may not be read, ..."""
    return isinstance(error, Mistake) or (isinstance(error, OSError) and error.errno in MENDABLE)


def sentence(error: BaseException) -> str:
    """What to tell the user: the message, with the file's name where the machine gave one."""
    if isinstance(error, OSError) and error.strerror:
        return f"{cut(str(error.filename), SHOWN_PATH)}: {error.strerror}" if error.filename else error.strerror
    return cut(str(error), SENTENCE)


def refuse_halves(text: str, where: str) -> None:
    """Mistake, which begins with `where`, when a text holds half a character (a lone surrogate): bytes of no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise Mistake(f"{where}: it holds half a character ({half}), which is no text in UTF-8; leave it out") from None


def cut(text: str, length: int = SHOWN_CHARACTERS) -> str:
    """A text for an error: on one line, without its middle where it is longer than `length`."""
    line = text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(line) <= length:
        return line
    half = (length - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def shown(value: Any) -> str:
    """A value for an error, as Python writes it and cut."""
    return cut(repr(value) if isinstance(value, str | float | None) else _brief.repr(value))


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = SHOWN_CHARACTERS
