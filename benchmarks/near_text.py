"""Text with near copies planted in it, and with traps that look like ones, for `near_copies.py`.

    Debian packages, standard library -> stretches of real text, none like another
      -> families: a text and a changed copy of it (edits, paragraphs in another order, boilerplate around it)
      -> traps: texts that share much with others and are no copies (filled-in templates, licence headers, revisions
                that are rewritten by a fifth each time, books that quote each other, modules of program code)

What is like what is decided here the plain way, by Python's own sets of words, not by what is measured.
"""

import dataclasses
import functools
import gzip
import html
import itertools
import random
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

PACKAGES = {"en": ["python3.11-doc"], "zh": ["manpages-zh", "libreoffice-help-zh-cn"]}
LICENSES = Path("/usr/share/common-licenses")
WORDS = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")
"""Words; every ideograph is one."""
STRETCH_WORDS = 400
EDITS = {"1 % of words edited": 0.01, "3 % edited": 0.03, "5 % edited": 0.05, "10 % edited": 0.1}
COMMON = 40
"""Shingles of more stretches than this say nothing about which are alike."""


@dataclasses.dataclass(frozen=True)
class Planted:
    """A document of the text."""

    text: str
    """What it says."""
    family: int
    """Documents of the same number are copies of each other, and nothing else is."""
    kind: str
    """What it is, in words."""
    language: str
    """en or zh."""


# ---- real text


def stretches(folder: Path) -> dict[str, list[str]]:
    """By language, stretches of some hundred words of real text, none of which shares a tenth of its shingles."""
    found = {}
    for language, pages_of in (("en", _english), ("zh", _chinese)):
        pages = pages_of(_unpacked(folder, PACKAGES[language]))
        found[language] = [stretch for page in pages for stretch in _cut(page)]
    unlike = set(_unlike([text for texts in found.values() for text in texts]))
    return {language: [text for text in dict.fromkeys(texts) if text in unlike] for language, texts in found.items()}


def _unpacked(folder: Path, packages: Sequence[str]) -> Path:
    out = folder / packages[0]
    for package in packages:
        subprocess.run(
            ["apt-get", "download", package],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        subprocess.run(["dpkg-deb", "-x", next(folder.glob(f"{package}_*.deb")), out], check=True)
    return out


def _english(folder: Path) -> list[str]:
    return [
        path.read_text(errors="replace") for path in sorted(folder.rglob("*.rst.txt")) if "whatsnew" not in path.parts
    ]


def _chinese(folder: Path) -> list[str]:
    manuals = [gzip.decompress(path.read_bytes()).decode(errors="replace") for path in sorted(folder.rglob("*.gz"))]
    manuals = ["\n".join(_spoken(line) for line in page.split("\n")) for page in manuals if ".SH" in page]
    helps = [re.sub(r"<[^>]*>", "\n", path.read_text(errors="replace")) for path in sorted(folder.rglob("*.html"))]
    return [*manuals, *(html.unescape(page) for page in helps)]


def _spoken(line: str) -> str:
    return "" if line.startswith((".", "'")) else re.sub(r"\\(f.|&|-|\[.*?\]|\(..)", "", line)


def _cut(page: str) -> list[str]:
    """Paragraphs in a row, STRETCH_WORDS of them and more."""
    found: list[str] = []
    waiting: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", page):
        waiting.append(paragraph.strip("\n"))
        size += len(WORDS.findall(paragraph))
        if size >= STRETCH_WORDS:
            found.append("\n\n".join(waiting))
            waiting, size = [], 0
    return [stretch for stretch in found if len(set(WORDS.findall(stretch))) > STRETCH_WORDS // 6]


@functools.lru_cache(maxsize=1 << 14)
def shingles(text: str) -> frozenset[str]:
    """Every five words in a row."""
    words = WORDS.findall(text.lower())
    return frozenset(" ".join(words[start : start + 5]) for start in range(max(len(words) - 4, 1)))


def similarity(one: str, other: str) -> float:
    """Shared shingles over all shingles of either (Jaccard)."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def _unlike(texts: Sequence[str]) -> list[str]:
    """Texts but for those that are like an earlier one."""
    kept: list[str] = []
    holders: dict[str, list[int]] = {}
    for text in texts:
        found = shingles(text)
        shared = Counter(index for one in found for index in holders.get(one, [])[:COMMON])
        if shared and max(shared.values()) > len(found) / 10:
            continue
        for one in found:
            holders.setdefault(one, []).append(len(kept))
        kept.append(text)
    return kept


# ---- what is planted


def plant(real: Sequence[str], language: str, per_kind: int, seed: int) -> list[Planted]:
    """Families and traps made of real text in a language and as much other text, in a drawn order."""
    drawn = random.Random(seed)
    source = iter(drawn.sample(list(real), len(real)))
    families: list[list[tuple[str, str]]] = []
    for kind, change in _changes(source, drawn).items():
        originals = [next(source) for _ in range(per_kind)]
        families += [[("original", text), (kind, change(text))] for text in originals]
    families += [[(kind, text)] for kind, texts in _traps(source, drawn, language, per_kind).items() for text in texts]
    families += [[("other text", text)] for text in itertools.islice(source, len(families))]
    planted = [
        Planted(text, number, kind, language)
        for number, family in enumerate(families, start=seed << 32)
        for kind, text in family
    ]
    drawn.shuffle(planted)
    return planted


def _changes(source, drawn: random.Random) -> dict[str, Callable[[str], str]]:
    vocabulary = WORDS.findall(next(source) + next(source))
    header, footer = (" ".join(next(source).split())[:200] for _ in range(2))
    changes: dict[str, Callable[[str], str]] = {
        kind: functools.partial(_edited, share=share, vocabulary=vocabulary, drawn=drawn)
        for kind, share in EDITS.items()
    }
    changes["paragraphs in another order"] = functools.partial(_reordered, drawn=drawn)
    changes["boilerplate around it"] = lambda text: f"{header}\n\n{text}\n\n{footer}"
    return changes


def _edited(text: str, share: float, vocabulary: Sequence[str], drawn: random.Random) -> str:
    """A share of the words replaced, taken out or followed by another, wherever chance has it."""
    spans = [match.span() for match in WORDS.finditer(text)]
    for start, stop in sorted(drawn.sample(spans, max(round(share * len(spans)), 1)), reverse=True):
        word = drawn.choice(vocabulary)
        text = text[:start] + drawn.choice([word, "", f"{text[start:stop]} {word}"]) + text[stop:]
    return text


def _reordered(text: str, drawn: random.Random) -> str:
    paragraphs = text.split("\n\n")
    first = drawn.randrange(1, len(paragraphs)) if len(paragraphs) > 1 else 0
    return "\n\n".join([*paragraphs[first:], *paragraphs[:first]])


def _traps(source, drawn: random.Random, language: str, count: int) -> dict[str, list[str]]:
    def words(number: int) -> str:
        text = next(source)
        return text[: [*WORDS.finditer(text)][number - 1].end()]

    light, heavy = words(150), next(source)
    traps = {
        "template filled in, half of it": [f"{light}\n\n{words(150)}" for _ in range(count)],
        "template filled in, three quarters of it": [f"{heavy}\n\n{words(130)}" for _ in range(count)],
        "revision, a fifth of it rewritten": _revisions(next(source), words, drawn, count),
        "quotes a quarter of another": [],
    }
    for _ in range(count // 2):
        one, other = next(source), next(source)
        traps["quotes a quarter of another"] += [one, f"{other}\n\n{one[: len(one) // 4]}"]
    if language == "en":
        header = "\n".join(f"# {line}" for line in (LICENSES / "BSD").read_text().split("\n"))
        modules = [
            path for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) if path.stat().st_size > 4000
        ]
        codes = _unlike([path.read_text(errors="replace") for path in modules])[:count]
        traps["code under the same licence"] = [f"{header}\n{code[1000:4000]}" for code in codes]
        traps["book"] = ["\n\n".join(next(source) for _ in range(20)) for _ in range(max(count // 10, 2))]
    return traps


def _revisions(text: str, words: Callable[[int], str], drawn: random.Random, count: int) -> list[str]:
    """Each a fifth of the one before rewritten, so that the last has nothing of the first."""
    parts = [match.group() for match in WORDS.finditer(text)]
    found = []
    for _ in range(count):
        size = len(parts) // 5
        start = drawn.randrange(len(parts) - size)
        parts[start : start + size] = WORDS.findall(words(100))[:size]
        found.append(" ".join(parts))
    return found
