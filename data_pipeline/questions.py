"""Questions that models are evaluated on: a text, and what may go with it.

tasks.jsonl: {"query": .., "choices": [.., ..], "gold": 0}  ->  Question
"""

import dataclasses
from pathlib import Path
from typing import Any

from common.files import read_file
from common.json_lines import parse_json
from common.mistakes import Mistake, refuse_halves


@dataclasses.dataclass(frozen=True)
class Question:
    """A text and what may go with it."""

    query: str
    choices: tuple[str, ...]
    gold: int
    """Number of the right choice, from 0."""


def read_questions(path: Path) -> list[Question]:
    """Questions of a jsonl file. ValueError, naming the line, where one is not as it should be."""
    if not path.is_file():
        raise Mistake(f"{path}: no such file; give a jsonl file of questions")
    lines = read_file(path).split(b"\n")
    questions = [_question(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise Mistake(f"{path}: no question in it; a line is {_PATTERN}")
    return questions


_PATTERN = '{"query": "text", "choices": ["text", "text"], "gold": 0}'


def _question(line: bytes, where: str) -> Question:
    try:
        record: Any = parse_json(line)
    except ValueError as error:  # invalid UTF-8 is one too
        raise Mistake(f"{where}: not JSON ({error}); a line is {_PATTERN}") from None
    found = record if isinstance(record, dict) else {}
    query, choices, gold = (found.get(key) for key in ("query", "choices", "gold"))
    texts = choices if isinstance(choices, list) else []
    if not isinstance(query, str) or len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
        raise Mistake(f"{where}: not a question with a query and two or more choices; a line is {_PATTERN}")
    for text in (query, *texts):
        refuse_halves(text, where)
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(texts):
        raise Mistake(f"{where}: gold is {gold!r}; it is the number of the right choice, 0 to {len(texts) - 1}")
    return Question(query, tuple(texts), gold)
