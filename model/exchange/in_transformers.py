"""A Hugging Face folder run by transformers: logits of documents, greedy tokens after them.

The model is never whole in memory: each of its layers reads its weights when its turn comes (on_demand.py).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from model.exchange.architectures import SEQ2SEQ, Architecture
from model.exchange.families.family import Family
from model.exchange.their_folder import HfFolder, load_model
from model.kernels.on_demand import layers_and_owners, read_on_demand


class Documents(NamedTuple):
    """What both models read."""

    inputs: list[torch.Tensor]
    """int64 [L] each: beginning of a text, prefix, masked text, or what an encoder reads."""
    outputs: list[torch.Tensor]
    """int64 [M] each: what follows; in an encoder-decoder it begins with the start token."""


def run_theirs(
    folder: HfFolder, documents: Documents, num_new: int, start_id: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of each document as `parity.run_ours` gives them, and num_new greedy tokens after its inputs."""
    with folder.clean_view() as view:
        return _run(load_model(folder, view, "auto"), folder, documents, num_new, start_id)


def _run(
    model: Any, folder: HfFolder, documents: Documents, num_new: int, start_id: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    found, files = folder.config.architecture, folder.files
    names = folder.config.family.stored_as
    stored = {
        id(weight): names.get(name, name)
        for name, weight in model.named_parameters(remove_duplicate=False)
        if names.get(name, name) in files.places
    }
    by_name = {name: stored.get(id(weight), name) for name, weight in model.named_parameters()}
    read_on_demand(model, layers_and_owners(model), lambda name: files.read(by_name[name]))
    with torch.no_grad():
        logits = run_model(model, folder.config.family, documents)
        if not num_new or found.fills_masks:
            return logits, []
        return logits, generate_theirs(model, found, documents.inputs, num_new, start_id)


def run_model(model: Any, family: Family, documents: Documents) -> list[torch.Tensor]:
    """Logits of each document as `parity.run_ours` gives them."""
    if family.shape == "encdec":
        ids, mask = padded(documents.inputs, left=False)
        decoder_ids, decoder_mask = padded(documents.outputs, left=False)
        keys = {"decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
        logits = model(input_ids=ids, attention_mask=mask, **keys).logits
        return [row[: len(tokens)] for row, tokens in zip(logits, documents.outputs, strict=True)]
    texts = [torch.cat(parts) for parts in zip(*documents, strict=True)]
    ids, mask = padded(texts, left=False)
    keys = {"prefix_lengths": torch.tensor([len(x) for x in documents.inputs])} if family.shape == "prefix" else {}
    logits = model(input_ids=ids, attention_mask=mask, **keys).logits
    return [row[: len(tokens)] for row, tokens in zip(logits, texts, strict=True)]


def generate_theirs(
    model: Any, found: Architecture, inputs: Sequence[torch.Tensor], num_new: int, start_id: int
) -> list[torch.Tensor]:
    """num_new greedy tokens int64 [num_new] after each of `inputs` int64 [L], which go in as one padded batch."""
    ids, mask = padded(inputs, left=found.auto != SEQ2SEQ)  # an encoder's learned positions begin on the left
    # Without an end token, or generate would bar it until the last token: ours may well prefer it.
    keys: dict[str, Any] = {"max_new_tokens": num_new, "min_new_tokens": num_new, "eos_token_id": None}
    if found.auto == SEQ2SEQ:
        keys |= {"decoder_start_token_id": start_id} | cache_for(model)
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, num_beams=1, **keys)
    return list(out[:, -num_new:])


def cache_for(model: Any) -> dict[str, Any]:
    """Keys for generate() of an encoder-decoder: a cache, where transformers would size one by the encoder's depth.

    That is so for T5 and its kin unless its config has a `decoder_layers`, as those we write have (transformers 5.23).
    """
    from transformers import DynamicCache, EncoderDecoderCache

    if not hasattr(model.config, "num_decoder_layers") or hasattr(model.config, "decoder_layers"):
        return {}
    return {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def padded(
    rows: Sequence[Sequence[int] | torch.Tensor], left: bool, pad_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as one batch int64 [B, L], and its mask."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad_id), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, place], mask[row, place] = torch.as_tensor(tokens), 1
    return ids, mask


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers off the terminal meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
