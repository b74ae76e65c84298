"""A run as a GGUF file: its newest checkpoint, and its tokenizer in the words of the exchange.

sentencepiece, trained here or by others -> its pieces, and what was added to them
tokenizer.json                           -> its file
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from common.mistakes import Mistake
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizing.hugging_face import NAME
from data_pipeline.tokenizing.sentence_pieces import SentencePieceTokenizer
from launcher.console import StageProgress
from launcher.run_folder import existing
from launcher.stages import (
    NewestCheckpoint,
    checkpoint_of,
    export_spec,
    held_out_texts,
    newest_checkpoint,
    tokenizer_of,
)
from model.exchange.gguf.check import Texts
from model.exchange.gguf.convert import GgufSpec, export_gguf, gguf_exported_from, require_gguf
from model.exchange.gguf.metadata import how_to_serve
from model.exchange.gguf.vocabulary import CONTROL, Vocabulary, json_vocabulary, sentencepiece_vocabulary


@dataclasses.dataclass(frozen=True)
class ConvertedToGguf:
    """A GGUF file that has been checked."""

    out: Path
    checkpoint: NewestCheckpoint
    checked_by: str
    """Nothing new where it was there already."""
    reused: bool
    notes: tuple[str, ...]
    """What one must know of serving it."""


def convert_to_gguf(
    run_dir: Path, out: Path, matrix_type: str, progress: StageProgress, *, with_tokenizer: bool = True
) -> ConvertedToGguf:
    """Writes the newest sound checkpoint of a run as a GGUF file, checked in llama.cpp where that is installed.

    matrix_type: f32, f16, bf16 or q8_0. Without a tokenizer it holds ids alone.
    Raises ValueError when the run has no checkpoint, or when the model or its tokenizer has no form in GGUF.
    """
    from common.files import checksum
    from training.state.folder import reading
    from training.state.loading import stream_weights
    from training.state.sums import CHECKSUMS

    require_gguf()
    _, config = existing(run_dir)
    notes = [note] if (note := how_to_serve(config.model)) else []
    if depths := config.model.multi_token_depths:
        notes.append(
            f"what predicts further tokens (multi_token_depths {depths}) is left out, GGUF has no place for it"
        )
    with reading(run_dir):
        newest = newest_checkpoint(run_dir)
        tokenizer = tokenizer_of(config, newest.folder)
        source = f"{checksum(newest.folder / CHECKSUMS)} {matrix_type} with_tokenizer={with_tokenizer}"
        if gguf_exported_from(out) == source:
            return ConvertedToGguf(out, newest, "", True, tuple(notes))
        texts = held_out_texts(config, tokenizer) if with_tokenizer else []
        export = export_spec(checkpoint_of(run_dir, config, newest.folder), tokenizer, texts, source, None)
        spec = GgufSpec(
            export,
            vocabulary_of(tokenizer) if with_tokenizer else Vocabulary("none"),
            texts_of(tokenizer, texts) if with_tokenizer else None,
            matrix_type,
            export.tokenizer.ends_with_eos,
        )
        progress.note(f"converting {newest.folder.name} and checking what was written")
        checked_by = export_gguf(stream_weights(newest.folder), spec, out)
    return ConvertedToGguf(out, newest, checked_by, False, tuple(notes))


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What a file says of a tokenizer. Raises ValueError, which names it, where llama.cpp would give other ids."""
    try:
        if isinstance(tokenizer, SentencePieceTokenizer):
            return _of_sentencepiece(tokenizer)
        files = tokenizer.hugging_face_files() or {}
        return json_vocabulary(files[NAME])
    except Mistake as error:
        raise Mistake(
            f"{tokenizer.model_path}: this tokenizer has no form in GGUF: {error}; nothing was exported. With "
            "--without-tokenizer the weights are"
        ) from None


def texts_of(tokenizer: Tokenizer, samples: Sequence[str]) -> Texts:
    """What token ids are compared on: its special pieces among texts, and some of the corpus."""
    specials = {name: tokenizer.special_id(name) for name in tokenizer.names}
    return Texts(lambda text: tokenizer.encode(text).tolist(), specials, samples)


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> Vocabulary:
    facts = tokenizer.facts
    return sentencepiece_vocabulary(
        [*tokenizer.scored_pieces(), *((name, 0.0, CONTROL) for name in tokenizer.added)],
        facts.model_type,
        byte_fallback=facts.byte_fallback,
        adds_blank=facts.adds_blank,
        drops_blanks=facts.drops_blanks,
        mark_ends_words=facts.mark_ends_words,
        charsmap=facts.charsmap,
    )
