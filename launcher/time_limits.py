"""Time limits: what people write, what Slurm reads, how many seconds that is.

24h, 1d12h, 90m, UNLIMITED, or Slurm's own forms -> Slurm's own form -> seconds
"""

import re

from common.mistakes import Mistake

UNLIMITED = "UNLIMITED"
_SLURMS = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d\d?|\d+-\d\d?:\d\d|\d+-\d\d?:\d\d:\d\d", re.ASCII)
_SPOKEN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII | re.IGNORECASE)
_LONGEST = 20
"""Characters of a time limit that means anything."""
FORMS = (
    "allowed: 90 (minutes), 90m, 24h, 1d, 1d12h, HOURS:MINUTES:SECONDS as 24:00:00, DAYS-HOURS[:MINUTES[:SECONDS]] "
    "as 2-12:00, MINUTES:SECONDS, or UNLIMITED"
)


def time_limit(text: str, where: str) -> str:
    """A time limit as Slurm writes it. Raises Mistake, naming `where` and the forms there are, when it is none."""
    word = text.strip()
    if len(word) <= _LONGEST:
        if word.upper() in (UNLIMITED, "INFINITE", "INFINITY"):
            return UNLIMITED
        if _SLURMS.fullmatch(word):
            return word
        if word and (spoken := _SPOKEN.fullmatch(word)):
            days, hours, minutes, seconds = (int(part or 0) for part in spoken.groups())
            return _slurms(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    raise Mistake(f"{where}: {word[:_LONGEST]!r} is not a time limit; {FORMS}")


def _slurms(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02}:{minutes:02}:{seconds:02}"


def seconds_of(limit: str) -> int | None:
    """Seconds of a time limit as Slurm writes it; None when there is no limit."""
    if limit == UNLIMITED:
        return None
    days, dash, rest = limit.partition("-")
    if not dash:
        days, rest = "0", limit
    parts = [int(part) for part in rest.split(":")]
    if dash:  # hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, minutes, seconds = 0, *[*parts, 0][:2]
    return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
