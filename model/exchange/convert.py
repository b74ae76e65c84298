"""A trained model as a folder that Hugging Face's transformers (and what reads its format) serves.

    config.json (families/), modeling file (hf/) where transformers has no class
    tokenizer.model -> tokenizer.json, or the tokenizer's own files as they are; checked to give the same ids
    our weights, one at a time -> renamed, laid out as theirs (families/) -> into their places (tensor_files.py)
    all -> checked against ours (parity.py) -> renamed into place

The folder is written aside, checked, and only then takes its name: a folder that is there is right.
Memory is that of one layer, whatever the size of the model.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch

from common.files import folder_aside, refuse_foreign
from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.architectures import SHIPPED
from model.exchange.as_trained import MARKER, marked
from model.exchange.families import family_of
from model.exchange.families.family import Family
from model.exchange.families.layout import Shape, WeightTable
from model.exchange.hf_configs import hf_config
from model.exchange.hf_names import part_shapes, to_hf
from model.exchange.in_transformers import quiet_transformers
from model.exchange.json_objects import quoted, read_object
from model.exchange.parity import HandedOn, OtherIds, check_export, check_handed_on, check_tokenizer
from model.exchange.tensor_files import TensorWriter

__all__ = ["ExportSpec", "TokenizerSpec", "export_hf", "exported_from", "hf_config"]

CARD = "README.md"
"""The model card, where Hugging Face's Hub looks for it."""
FILE_BYTES = 4 * 2**30
"""Most bytes of a safetensors file, unless one weight alone has more."""

PLAIN_TOKENIZER = "sentencepiece.model"
"""A tokenizer without a form of Hugging Face's; AutoTokenizer, which would read tokenizer.model its own way, knows no
file of this name."""


def plain_name(model: Path) -> str:
    """Name of a tokenizer's file in a folder where transformers is not to find it."""
    return PLAIN_TOKENIZER if model.suffix == ".model" else f"plain-{model.name}"


State = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]
"""Weights by our names, in any order."""


FURTHER = "multi_token."
"""How names of weights begin that only training needs."""


class TokenizerSpec(NamedTuple):
    """A tokenizer, and what plain calls of it are to give."""

    model: Path
    """The sentencepiece model, or another's file."""
    handed_on: HandedOn | None = None
    """The files of another's tokenizer, which plain calls read as they always did; the keys below are not for it."""
    ends_with_eos: bool = False
    """Whether they put the end token behind, as inputs had it in training."""
    reads_specials: bool = False
    """Whether names such as <mask> and <extra_id_0> in a text mean the special tokens, or are text."""
    sample_texts: Sequence[str] = ()
    """Texts whose ids are compared with sentencepiece's, beside some awkward strings."""
    as_it_is: bool = False
    """Put the sentencepiece model into the folder and no form of Hugging Face's, exact or not."""


class ExportSpec(NamedTuple):
    """What is written beside the weights, and how they are stored."""

    config: ModelConfig
    vocab_size: int
    max_positions: int
    """Longest text of the training, in tokens."""
    bos_id: int
    eos_id: int
    pad_id: int
    tokenizer: TokenizerSpec
    source: str = ""
    """Names what the weights come from, for `exported_from`."""
    objective: Mapping[str, Any] | None = None
    """What the model was trained to predict, as a config has it: by this, evaluation knows how to ask it."""
    card: str = ""
    """Model card, README.md of the folder; empty writes none."""
    dtype: torch.dtype = torch.float32
    file_bytes: int = FILE_BYTES
    """Most bytes of a file of weights, unless one weight alone has more."""

    @property
    def family(self) -> Family:
        """The class that is written, and how."""
        return family_of(self.config, self.pad_id)

    @property
    def table(self) -> WeightTable:
        """Which weights of ours are which of theirs."""
        return self.family.table(self.config, self.vocab_size)

    @property
    def shapes(self) -> dict[str, Shape]:
        """All weights of theirs."""
        return part_shapes(self.table) | self.family.zeros(self.vocab_size)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(map(math.prod, self.shapes.values())) * self.dtype.itemsize


def export_hf(state: State, spec: ExportSpec, out: Path) -> Path:
    """Writes the folder `out` for the class of `families.family_of` and AutoTokenizer, checks it and returns it.

    state holds our weights by name, taken one by one, so an iterator that loads them lazily is fine; the head of a
    tied model may be in it or not, further depths (`multi_token_depths`) stay behind. Replaces an earlier export.
    Raises ValueError when `out` is something else or there is no room for it, when the model or its tokenizer has no
    place in Hugging Face's classes, when a weight is missing, unknown or misshapen or a file is not there; RuntimeError
    when the written folder does not give our logits and tokens. Nothing is left behind then.
    """
    found = spec.family.architecture
    if not spec.tokenizer.model.is_file():
        raise Mistake(f"{spec.tokenizer.model}: no such tokenizer; run 'shardline tokenizer train CONFIG'")
    refuse_foreign(out, MARKER, "exported")
    with folder_aside(out, spec.num_bytes) as aside, quiet_transformers():
        _write_configs(aside, spec)
        if spec.card:
            (aside / CARD).write_text(spec.card, encoding="utf-8")
        if found.shipped:
            shutil.copyfile(SHIPPED / found.shipped, aside / found.shipped)
        writer = TensorWriter(aside, spec.shapes, spec.dtype, spec.file_bytes)
        _write_tokenizer(aside, spec)
        digests = write_weights(writer.write, state, spec.config, spec.table)
        for name, shape in spec.family.zeros(spec.vocab_size).items():
            digests[name] = writer.write(name, torch.zeros(shape))
        check_export(aside, spec.family, spec.config, spec.vocab_size, spec.max_positions, spec.bos_id, digests)
    return out


def _write_configs(folder: Path, spec: ExportSpec) -> None:
    ids = {"bos_token_id": spec.bos_id, "eos_token_id": spec.eos_id, "pad_token_id": spec.pad_id}
    if spec.config.shape == "encdec":
        ids["decoder_start_token_id"] = spec.bos_id
    if "cls_token_id" in spec.family.heeds:  # left out, they would be the published model's, which may be no ids here
        ids |= {"cls_token_id": spec.bos_id, "sep_token_id": spec.eos_id}
    keys = hf_config(spec.config, spec.vocab_size, spec.max_positions, spec.dtype, spec.pad_id)
    _write_json(folder / "config.json", keys | ids)
    if spec.config.shape != "encoder":
        _write_json(folder / "generation_config.json", ids)
    model = spec.config.model_dump()
    facts = {"format": 1, "source": spec.source, "vocab_size": spec.vocab_size, "model": model}
    _write_json(folder / MARKER, facts | ({"objective": dict(spec.objective)} if spec.objective else {}))


def exported_from(folder: Path) -> str | None:
    """The `source` that a folder was exported from; None where nothing is there. ValueError when something else is."""
    refuse_foreign(folder, MARKER, "exported")
    source = marked(folder).get("source")
    return source if isinstance(source, str) else None


def objective_of(folder: Path) -> Any:
    """The `objective` of an export of ours, as it stands there; None where it does not say."""
    return marked(folder).get("objective")


def _write_tokenizer(folder: Path, spec: ExportSpec) -> None:
    """The tokenizer in Hugging Face's form, compared with sentencepiece; ValueError when no form is exact."""
    tokenizer = spec.tokenizer
    if tokenizer.as_it_is:
        shutil.copyfile(tokenizer.model, folder / plain_name(tokenizer.model))
        return
    try:
        if tokenizer.handed_on is not None:
            for name, content in tokenizer.handed_on.files.items():
                (folder / name).write_bytes(content)
            check_handed_on(folder, tokenizer.handed_on, tokenizer.sample_texts)
            return
        _write_converted(folder, spec)
        check_tokenizer(folder, tokenizer.model, tokenizer.sample_texts, ends_with_eos=tokenizer.ends_with_eos)
    except (OtherIds, Mistake) as error:
        raise Mistake(
            f"{tokenizer.model}: this tokenizer has no exact form in Hugging Face's format: {error}; nothing was "
            f"exported. With --without-tokenizer the weights are, beside its own file as {plain_name(tokenizer.model)}"
        ) from None


def _write_converted(folder: Path, spec: ExportSpec) -> None:
    """tokenizer.json from the sentencepiece model; plain calls put <s> in front (and </s> behind) as in training."""
    from transformers import LlamaTokenizer

    shutil.copyfile(spec.tokenizer.model, folder / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spec.tokenizer.model))
    ids = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    if pieces.is_control(pieces.piece_to_id("<mask>")):
        ids["mask_token"] = pieces.piece_to_id("<mask>")
    names: dict[str, Any] = {key: pieces.id_to_piece(index) for key, index in ids.items()}
    try:
        tokenizer = LlamaTokenizer.from_pretrained(
            folder,
            legacy=False,
            add_prefix_space=False,
            add_bos_token=True,
            add_eos_token=spec.tokenizer.ends_with_eos,
            split_special_tokens=not spec.tokenizer.reads_specials,
            **names,
        )
    except Exception as error:  # its converter raises what it pleases
        raise OtherIds(f"transformers cannot read it ({quoted(str(error))})") from error
    tokenizer.save_pretrained(folder)
    _name_as_of_old(folder / "tokenizer_config.json")


def _name_as_of_old(file: Path) -> None:
    """Gives the list of further special tokens the name that transformers 4 reads too; with the new one it fails."""
    facts = read_object(file)
    if isinstance(tokens := facts.pop("extra_special_tokens", None), list):
        _write_json(file, facts | {"additional_special_tokens": tokens})


def write_weights(
    write: Callable[[str, torch.Tensor], str],
    state: State,
    config: ModelConfig,
    table: WeightTable,
    left_behind: tuple[str, ...] = (),
) -> dict[str, str]:
    """Has the weights of a table written as they come; returns the digest, as `write` gives it, of each of theirs.

    A tied head and further depths stay behind, and what `left_behind` begins the name of. ValueError when a weight is
    missing, unknown or misshapen.
    """
    missing, digests = set(table), {}
    for name, tensor in state.items() if isinstance(state, Mapping) else state:
        if (name == "head.weight" and config.tie_embeddings) or name.startswith((FURTHER, *left_behind)):
            continue
        for part, piece in to_hf(name, tensor, table):
            digests[part] = write(part, piece)
        missing.discard(name)
    if missing:
        raise Mistake(f"{min(missing)}: the weight is missing from the model's state ({len(missing)} are in all)")
    return digests


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
