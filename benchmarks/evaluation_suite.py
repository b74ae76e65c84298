"""Writes the data of `shardline evaluate --suite small`: questions on the Python reference that Python itself ships.

pydoc_data.topics -> paragraphs of prose -> next_sentence.jsonl, last_word.jsonl, texts.jsonl

python -m benchmarks.evaluation_suite --write    # with Python 3.11, whose texts are in the repository
"""

import argparse
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "evaluation" / "small"
NUM_QUESTIONS, NUM_CHOICES = 100, 4
SHORTEST, LONGEST = 160, 700
"""Characters of a paragraph."""


def paragraphs() -> list[str]:
    """Paragraphs of prose, each on one line and once."""
    found: dict[str, None] = {}
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(block.split())
            is_prose = re.match(r"[A-Z][a-z]", text) and text.endswith(".") and not re.search(r"\n {3}|::=|>>>", block)
            if is_prose and SHORTEST <= len(text) <= LONGEST:
                found[text] = None
    return list(found)


def sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph."""
    return re.split(r"(?<=[.!?]) (?=[A-Z\"])", paragraph)


def next_sentence(texts: list[str], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Which sentence ends a paragraph: its own, or one of three others that are about as long."""
    cut = [(" ".join(parts[:-1]), parts[-1]) for parts in map(sentences, texts) if len(parts) > 2]
    for context, last in draw.sample(cut, NUM_QUESTIONS):
        others = sorted((end for _, end in cut if end != last), key=lambda end: abs(len(end) - len(last)))
        choices = [last, *draw.sample(others[:20], NUM_CHOICES - 1)]
        draw.shuffle(choices)
        yield {"query": context, "choices": choices, "gold": choices.index(last)}


def last_word(texts: list[str], draw: random.Random) -> Iterator[dict[str, Any]]:
    """The last word of a paragraph that has it before, too: what stands in the text decides."""
    cut = [(text[:-1].rpartition(" ")[0], text[:-1].rpartition(" ")[2]) for text in texts]
    known = [(context, word) for context, word in cut if word.isalpha() and len(word) > 3 and f" {word}" in context]
    for context, word in draw.sample(known, min(NUM_QUESTIONS, len(known))):
        yield {"context": context, "word": word}


def whole_texts(texts: list[str], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Paragraphs, for the bits that each of their bytes takes."""
    for text in draw.sample(texts, NUM_QUESTIONS):
        yield {"text": text}


def files() -> dict[str, str]:
    """Content of each file of data by its name."""
    texts = paragraphs()
    makers = {"next_sentence": next_sentence, "last_word": last_word, "texts": whole_texts}
    return {
        f"{name}.jsonl": "".join(json.dumps(line) + "\n" for line in make(texts, random.Random(name)))
        for name, make in makers.items()
    }


def main() -> None:
    """Writes the files, or compares them with those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the files; else they are compared")
    arguments = parser.parse_args()
    for name, content in files().items():
        if arguments.write:
            (FOLDER / name).write_text(content, encoding="utf-8")
        same = (FOLDER / name).read_text(encoding="utf-8") == content
        print(f"{name}: {content.count(chr(10))} lines, {'as' if same else 'NOT as'} in {FOLDER}")
    if arguments.write:
        license_text = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
        (FOLDER / "LICENSE.txt").write_bytes(license_text.read_bytes())


if __name__ == "__main__":
    main()
