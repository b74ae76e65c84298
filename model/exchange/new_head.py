"""A head for weights that have none: files of the bare model (BertModel ...), as models of embeddings have.

files without a weight of the head -> copied by the names they have beside one, with a head drawn from a seed
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from model.exchange.families.layout import Part
from model.exchange.tensor_files import Place, TensorReader, TensorWriter
from model.exchange.their_configs import from_hf_config
from model.exchange.their_folder import HfFolder, with_head

SEED = 0


@contextlib.contextmanager
def with_new_head(folder: HfFolder) -> Iterator[tuple[HfFolder, list[str]]]:
    """For as long as the block lasts: an encoder's folder of the bare model with a head, and the names of its weights.

    Matrices are normal with the model's init_std, norms 1, biases 0. Folders that have a head, or a part of one, and
    those of other shapes are given back as they are. transformers finds no head beside names of a bare model, so all
    weights are copied.
    """
    head = _head_that_is_missing(folder)
    if not head:
        yield folder, []
        return
    std = from_hf_config(folder.config).config.init_std
    generator = torch.Generator().manual_seed(SEED)
    files, kept = folder.files, _kept(folder)
    shapes = {name: place.shape for name, place in kept.items()} | {part.name: part.shape for part in head}
    dtypes = {place.dtype for place in kept.values()}
    with tempfile.TemporaryDirectory(prefix="shardline-") as name:
        copy = Path(name)
        writer = TensorWriter(copy, shapes, dtypes.pop() if len(dtypes) == 1 else torch.float32, files.num_bytes * 2)
        for weight in kept:
            writer.write(weight, files.read(weight))
        for part in head:
            writer.write(part.name, _drawn(part, std, generator))
        yield folder._replace(files=TensorReader(copy)), [part.name for part in head]


def _head_that_is_missing(folder: HfFolder) -> list[Part]:
    imported = from_hf_config(folder.config)
    if imported.config.shape != "encoder":
        return []
    imported = with_head(imported, folder.files)  # reads the embedding, and the head where there is one
    table = imported.family.table(imported.config, imported.vocab_size)
    head = [part for parts in table.values() for part in parts if part.name.split(".")[0] in imported.family.heads]
    kept = _kept(folder)
    is_bare = not any(part.name in kept for part in head)
    return head if is_bare and all(place.dtype.is_floating_point for place in kept.values()) else []


def _kept(folder: HfFolder) -> dict[str, Place]:
    """Weights that mean something to the model."""
    family = folder.config.family
    return {name: place for name, place in folder.files.places.items() if not family.leaves(name)}


def _drawn(part: Part, std: float, generator: torch.Generator) -> torch.Tensor:
    if len(part.shape) > 1:
        return torch.empty(part.shape).normal_(std=std, generator=generator)
    return torch.zeros(part.shape) if part.name.endswith("bias") else torch.ones(part.shape)
