"""flash-attn and torch's build of it against the reference: python -m pytest -m gpu tests/model/kernels"""

import dataclasses

import pytest
import torch

from model.kernels.attention import Scoring, attend, resolve_backend
from model.kernels.scoring import PLAIN
from tests.model.packs import bias_of, crossing_of, pattern_of, random_qkv

pytestmark = pytest.mark.gpu

PATTERNS = {
    "causal": pattern_of([100, 17, 1, 64], [0, 0, 0, 0]),
    "whole": pattern_of([100, 17, 1, 64], [100, 17, 1, 64]),
    "mixed": pattern_of([100, 17, 0, 1, 64, 300], [40, 17, 0, 1, 0, 299]),
    "one token after each prefix": pattern_of([5, 6, 7], [4, 6, 6]),
    "causal, window": pattern_of([100, 17, 1, 300], [0, 0, 0, 0]).within(33),
    "whole, window": pattern_of([100, 17, 1, 300], [100, 17, 1, 300]).within(33),
    "mixed, window": pattern_of([100, 17, 0, 1, 64, 300], [40, 17, 0, 1, 0, 299]).within(16),
    "cross": crossing_of([100, 0, 17, 3, 200], [33, 40, 0, 1, 300]),
    "cross of single queries": crossing_of([1, 0, 1], [33, 40, 2]),
}


def on_gpu(name, heads, bias):
    pattern = PATTERNS[name]
    tensors = random_qkv(pattern.num_queries, *heads, 64, torch.float32, num_keys=pattern.num_keys)
    bias = bias_of(bias, heads[0])
    if bias is not None:
        bias = dataclasses.replace(bias, slopes=bias.slopes.cuda())
    return pattern.to("cuda"), [x.detach().to("cuda", torch.bfloat16) for x in tensors], bias


def outputs_and_gradients(tensors, pattern, backend, bias, scoring=PLAIN):
    inputs = [x.detach().requires_grad_() for x in tensors[:3]]
    out = attend(*inputs, pattern, backend, bias, scoring)
    return [out.detach(), *torch.autograd.grad(out, inputs, tensors[3], materialize_grads=True)]


@pytest.mark.parametrize("scoring", [PLAIN, Scoring(0.3, 2.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [None, "alibi"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", PATTERNS)
def test_flash_gives_the_reference_in_value_and_gradients(name, heads, bias, scoring):
    pattern, tensors, bias = on_gpu(name, heads, bias)
    ours = outputs_and_gradients(tensors, pattern, "flash", bias, scoring)
    expected = outputs_and_gradients([x.double() for x in tensors], pattern, "reference", bias, scoring)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("name", PATTERNS)
def test_varlen_gives_the_reference_in_value_and_gradients(name, heads):
    pattern, tensors, _ = on_gpu(name, heads, None)
    ours = outputs_and_gradients(tensors, pattern, "varlen", None)
    expected = outputs_and_gradients([x.double() for x in tensors], pattern, "reference", None)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("backend", ["flash", "varlen"])
@pytest.mark.parametrize("name", ["mixed", "cross"])
def test_gradients_repeat_bit_for_bit(name, backend):
    pattern, tensors, _ = on_gpu(name, (4, 2), None)
    one, other = (outputs_and_gradients(tensors, pattern, backend, None) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("scoring", [PLAIN, Scoring(0.3, 2.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [None, "alibi", "two directions"])
@pytest.mark.parametrize("name", PATTERNS)
def test_sdpa_gives_the_reference_on_gpus_too(name, bias, scoring):
    pattern = PATTERNS[name].to("cuda")
    tensors = random_qkv(pattern.num_queries, 4, 2, 64, torch.float64, num_keys=pattern.num_keys)
    tensors = [x.detach().cuda() for x in tensors]
    bias = bias_of(bias, 4)
    if bias is not None:
        values = {"slopes": bias.slopes.cuda()} if hasattr(bias, "slopes") else {"weight": bias.weight.detach().cuda()}
        bias = dataclasses.replace(bias, **values)
    ours = outputs_and_gradients(tensors, pattern, "sdpa", bias, scoring)
    expected = outputs_and_gradients(tensors, pattern, "reference", bias, scoring)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def test_auto_never_falls_to_sdpa_on_a_gpu_whose_torch_has_the_kernel():
    assert resolve_backend("auto", "cuda") in ("flash", "varlen")
