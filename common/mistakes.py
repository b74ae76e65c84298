"""Tells a user's mistake, which deserves one sentence, from a fault, which deserves a traceback and another try.

Mistake, or an OSError that only the user can mend -> one sentence, exit code 2, no restart
all else                                            -> a traceback, exit code 1, a scheduler's job starts again
"""

import errno

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
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
