"""Which tokenizer lies in a folder.

    tokenizer.model, spiece.model -> sentencepiece (or tiktoken's ranks, as Llama 3 names them)
    tokenizer.json                -> hugging_face
    *.tiktoken                    -> tiktoken

A `tokenizer.model` of the kind that is trained here is taken whatever lies beside it, as exports put a `tokenizer.json`
there; between any others the user has to choose.
"""

import re
from pathlib import Path
from typing import NamedTuple

from common.mistakes import Mistake
from data_pipeline.building.tokenizer_training import MODEL_NAME
from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizing.hugging_face import HuggingFaceTokenizer, read_folder
from data_pipeline.tokenizing.sentence_pieces import SentencePieceTokenizer
from data_pipeline.tokenizing.tiktoken_ranks import read_ranks

NAMES = (MODEL_NAME, "spiece.model", "tokenizer.json", "*.tiktoken")
RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
"""A line of tiktoken's ranks: a token in base64, and its rank."""
UNREAD = {
    "vocab.json": "a tokenizer of Hugging Face in its old form; save it as a tokenizer.json with transformers",
    "vocab.txt": "a tokenizer of BERT in its old form; save it as a tokenizer.json with transformers",
    "tekken.json": "a tokenizer of Mistral, which is not read here; take the tokenizer.json of the same model",
    "sentencepiece.bpe.model": "a sentencepiece model whose ids fairseq moves; take the tokenizer.json of that model",
}
"""Files by which others keep theirs and that are not read, and what they are."""


class Found(NamedTuple):
    """A tokenizer that is there."""

    kind: str
    file: Path


def open_tokenizer(settings: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a config section. ValueError when there is none, or several and nobody chose."""
    found = find(settings)
    if settings.split_pattern is not None and found.kind != "tiktoken":
        raise Mistake(f"tokenizer.split_pattern: is for tiktoken's ranks; {found.file} is {found.kind}, so take it out")
    if found.kind == "sentencepiece":
        return SentencePieceTokenizer(found.file, settings)
    definition = read_folder(found.file) if found.kind == "hugging_face" else read_ranks(found.file, settings)
    return HuggingFaceTokenizer(definition, settings)


def find(settings: TokenizerConfig) -> Found:
    """Which file it is, and of what kind. ValueError when there is none, or several and nobody chose."""
    path = Path(settings.path)
    there = candidates(path)
    chosen = [found for found in there if settings.kind in ("auto", found.kind)]
    if not chosen and there:
        raise Mistake(f"tokenizer.kind: {settings.kind} is not what {path} holds: {_named(there)}")
    if not chosen:
        refuse_unread(path)
        raise Mistake(
            f"tokenizer.path: {path} holds no {MODEL_NAME}; run 'shardline tokenizer train CONFIG' first, or name a "
            "folder with a tokenizer.json or a *.tiktoken file"
        )
    if len(chosen) > 1 and not (settings.kind == "auto" and _is_own(chosen[0])):
        raise Mistake(f"tokenizer.path: {path} holds {_named(chosen)}; say which with tokenizer.kind, or name the file")
    return chosen[0]


def candidates(path: Path) -> list[Found]:
    """Every tokenizer of a folder that can be read, or the one that a file is."""
    files = [path] if path.is_file() else [file for name in NAMES for file in sorted(path.glob(name)) if file.is_file()]
    return [Found(_kind(file), file) for file in files]


def files_to_take_along(folder: Path) -> list[Path]:
    """What to copy of a folder with a model so that its tokenizer can be read: of one tokenizer, of several the best.

    That is a sentencepiece model of the kind trained here, else a tokenizer.json, which knows all ids of the model,
    else whatever there is. None where there is nothing.
    """
    there = candidates(folder)
    order = sorted(there, key=lambda found: (not _is_own(found), found.kind != "hugging_face"))
    if not order:
        return []
    beside = ("tokenizer_config.json", "special_tokens_map.json") if order[0].kind == "hugging_face" else ()
    return [order[0].file, *(folder / name for name in beside if (folder / name).is_file())]


def refuse_unread(folder: Path) -> None:
    """ValueError when a folder holds a tokenizer in a form that is not read."""
    found = next((name for name in UNREAD if (folder / name).exists()), None)
    if found is not None:
        raise Mistake(
            f"tokenizer.path: {folder} holds {found} and no {MODEL_NAME}: {UNREAD[found]}; "
            "or name another folder and run 'shardline tokenizer train CONFIG'"
        )


def _named(found: list[Found]) -> str:
    return " and ".join(f"{each.file.name} ({each.kind})" for each in found)


def _kind(file: Path) -> str:
    if file.suffix == ".json":
        return "hugging_face"
    with file.open("rb") as opened:
        return "tiktoken" if RANK.match(opened.read(4096)) else "sentencepiece"


def _is_own(found: Found) -> bool:
    """Whether it is a sentencepiece model of the kind that is trained here."""
    if found.file.name != MODEL_NAME or found.kind != "sentencepiece":
        return False
    try:
        return SentencePieceTokenizer(found.file, TokenizerConfig(path=str(found.file))).facts.peculiarity is None
    except Mistake:
        return False
