"""What each filter costs, beside datatrove's filter of the same name in the same run, and whether both drop the same.

    documents of this machine (the standard library's documentation strings and code), and changed copies of them
      -> ours and theirs: CPU-seconds per GB of text of each alone, and of all one after the other
      -> both given the same words: the reason for every document; theirs with their own words: how many verdicts agree

datatrove (with spacy) is no part of the tests' environment: `pip install datatrove spacy loguru`. Without it only our
costs are shown.
"""

import ast
import dataclasses
import pydoc_data.topics
import random
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.table import Row, parser, show
from data_pipeline.filters.c4 import SENTENCE_END
from data_pipeline.filters.chain import FUNCTIONS, Step, apply_steps, make_steps
from data_pipeline.filters.document import Document, Dropped, word_pattern
from data_pipeline.filters.settings import FilterList

THEIR_DEFAULTS = {"max_characters_in_repeated_lines": 0.01, "max_line_feeds_per_word": 0.3}
"""What the code of FineWeb has where its paper says otherwise or nothing."""
OURS: dict[str, dict[str, Any]] = {
    "gopher_quality": {},
    "gopher_repetition": {},
    "c4": {},
    "fineweb": THEIR_DEFAULTS,
    "characters": {},
    "personal_data": {},
    "language": {"keep": ["en"]},
}
REASONS = {
    "gopher_short_doc": "few_words",
    "gopher_long_doc": "many_words",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "alphabetic_words",
    "gopher_enough_stop_words": "stop_words",
    "dup_line_frac": "repeated_lines",
    "dup_para_frac": "repeated_paragraphs",
    "dup_line_char_frac": "characters_in_repeated_lines",
    "dup_para_char_frac": "characters_in_repeated_paragraphs",
    **{f"duplicated_{n}_n_grams": f"repeated_{n}_grams" for n in range(5, 11)},
    "too_few_sentences": "few_sentences",
    "line_punct_ratio": "punctuated_lines",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "repeated_lines",
    "list_ratio": "list",
}
"""datatrove's name of a rule -> ours, where it is another."""
GOAL, SAME_WORDS_GOAL = 1.0, 0.999
COMPARED = 5000
"""Characters of the texts whose reasons are compared: spaCy is slow."""


# ---- text


def documents(num_bytes: int) -> list[str]:
    """Prose and code: topics of the language reference, documentation strings of each module, modules."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = list(pydoc_data.topics.topics.values())
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" not in path.parts and path.stat().st_size > 2000:
            code = path.read_bytes().decode(errors="replace")
            texts += [code[:50_000], "\n\n".join(_documentation(code))]
    random.Random(0).shuffle(texts)
    kept: list[str] = []
    for text in texts:
        if num_bytes > 0 and len(text) > 300:
            kept.append(text)
            num_bytes -= len(text.encode())
    return kept


def _documentation(code: str) -> Iterator[str]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield from filter(None, [ast.get_docstring(node)])


def changed(text: str, draws: random.Random) -> str:
    """A text that some rule will not like."""
    lines, words = text.split("\n"), text.split(" ")
    start = draws.randrange(len(words))
    changes: list[Callable[[], str]] = [
        lambda: text * 2,
        lambda: "\n".join(f"{line}..." if draws.random() < 0.4 else line for line in lines),
        lambda: "\n".join(f"- {line}" if draws.random() < 0.95 else line for line in lines),
        lambda: text.replace(" ", " # "),
        lambda: "\n".join(line for line in lines for _ in range(draws.choice([1, 1, 1, 2, 3]))),
        lambda: " ".join(words[: draws.randrange(1, 80)]),
        lambda: " ".join(words[:start] + words[start : start + 9] * draws.randrange(1, 40) + words[start:]),
        lambda: re.sub(r"\b(the|of|and|to|be|that|with|have)\b", "zz", text),
        lambda: text.replace(".", ""),
        lambda: "\n".join(" ".join(line.split()[: draws.randrange(1, 6)]) for line in lines),
        lambda: re.sub(r"\w+", lambda word: word[0] if draws.random() < 0.5 else str(len(word[0])), text),
        lambda: text.replace("{", "").replace("\n", ". \n"),
    ]
    return draws.choice(changes)()


# ---- ours and theirs, as functions of a text that say the reason (None: it stays)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A filter of datatrove."""

    apply: Callable[[str], str | None]
    use_words_of: Callable[[Callable | None], None]
    """Puts another splitter into words and sentences in place of its own, or takes it out again."""


def ours(step: Step) -> Callable[[str], str | None]:
    """A filter of ours."""

    def apply(text: str) -> str | None:
        result = step.apply(Document(text))
        return result.reason if isinstance(result, Dropped) else None

    return apply


def peers() -> dict[str, Peer]:
    """Filters of datatrove by our names; none where it is not installed."""
    if any(find_spec(name) is None for name in ("datatrove", "spacy", "loguru")):
        return {}
    from datatrove.data import Document as TheirDocument
    from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter
    from datatrove.pipeline.filters import gopher_repetition_filter as repetition
    from datatrove.pipeline.formatters.pii import PIIFormatter

    def peer(module, theirs, name: str, replacement: Callable[[str], list]) -> Peer:
        own = getattr(module, name)

        def apply(text: str) -> str | None:
            result = theirs.filter(TheirDocument(text=text, id="0"))
            return None if result is True else REASONS.get(result[1], result[1])

        def use(given: bool | None) -> None:
            setattr(module, name, (lambda text, language: replacement(text)) if given else own)

        return Peer(apply, use)  # type: ignore[arg-type]

    def words(text: str) -> list[str]:
        return word_pattern().findall(text)

    def sentences(text: str) -> list[None]:
        return [None] * (len(SENTENCE_END.findall(text)) + 1)

    formatter = PIIFormatter()
    quality = gopher_quality_filter.GopherQualityFilter()
    return {
        "gopher_quality": peer(gopher_quality_filter, quality, "split_into_words", words),
        "gopher_repetition": peer(repetition, repetition.GopherRepetitionFilter(), "split_into_words", words),
        "c4": peer(c4_filters, c4_filters.C4QualityFilter(), "split_into_sentences", sentences),
        "fineweb": peer(
            fineweb_quality_filter, fineweb_quality_filter.FineWebQualityFilter(), "split_into_words", words
        ),
        "personal_data": Peer(lambda text: None if formatter.format(text) else "", lambda given: None),
    }


# ---- the comparison


def seconds_per_gb(apply: Callable[[str], Any], texts: list[str]) -> float:
    """CPU-seconds of this process, per 10^9 bytes of text."""
    apply(texts[0])
    started = time.process_time()
    for text in texts:
        apply(text)
    return (time.process_time() - started) / sum(len(text.encode()) for text in texts) * 1e9


def agreement(first: Callable[[str], str | None], second: Callable[[str], str | None], texts: list[str]) -> Counter:
    """How often both gave the same reason, the same verdict, and each pair that differs."""
    result: Counter[Any] = Counter()
    for text in texts:
        one, other = first(text), second(text)
        result["reason"] += one == other
        result["verdict"] += (one is None) == (other is None)
        if one != other:
            result[one, other] += 1
    return result


def compare(quick: bool) -> tuple[list[Row], list[str]]:
    """Rows of costs and of agreement, and lines on what has no peer or differs."""
    texts = documents(1_500_000 if quick else 4_000_000)
    draws = random.Random(1)
    few = [text[:COMPARED] for text in texts[: 100 if quick else 300]]
    mutated = [text for text in (*few, *(changed(text, draws) for text in few * 2)) if text.strip()]
    steps = make_steps(FilterList.validate_python([{"name": name, **keys} for name, keys in OURS.items()]))
    theirs = peers()
    rows, lines = [], []
    for step in steps:
        cost = seconds_per_gb(ours(step), texts)
        if step.name not in theirs:
            lines.append(f"{step.name}: {cost:.0f} CPU-seconds per GB")
            continue
        peer = theirs[step.name]
        their_cost = seconds_per_gb(peer.apply, texts)
        rows.append(Row(f"CPU-seconds per GB, {step.name}", cost, "datatrove", their_cost, GOAL, lower_is_better=True))
        if step.name != "personal_data":
            row, line = _agreement(step, peer, mutated)
            rows.append(row)
            lines.append(line)
    shared = [step for step in steps if step.name in FUNCTIONS and step.name in theirs]
    if theirs:
        cost = seconds_per_gb(lambda text: _apply_all(shared, Document(text)), texts)
        their_cost = seconds_per_gb(lambda text: [theirs[step.name].apply(text) for step in shared], texts)
        rows.append(Row("CPU-seconds per GB, all of these", cost, "datatrove", their_cost, GOAL, lower_is_better=True))
    cost = seconds_per_gb(lambda text: apply_steps(steps, Document(text)), texts)
    lines.append(f"all filters in this order, the first that drops ends it: {cost:.0f} CPU-seconds per GB")
    return rows, lines


def _apply_all(steps: list[Step], document: Document) -> None:
    """Every filter on the same document, so that facts are shared and none is spared by another."""
    for step in steps:
        step.apply(document)


def _agreement(step: Step, peer: Peer, texts: list[str]) -> tuple[Row, str]:
    peer.use_words_of(True)  # type: ignore[arg-type]
    same_words = agreement(ours(step), peer.apply, texts)
    peer.use_words_of(None)
    own_words = agreement(ours(step), peer.apply, texts)
    share = same_words["reason"] / len(texts)
    row = Row(f"share of equal reasons, {step.name}, same words", share, "datatrove", 1.0, SAME_WORDS_GOAL)
    differing = {pair: count for pair, count in own_words.items() if isinstance(pair, tuple)}
    most = ", ".join(f"{one} for {other} {count}" for (one, other), count in Counter(differing).most_common(3))
    line = (
        f"{step.name}: with datatrove's own words {own_words['verdict'] / len(texts):.2%} of {len(texts):,} verdicts "
        f"are equal, {own_words['reason'] / len(texts):.2%} of the reasons" + (f" ({most})" if most else "")
    )
    return row, line


def main() -> int:
    """Runs the comparison."""
    args = parser(__doc__ or "").parse_args()
    rows, lines = compare(args.quick)
    status = show("Filters", rows, args)
    print("\n".join(lines))
    if not rows:
        print("datatrove is not installed, so nothing was compared: pip install datatrove spacy loguru")
    return status


if __name__ == "__main__":
    sys.exit(main())
