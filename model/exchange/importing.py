"""Somebody's Hugging Face folder as weights of ours, so that a run can go on from them.

    config.json -> model config (hf_configs.py) -> their weights, one at a time, by our names (hf_names.py)
    -> compared with theirs in transformers (parity.py) -> DIR/{model.yaml, *.safetensors, tokenizer/}

What ours has no place for is refused by its name. Memory is that of one layer, whatever the size of the model.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.convert import FILE_BYTES, SHIPPED, aside_of, refuse_foreign
from model.exchange.hf_configs import T5, ImportedConfig, from_hf_config
from model.exchange.hf_names import WeightTable, from_hf, our_shape, weight_table
from model.exchange.parity import Ours, compare, quiet_transformers
from model.exchange.tensor_files import TensorReader, TensorWriter

MODEL_FILE = "model.yaml"
"""The model config of imported weights, and what they come from."""
NUM_POSITIONS = 4096
"""Longest text that is asked of a model that does not say how long its texts may be."""


def import_hf(folder: Path, out: Path, *, file_bytes: int = FILE_BYTES) -> ImportedConfig:
    """Writes the weights of a Hugging Face folder to `out` by our names, in fp32; returns what its config says.

    `load_imported` reads them. A sentencepiece tokenizer is copied to out/tokenizer. Replaces an earlier import.
    Raises ValueError when the folder is of another architecture than those of hf_configs, has a key, a weight or a
    modeling file that has no place in ours, or when `out` is something else; RuntimeError when our model does not
    give the logits and greedy tokens that transformers gives. Nothing is left behind then.
    """
    facts = _read_config(folder)
    described = from_hf_config(facts)
    files = TensorReader(folder)
    imported = _with_head(described, files)
    shipped = imported.architecture.shipped
    if shipped is not None and not is_our_code(folder, shipped):
        raise Mistake(f"{folder / shipped}: it is not the modeling file that shardline ships; nobody else's is run")
    table = _table(imported, files)
    refuse_foreign(out, MODEL_FILE, "imported into")
    with aside_of(out) as aside:
        writer = TensorWriter(
            aside, {name: our_shape(parts) for name, parts in table.items()}, torch.float32, file_bytes
        )
        for name, weight in from_hf(files.read, table):
            writer.write(name, weight)
        _write_facts(aside, folder, imported)
        _copy_tokenizer(aside, folder)
        ours = Ours(imported.config, imported.vocab_size, TensorReader(aside).read)
        longest, start = imported.max_positions or NUM_POSITIONS, facts.get("decoder_start_token_id") or 0
        with quiet_transformers():
            compare(folder, imported.architecture, ours, longest, start, "nothing was imported")
    return imported


def load_imported(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of ours and fp32 weights of an imported folder, one at a time. ValueError when it is none.

    A tied head is not among them: it is the embedding.
    """
    imported_config(folder)
    files = TensorReader(folder)
    for name in files.places:
        yield name, files.read(name)


def imported_config(folder: Path) -> tuple[ModelConfig, int]:
    """Model config and vocabulary size of an imported folder. ValueError when it is none."""
    file = folder / MODEL_FILE
    if not file.is_file():
        raise Mistake(f"{folder}: no {MODEL_FILE} in it; make it with 'shardline import HF_FOLDER --out DIR'")
    config = ModelConfig(**yaml.safe_load(file.read_text(encoding="utf-8"))["model"])
    assert config.vocab_size is not None, f"{file} gives no vocab_size"
    return config, config.vocab_size


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise Mistake(f"{folder}: no config.json in it; give a folder of a model in Hugging Face's format")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Mistake(f"{file}: it is not JSON ({error}); copy it again") from None
    if not isinstance(facts, dict):
        raise Mistake(f"{file}: it holds no keys; copy it again")
    return facts


def is_our_code(folder: Path, shipped: str) -> bool:
    """Whether a folder's modeling file is, byte for byte, the one of that name in model/hf/."""
    file = folder / shipped
    return file.is_file() and file.read_bytes() == (SHIPPED / shipped).read_bytes()


def _with_head(imported: ImportedConfig, files: TensorReader) -> ImportedConfig:
    """The same with a tied head just where transformers would tie it: where no other one is stored.

    T5's config says by the same key whether what the head reads is scaled; a tied head that is, is none of ours.
    """
    embedding = weight_table(imported.config, imported.vocab_size)["embedding.weight"][0].name
    has_own = HEAD in files.places and files.digest(HEAD) != files.digest(embedding)
    tied = not imported.scales_head if imported.architecture is T5 else imported.config.tie_embeddings
    config = imported.config.model_copy(update={"tie_embeddings": tied and not has_own})
    return imported._replace(config=config)


def _table(imported: ImportedConfig, files: TensorReader) -> WeightTable:
    """Which of theirs are which of ours. ValueError when one of either has no counterpart."""
    table = weight_table(imported.config, imported.vocab_size)
    (embedding, *_), head = table["embedding.weight"], table.get("head.weight")
    table["embedding.weight"] = [embedding]
    if head is not None:
        scale = imported.config.d_model**0.5 if imported.scales_head else 1.0
        source = embedding if imported.architecture is T5 and HEAD not in files.places else head[0]
        table["head.weight"] = [source._replace(scale=scale)]
    known = {part.name for parts in table.values() for part in parts}
    if missing := known - set(files.places):
        raise Mistake(f"{files.folder}: the weight {min(missing)} is missing ({len(missing)} are in all)")
    unknown = [name for name in files.places if name not in known | ALIASES and not name.endswith(COMPUTED)]
    if unknown:
        raise Mistake(f"{files.folder}: the weight {min(unknown)} has no place here ({len(unknown)} have none)")
    return table


HEAD = "lm_head.weight"
ALIASES = {HEAD, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
"""Names under which an embedding may be stored again."""
COMPUTED = ("rotary_emb.inv_freq", "EncDecAttention.relative_attention_bias.weight")
"""Endings of weights that old files hold and no model reads."""


def _write_facts(out: Path, folder: Path, imported: ImportedConfig) -> None:
    """model.yaml: a `model:` section for the config of a run, and where it comes from."""
    keys = imported.config.model_dump(mode="json", exclude_defaults=True) | {"vocab_size": imported.vocab_size}
    facts = {"imported_from": str(folder), "class": imported.architecture.name, "model": keys}
    (out / MODEL_FILE).write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")


def _copy_tokenizer(out: Path, folder: Path) -> None:
    for name in ("tokenizer.model", "spiece.model"):
        if (folder / name).is_file():
            (out / "tokenizer").mkdir()
            shutil.copyfile(folder / name, out / "tokenizer" / "tokenizer.model")
            return
