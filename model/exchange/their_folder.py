"""Somebody's Hugging Face folder: read, checked, and loaded without running anything of it.

    config.json, headers of *.safetensors -> HfFolder -> which model of ours it is, which weights are which
    HfFolder -> clean view: a folder with its weights, its tokenizer's data and settings that were read one by one
             -> transformers' class or ours, by the type alone

What a folder could have run - modeling files and `auto_map`, `custom_generate/`, pickles, adapters, chat templates,
quantizers, kernels to be fetched - is not in the view, so transformers cannot find it.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.mistakes import Mistake
from model.exchange.as_trained import refuse_other_readings
from model.exchange.config_keys import IDS_OF_TOKENS, heeded
from model.exchange.families.family import Family
from model.exchange.families.layout import WeightTable
from model.exchange.json_objects import quoted, read_object
from model.exchange.tensor_files import INDEX, SINGLE, TensorReader
from model.exchange.their_configs import ImportedConfig, TheirConfig, from_hf_config

TOKENIZER_DATA = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt")
"""Files of tokenizers that are data and no pickles."""
TOKENIZER_CLASSES = ("LlamaTokenizer", "T5Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers that a tokenizer_config.json may name, with or without `Fast` behind them."""
FLAGS = {"add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "split_special_tokens"}
FLAGS |= {"clean_up_tokenization_spaces"}
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token")


class HfFolder(NamedTuple):
    """A folder whose config.json and files of weights can be read."""

    path: Path
    config: TheirConfig
    files: TensorReader

    @classmethod
    def read(cls, path: Path) -> "HfFolder":
        """Reads a folder. ValueError when it is none."""
        file = path / "config.json"
        if not file.is_file():
            raise Mistake(f"{path}: no config.json in it; give a folder of a model in Hugging Face's format")
        config = TheirConfig.of(read_object(file), str(file))
        return cls(path, config, _by_new_names(TensorReader(path), config.family))

    @property
    def start_id(self) -> int:
        """What the decoder of an encoder-decoder begins with."""
        return getattr(self.config.object, "decoder_start_token_id", None) or 0

    @contextlib.contextmanager
    def clean_view(self) -> Iterator[Path]:
        """A folder for as long as the block lasts that holds what may be loaded of this one, and no code."""
        with tempfile.TemporaryDirectory(prefix="shardline-") as name:
            view = Path(name)
            _write(view / "config.json", {"model_type": self.config.architecture.model_type, **self.config.keys})
            _write(view / "generation_config.json", _token_ids(self))
            _write(view / "tokenizer_config.json", _tokenizer_settings(self.path))
            if len(self.files.sources) > 1 or self.files.sources[0].name != SINGLE:
                index = {name: place.file.name for name, place in self.files.places.items()}
                _write(view / INDEX, {"metadata": {}, "weight_map": index})
            for file in (*self.files.sources, *(self.path / name for name in TOKENIZER_DATA)):
                if file.is_file():
                    (view / file.name).symlink_to(file.resolve())
            yield view


def correspondence(folder: HfFolder) -> tuple[ImportedConfig, WeightTable]:
    """Which model of ours it is and which weights are which.

    ValueError when a key or a weight has no place in ours, or when a folder of ours would be read as another model than
    the one that was trained.
    """
    imported = from_hf_config(folder.config)
    refuse_other_readings(folder.path, imported)
    imported = with_head(imported, folder.files)
    return imported, _table(imported, folder.files)


def _token_ids(folder: HfFolder) -> dict[str, Any]:
    file = folder.path / "generation_config.json"
    own = heeded(str(file), read_object(file), IDS_OF_TOKENS) if file.is_file() else {}
    return {key: value for key, value in folder.config.keys.items() if key in IDS_OF_TOKENS} | own


def _tokenizer_settings(path: Path) -> dict[str, Any]:
    """Settings of a tokenizer that are text, flags and names of its own class."""
    file = path / "tokenizer_config.json"
    facts = read_object(file) if file.is_file() else {}
    kept = {key: facts[key] for key in FLAGS if type(facts.get(key)) is bool}
    kept |= {key: _token(facts[key]) for key in TOKENS if _token(facts.get(key)) is not None}
    kind = facts.get("tokenizer_class")
    if isinstance(kind, str) and kind.removesuffix("Fast") in {name.removesuffix("Fast") for name in TOKENIZER_CLASSES}:
        kept["tokenizer_class"] = kind
    elif kind is not None:
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept


def _token(value: Any) -> str | None:
    """The text of a special token, which may stand in an object with flags."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def load_model(folder: HfFolder, view: Path, dtype: torch.dtype | str) -> Any:
    """The model of a clean view, of the class that its type means. RuntimeError when its weights are of another."""
    found = folder.config.architecture
    model, facts = found.model_class().from_pretrained(
        view,
        config=folder.config.object,
        local_files_only=True,
        use_safetensors=True,
        dtype=dtype,
        output_loading_info=True,
    )
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(name for name in map(str, facts[fault]) if not folder.config.family.leaves(name))
        if names:
            raise RuntimeError(f"{folder.path}: {fault.replace('_', ' ')} in {found.name}: {names}")
    model.config.update(folder.config.family.restored(folder.config.object))
    return model.eval()


def load_tokenizer(folder: HfFolder, view: Path) -> Any:
    """The tokenizer of a clean view. ValueError when it has none that can be read."""
    from transformers import AutoTokenizer

    if not any((view / name).exists() for name in TOKENIZER_DATA):
        allowed = ", ".join(TOKENIZER_DATA)
        raise Mistake(f"{folder.path}: it holds no tokenizer in a form of Hugging Face's ({allowed}); copy one into it")
    try:
        return AutoTokenizer.from_pretrained(view, config=folder.config.object, local_files_only=True)
    except Exception as error:  # transformers and its readers raise what they please
        reason = quoted(str(error).strip() or type(error).__name__)
        raise Mistake(f"{folder.path}: it holds no tokenizer that can be read ({reason})") from None


def with_head(imported: ImportedConfig, files: TensorReader) -> ImportedConfig:
    """The same with a tied head just where transformers would tie it: where no other one is stored."""
    embedding, head = _ends(imported)
    has_own = head in files.places and files.digest(head) != files.digest(embedding)
    tied = imported.config.tie_embeddings and not has_own
    return imported._replace(config=imported.config.model_copy(update={"tie_embeddings": tied}))


def _ends(imported: ImportedConfig) -> tuple[str, str]:
    """Their names of the embedding and of a head of its own."""
    untied = imported.config.model_copy(update={"tie_embeddings": False})
    table = imported.family.table(untied, imported.vocab_size)
    return table["embedding.weight"][0].name, table["head.weight"][0].name


OLD_ENDINGS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""Of names that the first BERTs have, and what transformers reads them as."""


def _by_new_names(files: TensorReader, family: Family) -> TensorReader:
    """The same files by the names that weights have today; those of a bare model get the base that they lack."""
    is_bare = not any(name.startswith(family.base) for name in files.places)
    base = family.base if is_bare else ""
    files.places = {_new_name(name, base, family.heads): place for name, place in files.places.items()}
    return files


def _new_name(name: str, base: str, heads: tuple[str, ...]) -> str:
    for old, new in OLD_ENDINGS:
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name if name.split(".")[0] in heads else base + name


def _table(imported: ImportedConfig, files: TensorReader) -> WeightTable:
    """Which of theirs are which of ours. ValueError when one of either has no counterpart."""
    family = imported.family
    table = family.table(imported.config, imported.vocab_size)
    table["embedding.weight"] = table["embedding.weight"][:1]
    if imported.rescales:
        family.rescale(table, imported.config, files.places)
    known = {part.name for parts in table.values() for part in parts}
    if missing := known - set(files.places):
        raise Mistake(f"{files.folder}: the weight {min(missing)} is missing ({len(missing)} are in all)")
    zeros = family.zeros(imported.vocab_size)
    for name in zeros.keys() & files.places.keys():
        if files.read(name).any():
            raise Mistake(f"{files.folder}: the weight {name} has no place here unless all of it is 0")
    known |= {_ends(imported)[1], *family.aliases, *zeros}
    unknown = [name for name in files.places if name not in known and not family.leaves(name)]
    if unknown:
        raise Mistake(f"{files.folder}: the weight {quoted(min(unknown))} has no place here ({len(unknown)} have none)")
    for part in (part for parts in table.values() for part in parts):
        _, _, shape, dtype = files.places[part.name]
        if shape != part.shape:
            made = f"{list(part.shape)} by its config.json"
            raise Mistake(f"{files.folder}: the weight {part.name} is {list(shape)}, and {made}")
        if not dtype.is_floating_point:
            raise Mistake(
                f"{files.folder}: the weight {part.name} is stored as {dtype}; only floating-point numbers are read"
            )
    return table
