"""Our model with llama.cpp's roundings."""

import gguf
import numpy as np
import pytest
import torch

from model.exchange.gguf.as_llama_cpp import ROUNDED, gelu_by_table, round_as_llama_cpp, rounds
from model.exchange.gguf.check import tolerance
from model.exchange.gguf.file import TYPES
from model.exchange.parity import run_ours
from tests.model.exchange.exports import tokens
from tests.model.exchange.gguf_files import gguf_model

WIDE = {"d_model": 96, "head_dim": 16}


@pytest.mark.parametrize("kind", ROUNDED)
def test_what_a_matrix_is_multiplied_by_is_what_the_gguf_package_stores(kind):
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 7)[:, None]
    x[3, 32:64] = 0
    stored = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[TYPES[kind]])
    read = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[TYPES[kind]])
    assert np.array_equal(ROUNDED[kind](x).numpy(), read)


def test_gelu_is_looked_up_by_16_bits_between_minus_ten_and_ten():
    x = torch.tensor([-11.0, -10.0, -1.0001, -1.0, 0.0, 1.0001, 9.99, 10.0, 12.3456])
    found = gelu_by_table(x)
    plain = torch.nn.functional.gelu(x, approximate="tanh")
    assert torch.equal(found[[0, 1, 4]], torch.zeros(3)) and torch.equal(found[7:], x[7:])
    assert found[2] == found[3] and found[5] == found[5].half() and plain[2] != plain[3]
    torch.testing.assert_close(found, plain, atol=0, rtol=2**-9)


@pytest.mark.parametrize("case", ["causal", "gpt2", "gemma3", "t5_geglu"])
@pytest.mark.parametrize("kind", TYPES)
def test_logits_move_by_as_much_as_is_allowed_and_no_more_than_the_type_does(case, kind):
    model = gguf_model(case, **WIDE)
    texts = *tokens(20), torch.tensor([1, 7])
    plain = run_ours(model, *texts)
    rounded = run_ours(round_as_llama_cpp(model, kind), *texts)
    moved = (rounded - plain).abs().max().item() / plain.abs().max().item()
    assert (moved > 0) == rounds(model.config, kind)
    assert moved < {"f32": 2e-3, "f16": 5e-3, "bf16": 5e-2, "q8_0": 1.5e-1}[kind]
    assert tolerance(rounded, plain) >= 2 * (rounded - plain).abs().max().item()
