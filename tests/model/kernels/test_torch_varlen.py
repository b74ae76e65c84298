"""The calls made to torch's operators, against a stand-in; test_flash_gpu.py has the real ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen  # noqa: F401  (registers the operators)

from model.kernels.attention import Scoring, attend, resolve_backend
from model.kernels.scoring import PLAIN
from tests.model.kernels.varlen_stand_in import varlen_stand_in
from tests.model.packs import HEADS, SEEDS, bias_of, pattern_of, patterns, qkv_for


def forward_stand_in(q, k, v, cu_q, cu_k, max_q, max_k, causal, scale, window, enable_gqa):
    assert window[1] == 0 if causal else window[0] == window[1]
    assert enable_gqa or q.shape[1] == k.shape[1]
    how = {"causal": causal, "window_size": window, "softmax_scale": scale}
    out = varlen_stand_in(q, k, v, cu_q, cu_k, max_q, max_k, **how)
    return out, torch.tensor(0.0), torch.tensor(0.0)


def backward_stand_in(grad, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, causal, random_state, scale, window):
    assert out.shape == grad.shape
    how = {"causal": causal, "window_size": window, "softmax_scale": scale}
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "which would leave the order of sums to chance"
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        again = varlen_stand_in(*inputs, cu_q, cu_k, max_q, max_k, **how)
        return torch.autograd.grad(again, inputs, grad)


def outputs_and_gradients(tensors, pattern, backend, scoring=PLAIN):
    inputs = [x.detach().requires_grad_() for x in tensors[:3]]
    out = attend(*inputs, pattern, backend, None, scoring)
    return [out.detach(), *torch.autograd.grad(out, inputs, tensors[3], materialize_grads=True)]


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.torch_attn, "_varlen_attn", forward_stand_in)
        patch.setattr(torch.ops.torch_attn, "_varlen_attn_backward", backward_stand_in)
        yield


@settings(max_examples=80, deadline=None)
@given(patterns(), HEADS, st.sampled_from([PLAIN, Scoring(0.9)]), SEEDS)
def test_the_calls_give_the_reference_in_value_and_gradients(pattern, heads, scoring, seed):
    tensors = qkv_for(pattern, heads, torch.float64, seed)
    ours = outputs_and_gradients(tensors, pattern, "varlen", scoring)
    expected = outputs_and_gradients(tensors, pattern, "reference", scoring)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("warn_only", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_the_setting_of_determinism_is_put_back(before, warn_only):
    pattern = pattern_of([5, 3], [2, 0])
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
    try:
        outputs_and_gradients(qkv_for(pattern, (2, 1), torch.float64), pattern, "varlen")
        assert torch.are_deterministic_algorithms_enabled() == before
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_operators_of_torch_take_these_arguments():
    """On tensors without values, which need no GPU."""
    pattern = pattern_of([5, 3], [2, 0])
    assert pattern.split, "taken apart while tensors have values"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_varlen_attn", "_varlen_attn_backward"):
            patch.setattr(torch.ops.torch_attn, name, getattr(torch._ops._OpNamespace("torch_attn"), name))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            tensors = [mode.from_tensor(x.detach().bfloat16()) for x in qkv_for(pattern, (4, 2), torch.float32)]
            out, *grads = outputs_and_gradients(tensors, pattern, "varlen")
    assert out.shape == (8, 4, 8)
    assert [x.shape for x in grads] == [(8, 4, 8), (8, 2, 8), (8, 2, 8)]


def test_varlen_runs_where_its_kernel_does_and_there_is_no_bias(monkeypatch):
    monkeypatch.setattr("model.kernels.torch_varlen.installed", lambda: False)
    with pytest.raises(ValueError, match="varlen cannot run, this build of torch comes without its kernel"):
        resolve_backend("varlen", "cuda")
    monkeypatch.setattr("model.kernels.torch_varlen.installed", lambda: True)
    assert resolve_backend("varlen", "cuda") == "varlen"
    with pytest.raises(ValueError, match="varlen cannot run, it needs a CUDA device and this is cpu"):
        resolve_backend("varlen", "cpu")
    for positions in ("alibi", "t5_bias"):
        with pytest.raises(ValueError, match=f"it takes no bias and model.positions is {positions}; or"):
            resolve_backend("varlen", "cuda", positions=positions)
    with pytest.raises(ValueError, match=r"it takes no soft cap and model\.attention_softcap is 50; or use sdpa"):
        resolve_backend("varlen", "cuda", softcap=50.0)
    with pytest.raises(ValueError, match="heads of a multiple of 8"):
        resolve_backend("varlen", "cuda", head_dim=60)
    with pytest.raises(ValueError, match="precision bf16"):
        resolve_backend("varlen", "cuda", torch.float32)


def test_neither_a_bias_nor_a_soft_cap_gets_this_far():
    pattern = pattern_of([3], [0])
    with pytest.raises(AssertionError, match="resolve_backend"):
        attend(*qkv_for(pattern, (2, 2), torch.float64)[:3], pattern, "varlen", bias_of("alibi", 2))
    with pytest.raises(AssertionError, match="resolve_backend"):
        outputs_and_gradients(qkv_for(pattern, (2, 2), torch.float64), pattern, "varlen", Scoring(softcap=2.0))
