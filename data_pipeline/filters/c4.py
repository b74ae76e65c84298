"""C4's rules (Raffel et al., arXiv 1910.10683, section 2.2): lines that stay, then pages that stay.

    lines -> those that end like sentences, are long enough and no boilerplate -> a page, if enough sentences are left

In the order of the paper's own code, so that a page is dropped for a bracket only where the line with it would stay.
"""

import re

from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.settings import C4

CITATIONS = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
ENDS, ELLIPSIS = (".", "?", "!", '"', "'"), "..."
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
WIDE = "\u3002\uff01\uff1f"
"""What ends a Chinese or Japanese sentence, with no blank behind it."""
SENTENCE_END = re.compile(rf"(?<!\b[^\W\d_])[.?!\u2026{WIDE}]+[\"'\u201d\u2019)\]]*(?:\s+(?=\S)|(?<=[{WIDE}])(?=\S))")
"""Where a sentence ends and another begins: not after the single letter of an initial."""


def c4(document: Document, settings: C4) -> Document | Dropped:
    """Takes lines out of a document, or drops it."""
    # most documents have none of these words, and need not be looked at line by line for them
    lowered = document.text.lower()
    javascript = settings.javascript and "javascript" in lowered
    lorem_ipsum = settings.lorem_ipsum and "lorem ipsum" in lowered
    policies = tuple(phrase for phrase in POLICIES if phrase in lowered) if settings.policies else ()
    kept: list[str] = []
    for given in document.lines:
        line = _kept_line(given.strip(), settings)
        if line is None:
            continue
        lowered = line.lower() if javascript or lorem_ipsum or policies else ""
        if lorem_ipsum and "lorem ipsum" in lowered:
            return Dropped("lorem_ipsum")
        if javascript and "javascript" in lowered:
            continue
        if settings.curly_brackets and "{" in line:
            return Dropped("curly_bracket")
        if not any(phrase in lowered for phrase in policies):
            kept.append(line)
    if settings.min_sentences is not None and not _has_sentences(kept, settings.min_sentences):
        return Dropped("few_sentences")
    return document.with_text("\n".join(kept).strip())


def _kept_line(line: str, settings: C4) -> str | None:
    """A line without its citations, None where its end or its words are not what they should be."""
    bare = CITATIONS.sub("", line) if settings.citations and "[" in line else line
    if settings.terminal_punctuation and (not bare.endswith(ENDS) or bare.endswith(ELLIPSIS)):
        return None
    least, longest = settings.min_words_per_line, settings.max_word_length
    if least is not None and len(line.split(maxsplit=least)) < least:
        return None
    if longest is not None and len(line) > longest and any(len(word) > longest for word in line.split()):
        return None
    return bare


def _has_sentences(lines: list[str], least: int) -> bool:
    found = 0
    for line in lines:
        if found >= least:
            break
        found += len(SENTENCE_END.findall(line)) + 1
    return found >= least
