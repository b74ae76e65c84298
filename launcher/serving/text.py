"""Tokens as they come, as text that will not change any more.

A token may be a part of a letter, and the end of a text may be the beginning of a stop string: such text is held back
until the next token tells, so pieces that were handed out always add up to the whole.
"""

from collections.abc import Callable, Sequence

CONTEXT = 6
"""Tokens before those that are decoded: how a piece reads (blanks in front of it) depends on the one before."""
UNFINISHED = "\ufffd"
"""What a part of a letter is decoded to."""


class TextSoFar:
    """A row's text, growing token by token behind its prompt."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stop: Sequence[str]):
        self._decode, self._stop = decode, stop
        self._ids = list(prompt[-CONTEXT:])
        self._known = len(self._ids)
        """How many of the ids are in the text already."""
        self.text = ""
        """All of it, what is held back included."""
        self._handed_out = 0
        self.stopped = False
        """Whether it ended before a stop string."""

    def add(self, token: int) -> None:
        """Appends a token."""
        self._ids.append(token)
        self._extend(in_full=False)

    def finish(self) -> None:
        """Takes in what was held back: nothing comes any more."""
        if not self.stopped:
            self._extend(in_full=True)

    def _extend(self, in_full: bool) -> None:
        begin = max(0, self._known - CONTEXT)
        before, now = self._decode(self._ids[begin : self._known]), self._decode(self._ids[begin:])
        if len(now) <= len(before) or (now.endswith(UNFINISHED) and not in_full):
            return
        self._known = len(self._ids)
        searched = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += now[len(before) :]
        places = [place for stop in self._stop if (place := self.text.find(stop, searched)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def take(self, finished: bool) -> str:
        """What is certain and was not handed out yet; everything once the text is finished."""
        held = 0 if finished or self.stopped else max(map(self._overlap, self._stop), default=0)
        end = max(self._handed_out, len(self.text) - held)
        piece, self._handed_out = self.text[self._handed_out : end], end
        return piece

    def _overlap(self, stop: str) -> int:
        """How many letters at the end of the text could be the beginning of a stop string."""
        longest = min(len(stop) - 1, len(self.text))
        return next((n for n in range(longest, 0, -1) if self.text.endswith(stop[:n])), 0)
