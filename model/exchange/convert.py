"""A trained model as a folder that Hugging Face's transformers (and what reads its format) serves.

    our weights, one at a time -> renamed, split by rows (hf_names.py) -> into their places (tensor_files.py)
    config.json (hf_configs.py), modeling file (hf/) where transformers has no class
    tokenizer.model -> tokenizer.json with the same ids
    all -> checked against ours (parity.py) -> renamed into place

The folder is written aside, checked, and only then takes its name: a folder that is there is right.
Memory is that of one layer, whatever the size of the model.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.architectures import SHIPPED
from model.exchange.hf_configs import architecture, hf_config
from model.exchange.hf_names import WeightTable, part_shapes, to_hf, weight_table
from model.exchange.in_transformers import quiet_transformers
from model.exchange.parity import check_export, check_tokenizer
from model.exchange.tensor_files import TensorWriter

__all__ = ["export_hf", "exported_from", "hf_config"]

MARKER = "shardline.json"
"""File that says a folder was exported by us, and from which model config."""
FILE_BYTES = 4 * 2**30
"""Most bytes of a safetensors file, unless one weight alone has more."""

State = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]
"""Weights by our names, in any order."""


class Form(NamedTuple):
    """How weights are stored."""

    dtype: torch.dtype
    file_bytes: int


def export_hf(
    state: State,
    config: ModelConfig,
    vocab_size: int,
    out: Path,
    *,
    max_positions: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    tokenizer_model: Path,
    ends_with_eos: bool = False,
    reads_specials: bool = False,
    dtype: torch.dtype = torch.float32,
    sample_texts: Sequence[str] = (),
    source: str = "",
    file_bytes: int = FILE_BYTES,
) -> Path:
    """Writes the folder `out` for the class of `hf_configs.architecture` and AutoTokenizer, checks it and returns it.

    state holds our weights by name, taken one by one, so an iterator that loads them lazily is fine;
    the head of a tied model may be in it or not. tokenizer_model is the sentencepiece model; ends_with_eos says
    whether inputs ended with the end token in training, so that plain calls of the tokenizer put it there;
    reads_specials whether names such as <mask> and <extra_id_0> in a text mean the special tokens, as a model that
    fills gaps wants it, or are text.
    `source` names what the weights come from, for `exported_from`.
    Ids of `sample_texts`, and of some awkward strings, are compared with sentencepiece's.
    Replaces an earlier export. Raises ValueError when `out` is something else, when the model has no place in
    Hugging Face's classes, when a weight is missing, unknown or misshapen or a file is not there; RuntimeError when
    the written folder does not give our logits, tokens and ids. Nothing is left behind then.
    """
    found = architecture(config)
    if not tokenizer_model.is_file():
        raise Mistake(f"{tokenizer_model}: no such tokenizer; run 'shardline tokenizer train CONFIG'")
    refuse_foreign(out, MARKER, "exported")
    with aside_of(out) as aside:
        ids = {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}
        if config.shape == "encdec":
            ids["decoder_start_token_id"] = bos_id
        _write_json(aside / "config.json", hf_config(config, vocab_size, max_positions, dtype) | ids)
        if config.shape != "encoder":
            _write_json(aside / "generation_config.json", ids)
        if found.shipped:
            shutil.copyfile(SHIPPED / found.shipped, aside / found.shipped)
        facts = {"format": 1, "source": source, "vocab_size": vocab_size, "model": config.model_dump()}
        _write_json(aside / MARKER, facts)
        digests = _write_weights(aside, state, weight_table(config, vocab_size), config, Form(dtype, file_bytes))
        with quiet_transformers():
            _write_tokenizer(aside, tokenizer_model, ends_with_eos, reads_specials)
            check_tokenizer(aside, tokenizer_model, sample_texts, ends_with_eos=ends_with_eos)
            check_export(aside, config, vocab_size, max_positions, bos_id, digests)
    return out


def exported_from(folder: Path) -> str | None:
    """The `source` that a folder was exported from; None when it is no export of ours."""
    marker = folder / MARKER
    return json.loads(marker.read_text(encoding="utf-8"))["source"] if marker.is_file() else None


def _write_tokenizer(folder: Path, tokenizer_model: Path, ends_with_eos: bool, reads_specials: bool) -> None:
    """tokenizer.json from the sentencepiece model; plain calls put <s> in front (and </s> behind) as in training."""
    from transformers import LlamaTokenizer

    shutil.copyfile(tokenizer_model, folder / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    specials: dict[str, Any] = {"pad_token": "<pad>"}
    if pieces.is_control(pieces.piece_to_id("<mask>")):
        specials["mask_token"] = "<mask>"
    tokenizer = LlamaTokenizer.from_pretrained(
        folder,
        legacy=False,
        add_prefix_space=False,
        add_bos_token=True,
        add_eos_token=ends_with_eos,
        split_special_tokens=not reads_specials,
        **specials,
    )
    tokenizer.save_pretrained(folder)


def _write_weights(folder: Path, state: State, table: WeightTable, config: ModelConfig, form: Form) -> dict[str, str]:
    """Writes the weights as they come; returns the digest of each weight of theirs."""
    writer = TensorWriter(folder, part_shapes(table), form.dtype, form.file_bytes)
    missing, digests = set(table), {}
    for name, tensor in state.items() if isinstance(state, Mapping) else state:
        if name == "head.weight" and config.tie_embeddings:
            continue
        for part, piece in to_hf(name, tensor, table):
            digests[part] = writer.write(part, piece)
        missing.discard(name)
    if missing:
        raise Mistake(f"{min(missing)}: the weight is missing from the model's state ({len(missing)} are in all)")
    return digests


def refuse_foreign(out: Path, marker: str, what: str) -> None:
    """ValueError when `out` is there, is not empty and has no file `marker`: then it is no `what` folder of ours."""
    if not out.exists() or (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        return
    raise Mistake(f"{out}: it exists and is no folder shardline {what}; choose another name or remove it")


@contextlib.contextmanager
def aside_of(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name on leaving, whole and durable; gone if something is raised."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _make_durable(aside)
        _put_in_place(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _put_in_place(aside: Path, out: Path) -> None:
    """The folder takes its name; one it replaces is gone only once it has."""
    if not out.exists():
        aside.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        aside.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _make_durable(folder: Path) -> None:
    """All files readable by whom one made the ordinary way is, and on disk for good."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            path.chmod(0o666 & ~mask)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
