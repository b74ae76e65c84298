"""Somebody's Hugging Face folder as weights of ours, so that a run can go on from them.

    folder -> model config and names of weights (their_folder.py)
    -> their weights, one at a time, by our names and laid out as ours (families/)
    -> where asked for, in the places of another shape (adapting.py)
    -> compared with theirs in transformers (parity.py) -> DIR/{model.yaml, *.safetensors, tokenizer/}

What ours has no place for is refused by its name. Memory is that of one layer, whatever the size of the model.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from common.files import folder_aside, refuse_foreign
from common.mistakes import Mistake
from model.config import ModelConfig
from model.exchange.adapting import Adaptation, Shape, adapt
from model.exchange.convert import FILE_BYTES
from model.exchange.hf_names import from_hf, our_shape
from model.exchange.in_transformers import quiet_transformers
from model.exchange.json_objects import quoted
from model.exchange.new_head import with_new_head
from model.exchange.parity import Ours, compare
from model.exchange.tensor_files import TensorReader, TensorWriter
from model.exchange.their_configs import ImportedConfig
from model.exchange.their_folder import HfFolder, correspondence

MODEL_FILE = "model.yaml"
"""The model config of imported weights, and what they come from."""
NUM_POSITIONS = 4096
"""Longest text that is asked of a model that does not say how long its texts may be."""


def import_hf(
    folder: Path,
    out: Path,
    *,
    shape: Shape | None = None,
    tokenizer_files: Sequence[Path] = (),
    file_bytes: int = FILE_BYTES,
) -> ImportedConfig:
    """Writes the weights of a Hugging Face folder to `out` by our names, in fp32; of a causal one as another `shape`.

    Returns what the folder's config says. `load_imported` reads the weights. The files of a tokenizer are copied to
    out/tokenizer. An encoder without a head gets a new one. Replaces an earlier import.
    Raises ValueError when the folder is of another class than those of families/, has a key or a weight
    that has no place in ours or in that shape, or when `out` is something else; RuntimeError when our model does not
    give the logits and greedy tokens that transformers gives. Nothing is left behind then.
    """
    refuse_foreign(out, MODEL_FILE, "imported into")
    with quiet_transformers(), with_new_head(HfFolder.read(folder)) as (theirs, drawn):
        imported, table = correspondence(theirs)
        adaptation = None if shape is None else adapt(imported.config, imported.vocab_size, shape)
        shapes = {name: our_shape(parts) for name, parts in table.items()}
        if adaptation is not None:
            shapes = adaptation.shapes
        with folder_aside(out, sum(map(math.prod, shapes.values())) * torch.float32.itemsize) as aside:
            writer = TensorWriter(aside, shapes, torch.float32, file_bytes)
            for name, weight in from_hf(theirs.files.read, table):
                for place, rows in [(name, weight)] if adaptation is None else adaptation.places(name, weight):
                    writer.write(place, rows)
            _write_facts(aside, folder, imported, adaptation, drawn)
            _copy_tokenizer(aside, tokenizer_files)
            ours = Ours(imported.config, imported.vocab_size, TensorReader(aside).read)
            longest = imported.max_positions or NUM_POSITIONS
            compare(theirs, ours, longest, theirs.start_id, "nothing was imported", Mistake)
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
    try:
        config = ModelConfig(**yaml.safe_load(file.read_bytes())["model"])
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{file}: it holds no model section ({quoted(str(error))}); import the weights again") from None
    if config.vocab_size is None:
        raise Mistake(f"{file}: its model section gives no vocab_size; import the weights again")
    return config, config.vocab_size


def adaptation_of(folder: Path) -> dict[str, str]:
    """What was copied where when a causal model was imported as another shape; empty where none was."""
    return _facts_of(folder).get("adapted", {}).get("copied", {})


def new_head_of(folder: Path) -> list[str]:
    """Their names of the weights of a head that was drawn because there was none."""
    return _facts_of(folder).get("new_head", [])


def _facts_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / MODEL_FILE).read_bytes())


def _write_facts(
    out: Path, folder: Path, imported: ImportedConfig, adaptation: Adaptation | None, drawn: Sequence[str]
) -> None:
    """model.yaml: a `model:` section for a run's config, where it comes from, what was copied where, what was drawn."""
    config = imported.config if adaptation is None else adaptation.config
    keys = config.model_dump(mode="json", exclude_defaults=True) | {"vocab_size": imported.vocab_size}
    facts: dict[str, Any] = {"imported_from": str(folder), "class": imported.architecture.name}
    if adaptation is not None:
        facts["adapted"] = {"from": imported.config.shape, "to": config.shape, "copied": adaptation.copied}
    if drawn:
        facts["new_head"] = list(drawn)
    facts["model"] = keys
    (out / MODEL_FILE).write_text(yaml.safe_dump(facts, sort_keys=False), encoding="utf-8")


def _copy_tokenizer(out: Path, files: Sequence[Path]) -> None:
    for file in files:
        (out / "tokenizer").mkdir(exist_ok=True)
        shutil.copyfile(file, out / "tokenizer" / file.name)
