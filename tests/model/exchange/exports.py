"""What tests of exports share: models of every shape whose norms are not all ones, folders, naive decoding."""

from pathlib import Path

import torch

from model.config import ModelConfig
from model.exchange.convert import ExportSpec, TokenizerSpec, export_hf
from model.exchange.importing import imported_config, load_imported
from model.exchange.parity import run_ours
from model.network.transformer import Transformer

VOCAB = 600
START = 1
BASE = {"num_layers": 2, "d_model": 48, "num_heads": 6, "num_kv_heads": 2, "d_ff": 64, "init_std": 0.15}


def randomised(config: ModelConfig, seed: int = 0, vocab_size: int = VOCAB) -> Transformer:
    """A model whose norms and biases are not all alike, so that mixing them up shows."""
    model = Transformer(config, vocab_size, seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.uniform_(0.5, 1.5, generator=generator)
    for name, weight in model.named_parameters():
        if name.endswith(("attention_bias.weight", "relative_bias.weight")):
            weight.data.normal_(0, 1, generator=generator)
    return model


def export(model, out, tokenizer_model, **changes):
    """Exports all of a model's weights, or what `changes` says."""
    state = changes.pop("state") if "state" in changes else model.state_dict()
    plain = {key: changes.pop(key) for key in TokenizerSpec._fields if key in changes}
    ids = {"bos_id": START, "eos_id": 2, "pad_id": 3}
    facts = {"max_positions": 128, "tokenizer": TokenizerSpec(tokenizer_model, **plain)} | ids | changes
    return export_hf(state, ExportSpec(model.config, model.vocab_size, **facts), out)


def tokens(*lengths: int, seed: int = 5) -> list[torch.Tensor]:
    """Random texts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCAB, (n,), generator=generator) for n in lengths]


def greedy(model: Transformer, inputs: torch.Tensor, count: int) -> torch.Tensor:
    """Our `count` likeliest tokens after the inputs, each from a pass over everything."""
    outputs = torch.tensor([START] if model.config.shape == "encdec" else [], dtype=torch.long)
    begin = len(outputs)
    for _ in range(count):
        outputs = torch.cat((outputs, run_ours(model, inputs, outputs)[-1:].argmax(-1)))
    return outputs[begin:]


def padded(rows: list[torch.Tensor], left: bool) -> dict[str, torch.Tensor]:
    """A batch as transformers takes it."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), 3), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, text in enumerate(rows):
        place = slice(longest - len(text), None) if left else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


EXACTLY = {"max_new_tokens": 50, "min_new_tokens": 50, "eos_token_id": None, "do_sample": False}
"""Fifty greedy tokens, whatever they are."""


def load_ours(out: Path) -> Transformer:
    """The model of an imported folder."""
    config, vocab_size = imported_config(out)
    model = Transformer(config, vocab_size)
    missing, unexpected = model.load_state_dict(dict(load_imported(out)), strict=False)
    assert not unexpected and set(missing) <= ({"head.weight"} if config.tie_embeddings else set())
    return model
