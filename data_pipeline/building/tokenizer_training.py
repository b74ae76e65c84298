"""Trains the tokenizer: a sentencepiece BPE model with byte fallback.

    sources -> sample of whole units, evenly spread -> lines of at most 4,192 bytes -> sentencepiece -> tokenizer.model

The sample and the vocabulary depend on the sources and the config alone, not on the number of threads.
"""

import dataclasses
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import xxhash

from common.files import meant_name, read_file, sweep, written_aside
from common.json_lines import Form, parse_json
from common.mistakes import Mistake
from data_pipeline.building.source_files import list_files
from data_pipeline.building.sources import Rejects, Unit, holds_tokens, plan_units, read_documents
from data_pipeline.config import SourceConfig, TokenizerConfig

MODEL_NAME = "tokenizer.model"
INFO_NAME = "tokenizer_info.json"
INFO = Form({"settings": dict, "vocab_size": int, "training_bytes": int, "training_documents": int})
"""What the info says of a tokenizer at least."""
SPECIAL = ("<mask>", "<cls>", "<sep>", "[R]", "[S]", "[X]")
"""Control symbols after <unk> 0, <s> 1, </s> 2 and <pad> 3; the sentinels follow them."""
MAX_LINE_BYTES = 4192
"""Sentencepiece skips longer lines."""
UNIT_BYTES = 4_000_000
"""Size of the parts of the corpus that are in the sample or not."""


@dataclasses.dataclass(frozen=True)
class TokenizerReport:
    """What training did."""

    path: Path
    """Folder of the tokenizer."""
    vocab_size: int
    """Pieces in the vocabulary."""
    training_bytes: int
    """UTF-8 bytes of the text it was trained on."""
    training_documents: int
    """Documents that text is from."""
    reused: bool
    """True when it was there already, trained with the same config."""
    seconds: float
    """Time taken."""


def train_tokenizer(
    config: TokenizerConfig, sources: Sequence[SourceConfig], report: Callable[[str], None] | None = None
) -> TokenizerReport:
    """Trains the tokenizer of a config, or finds it trained; `report` is told what is being done.

    Raises ValueError when the folder holds a tokenizer of another config, the vocabulary does not fit the corpus,
    or the sources hold no text.
    """
    started = time.monotonic()
    say = report or (lambda line: None)
    folder = Path(config.path)
    settings = _settings(config, sources)
    info = _read_info(folder)
    if info is not None:
        _check_same(folder, info["settings"], settings)
        say(f"found it trained in {folder}")
        return _as_report(folder, info, True, time.monotonic() - started)
    _refuse_foreign(folder)
    minimum = 4 + len(SPECIAL) + config.num_sentinels + 256 + 1
    if config.vocab_size < minimum:
        raise Mistake(
            f"tokenizer.vocab_size: {config.vocab_size} has no room for 256 bytes, {config.num_sentinels} sentinels "
            f"and {4 + len(SPECIAL)} other special symbols; use at least {minimum}, better some thousands"
        )
    if not sources:
        raise Mistake("data.sources: is empty, so there is no text to train a tokenizer on; name some files")
    sample = _Sample(sources, round(config.training_megabytes * 1e6))
    say(f"training on {config.training_megabytes:g} MB of text at most")
    model = _train(config, sample)
    info = {
        "settings": settings,
        "vocab_size": config.vocab_size,
        "training_bytes": sample.num_bytes,
        "training_documents": sample.num_documents,
        "sentencepiece": sentencepiece.__version__,
    }
    _save(folder, model, info)
    return _as_report(folder, info, False, time.monotonic() - started)


def _as_report(folder: Path, info: dict[str, Any], reused: bool, seconds: float) -> TokenizerReport:
    return TokenizerReport(
        folder, info["vocab_size"], info["training_bytes"], info["training_documents"], reused, seconds
    )


# ---- what is there already


def _settings(config: TokenizerConfig, sources: Sequence[SourceConfig]) -> dict[str, Any]:
    """All that decides the vocabulary, by the name of its key."""
    return {
        "tokenizer.vocab_size": config.vocab_size,
        "tokenizer.num_sentinels": config.num_sentinels,
        "tokenizer.training_megabytes": config.training_megabytes,
        "data.sources": [source.model_dump() for source in sources],
    }


def _read_info(folder: Path) -> dict[str, Any] | None:
    path = folder / INFO_NAME
    try:
        info = parse_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise Mistake(f"{path}: is no JSON; delete {folder} to train again") from None
    if fault := INFO.fault(info):
        raise Mistake(f"{path}: does not describe a tokenizer, for {fault}; delete {folder} to train again")
    model = folder / MODEL_NAME
    if not model.is_file():
        return None  # a training that was interrupted
    if info.get("model_xxh3_128") not in (None, xxhash.xxh3_128_hexdigest(model.read_bytes())):
        raise Mistake(
            f"{model}: is not the one that {INFO_NAME} beside it describes; "
            "choose another tokenizer.path, or move the model away to train again"
        )
    return info


def _refuse_foreign(folder: Path) -> None:
    from data_pipeline.tokenizing import finding  # it knows all kinds, which know this module

    found = next(iter(finding.candidates(folder)), None)
    if found is None:
        return finding.refuse_unread(folder)
    raise Mistake(
        f"tokenizer.path: {folder} holds a {found.file.name} that was not trained here (no {INFO_NAME} beside it); "
        "go on with 'shardline data build CONFIG' to use it, or move it away to train another"
    )


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    # a tokenizer may be used on other text than it was trained on when no sources are given
    # nor are sources that were added to a dataset since a reason to train another
    sources = found.get("data.sources")
    is_beginning = isinstance(sources, list) and sources == wanted["data.sources"][: len(sources)]
    if differing and not (differing == ["data.sources"] and (not wanted["data.sources"] or is_beginning)):
        key = differing[0]
        raise Mistake(
            f"tokenizer.path: {folder} holds a tokenizer trained with {key} {json.dumps(found.get(key))}, "
            f"not {json.dumps(wanted[key])}; choose another tokenizer.path or delete that folder"
        )


def _save(folder: Path, model: bytes, info: dict[str, Any]) -> None:
    """Writes the info, then the model it describes: a model without info is never one that was trained here."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {**info, "model_xxh3_128": xxhash.xxh3_128_hexdigest(model)}
    sweep(path for path in folder.iterdir() if meant_name(path.name) in (MODEL_NAME, INFO_NAME))
    for name, content in ((INFO_NAME, (json.dumps(info, indent=1) + "\n").encode()), (MODEL_NAME, model)):
        with written_aside(folder / name) as file:
            file.write(content)


# ---- the sample


class _Sample:
    """Lines of a part of the corpus; iterating counts what was in it."""

    def __init__(self, sources: Sequence[SourceConfig], max_bytes: int):
        self.sources = sources
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_documents = 0
        self.rejects = Rejects()

    def __iter__(self) -> Iterator[str]:
        units = plan_units(list_files(self.sources), self.sources, UNIT_BYTES)
        units = [unit for unit in units if not holds_tokens([unit])]
        share = 1.0
        if sum(unit.weight for unit in units) > self.max_bytes:
            units.sort(key=_shuffle_key)
            share = self.max_bytes / len(units)
        for unit in units:
            left = min(self.max_bytes - self.num_bytes, max(UNIT_BYTES, int(share)))
            if left <= 0:
                return
            yield from self._lines(unit, left)

    def _lines(self, unit: Unit, left: int) -> Iterator[str]:
        for _, text in read_documents(unit, self.sources[unit.source], self.rejects):
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                continue
            if size > left:
                text = text[: left // 4 + 1]
                size = len(text.encode())
            self.num_bytes += size
            self.num_documents += 1
            yield from split_lines(text)
            left -= size
            if left <= 4:
                return


def _shuffle_key(unit: Unit) -> int:
    name = f"{unit.source} {unit.url.rpartition('/')[2]} {unit.start}"
    return xxhash.xxh3_64_intdigest(name.encode())


def split_lines(text: str) -> Iterator[str]:
    """The lines of a text, those over MAX_LINE_BYTES cut into pieces that are shorter; empty ones left out."""
    for line in text.split("\n"):
        if len(line) * 4 <= MAX_LINE_BYTES or len(line.encode()) <= MAX_LINE_BYTES:
            if line:
                yield line
            continue
        step = MAX_LINE_BYTES // 4
        for start in range(0, len(line), step):
            yield line[start : start + step]


# ---- sentencepiece


def _train(config: TokenizerConfig, sample: _Sample) -> bytes:
    model = io.BytesIO()
    sentinels = [f"<extra_id_{index}>" for index in range(config.num_sentinels)]
    lines = _Lines(sample)
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=[*SPECIAL, *sentinels],
            input_sentence_size=0,
            max_sentence_length=MAX_LINE_BYTES,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if lines.error is None and lines.count:
            raise _explain(config, error) from None
    if lines.error is not None:
        raise lines.error
    if not lines.count:
        raise Mistake(
            "data.sources: hold no text to train a tokenizer on "
            f"({_counts(sample.rejects)}); correct the paths or the text_key"
        )
    return model.getvalue()


class _Lines:
    """Hands lines to sentencepiece, which would lose the exception of an iterator; it is kept here."""

    def __init__(self, sample: _Sample):
        self._lines = iter(sample)
        self.count = 0
        self.error: Exception | None = None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
            self.count += 1
            return line
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise StopIteration from None


def _counts(rejects: Rejects) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in rejects.by_reason().items())
    return f"dropped: {counts}" if counts else "no documents in them"


def _explain(config: TokenizerConfig, error: RuntimeError) -> Exception:
    """What sentencepiece says about sizes that do not fit, as our own sentence; other errors as they are."""
    text = str(error)
    too_high = re.search(r"<= (\d+)", text)
    if "too high" in text and too_high:
        return Mistake(
            f"tokenizer.vocab_size: {config.vocab_size} is too large for this text; "
            f"use at most {too_high[1]}, or more text"
        )
    too_low = re.search(r"smaller than required_chars\. \d+ vs (\d+)", text)
    if too_low:
        return Mistake(
            f"tokenizer.vocab_size: {config.vocab_size} has no room for the characters of this text; "
            f"use at least {too_low[1]}"
        )
    return error
