import pytest
import torch
from hypothesis import given, settings

from model.kernels import block_attention
from model.kernels.attention import Alibi, RelativeBias, Scoring, attend, resolve_backend
from model.kernels.bias import alibi_slopes
from model.kernels.scoring import PLAIN
from tests.model.packs import (
    BIASES,
    HEADS,
    SCORINGS,
    SEEDS,
    bias_of,
    crossing_of,
    pattern_of,
    patterns,
    places_of,
    qkv_for,
    random_qkv,
)


def value_and_gradients(q, k, v, grad, pattern, backend, bias=None, scoring=PLAIN):
    """The output and the gradients of q, k, v and of a learned bias."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    if isinstance(bias, RelativeBias):
        weight = bias.weight.detach().requires_grad_()
        bias = RelativeBias(weight, bias.bidirectional, bias.max_distance)
        inputs.append(weight)
    out = attend(*inputs[:3], pattern, backend, bias, scoring)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad, materialize_grads=True)]


def in_float64(bias):
    return RelativeBias(bias.weight.double(), *bias_rest(bias)) if isinstance(bias, RelativeBias) else bias


def bias_rest(bias):
    return bias.bidirectional, bias.max_distance


def assert_reference(pattern, tensors, bias=None, backend="sdpa", tolerance=1e-5, scoring=PLAIN):
    ours = value_and_gradients(*tensors, pattern, backend, bias, scoring)
    exact = [x.double() for x in tensors]
    expected = value_and_gradients(*exact, pattern, "reference", in_float64(bias), scoring)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@settings(max_examples=150, deadline=None)
@given(patterns(), HEADS, BIASES, SCORINGS, SEEDS)
def test_sdpa_gives_the_reference_in_value_and_gradients(pattern, heads, bias, scoring, seed):
    tensors = qkv_for(pattern, heads, torch.float32, seed)
    assert_reference(pattern, tensors, bias_of(bias, heads[0], torch.float32), scoring=scoring)


@settings(max_examples=30, deadline=None)
@given(patterns(max_documents=3, max_length=260), HEADS, BIASES, SCORINGS, SEEDS)
def test_sdpa_gives_the_reference_on_longer_documents(pattern, heads, bias, scoring, seed):
    tensors = qkv_for(pattern, heads, torch.float64, seed)
    assert_reference(pattern, tensors, bias_of(bias, heads[0]), tolerance=1e-10, scoring=scoring)


@pytest.mark.parametrize("length", [33, 200, 384, 450])
@pytest.mark.parametrize("prefix", [0, 20, 140, 450])
@pytest.mark.parametrize("heads", [(4, 2), (2, 1)])
def test_sdpa_gives_the_reference_where_documents_of_one_kind_share_calls(length, prefix, heads):
    prefix = min(prefix, length)
    pattern = pattern_of([length, length, 7], [prefix, prefix, 0])
    assert_reference(pattern, random_qkv(pattern.num_queries, *heads, 16, torch.float32))


@pytest.mark.parametrize("bias", [None, "two directions"])
@pytest.mark.parametrize("prefix", [0, 130, 450])
@pytest.mark.parametrize("window", [2, 64, 129, 300, 449])
def test_windows_of_every_size_beside_blocks_give_the_reference(window, prefix, bias):
    pattern = pattern_of([450, 450, 9], [prefix, prefix, 0]).within(window)
    tensors = random_qkv(pattern.num_queries, 2, 1, 4, torch.float64)
    assert_reference(pattern, tensors, bias_of(bias, 2), tolerance=1e-10)


def test_blocks_reach_no_farther_than_the_window():
    """So that time follows the allowed pairs: at most the corners of each block of queries more."""
    for prefix in (0, 2000, 4000):
        (document,) = pattern_of([4000], [prefix]).within(256).documents
        computed = sum(
            (block.stop - block.start) * (block.end_key - block.first_key)
            for block in block_attention._blocks(document)
        )
        assert document.num_pairs < computed < document.num_pairs + 4000 * block_attention.BLOCK


@pytest.mark.parametrize("together", [1, 2**14, 2**17])
@pytest.mark.parametrize("heads", [(6, 6), (6, 3)])
def test_however_few_scores_are_alive_together_the_bias_finds_its_heads(monkeypatch, together, heads):
    monkeypatch.setattr(block_attention, "TOGETHER", together)
    pattern = pattern_of([100] * 3, [40] * 3)
    tensors = random_qkv(300, *heads, 4, torch.float64)
    assert_reference(pattern, tensors, bias_of("two directions", 6), tolerance=1e-10)


def test_alibi_of_long_documents_is_as_exact_as_the_scores():
    pattern = pattern_of([1500], [0])
    tensors = random_qkv(1500, 1, 1, 8, torch.float32)
    assert_reference(pattern, tensors, Alibi(alibi_slopes(1)))


@pytest.mark.parametrize("scoring", [PLAIN, Scoring(softcap=2.0)], ids=["plain", "capped"])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("bias", [None, "alibi", "two directions"])
@pytest.mark.parametrize(
    "pattern",
    [
        pattern_of([9, 14, 9, 1, 5], [0, 6, 0, 1, 5]),
        pattern_of([390, 390, 210], [0, 0, 70]),
        crossing_of([9, 9, 0, 70, 3], [5, 5, 4, 200, 0]),
    ],
    ids=["short", "long", "cross"],
)
def test_a_document_is_not_changed_by_the_others_to_the_last_bit(backend, bias, pattern, scoring):
    """Neither its outputs nor its gradients."""
    tensors = qkv_for(pattern, (4, 2), torch.float32)
    bias = bias_of(bias, 4, torch.float32)
    before = value_and_gradients(*tensors, pattern, backend, bias, scoring)[:4]
    for number in range(len(pattern.documents)):
        queries, keys = places_of(pattern, number)
        mine = [queries, keys, keys, queries]
        changed = [torch.where(own[:, None, None], x, 3.7) for own, x in zip(mine, tensors, strict=True)]
        after = value_and_gradients(*changed, pattern, backend, bias, scoring)[:4]
        # The output, and the gradients of q, k and v.
        for own, one, other in zip([queries, *mine[:3]], after, before, strict=True):
            assert torch.equal(one[own], other[own])


@settings(max_examples=60, deadline=None)
@given(patterns(), BIASES)
def test_outputs_depend_on_the_allowed_keys_and_on_no_others(pattern, bias):
    """A prefix token on every prefix token and on no suffix token, a suffix token on none after it."""
    q, k, v, _ = qkv_for(pattern, (2, 1), torch.float64)
    out = attend(q, k, v, pattern, "sdpa", bias_of(bias, 2))
    seen = torch.zeros(pattern.num_queries, pattern.num_keys, dtype=torch.bool)
    for i in range(pattern.num_queries):
        (grad,) = torch.autograd.grad(out[i].sum(), v, retain_graph=True)
        seen[i] = grad.abs().sum((1, 2)) > 0
    assert torch.equal(seen, pattern.dense_mask())


def test_scores_so_large_that_the_future_overflows_leave_gradients_finite():
    """Every query is drawn most to the last keys of all, by more than exp can hold, and must not see them."""
    pattern = pattern_of([390], [0])
    q, k, v, grad = (x.detach() for x in random_qkv(390, 2, 1, 16, torch.float32))
    k = torch.arange(0.0, 130.0, 1 / 3)[:, None, None] * torch.ones_like(k)
    q = q.abs()
    ours = value_and_gradients(q, k, v, grad, pattern, "sdpa")
    expected = value_and_gradients(q.double(), k.double(), v.double(), grad.double(), pattern, "reference")
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("scoring", [PLAIN, Scoring(0.9, 0.8)], ids=["plain", "capped"])
@pytest.mark.parametrize("bias", [None, "one direction"])
@pytest.mark.parametrize("prefix", [0, 50, 130])
def test_gradients_of_the_cpu_kernel_are_the_numerical_ones(prefix, bias, scoring):
    (document,) = pattern_of([130], [prefix]).documents
    q, k, v, _ = random_qkv(260, 2, 1, 2, torch.float64)
    if bias is None:
        assert torch.autograd.gradcheck(
            lambda *x: block_attention.attention(*x, document, scoring=scoring), (q, k, v), fast_mode=True
        )
        return
    weight = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v, w: block_attention.attention(q, k, v, document, RelativeBias(w, False, 20), scoring),
        (q, k, v, weight),
        fast_mode=True,
    )


def test_gradients_repeat_bit_for_bit():
    pattern = pattern_of([300, 90, 90, 31], [120, 0, 0, 31])
    tensors = random_qkv(511, 4, 2, 16, torch.float32)
    bias = bias_of("two directions", 4, torch.float32)
    one, other = (value_and_gradients(*tensors, pattern, "sdpa", bias) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_queries_that_are_strided_views_are_fine():
    pattern = pattern_of([6, 205], [0, 30])
    fused = torch.randn(211, 8, 8)
    q, k, v = fused.split([4, 2, 2], dim=1)
    expected = attend(q.contiguous(), k.contiguous(), v.contiguous(), pattern)
    torch.testing.assert_close(attend(q, k, v, pattern), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scoring", [PLAIN, Scoring(softcap=1.5)], ids=["plain", "capped"])
def test_half_precision_is_fine_on_cpus(scoring):
    pattern = pattern_of([40, 9, 5], [15, 0, 5])
    tensors = [x.detach() for x in random_qkv(54, 4, 2, 16, torch.float32)]
    expected = value_and_gradients(*tensors, pattern, "sdpa", bias_of("alibi", 4), scoring)
    ours = value_and_gradients(*(x.bfloat16() for x in tensors), pattern, "sdpa", bias_of("alibi", 4), scoring)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=3e-2, rtol=3e-2)


def test_a_cap_that_bends_nothing_changes_nothing_and_a_low_one_evens_out_what_is_seen():
    """Weights of a query whose scores all reach the cap are equal: the mean of its values, whatever the scores were."""
    pattern = pattern_of([70, 260], [0, 260])
    q, k, v, grad = random_qkv(330, 4, 2, 8, torch.float64)
    plain, bent = (value_and_gradients(q, k, v, grad, pattern, "sdpa", None, Scoring(softcap=c)) for c in (None, 1e6))
    for one, other in zip(bent, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    low = attend(q.abs() + 1, k.abs() + 1, v, pattern, "sdpa", None, Scoring(softcap=0.05))
    torch.testing.assert_close(low[70:], v[70:].mean(0).repeat_interleave(2, 0).expand(260, 4, 8), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_capped_scores_are_computed_where_the_tensors_are(dtype):
    """In their precision; the only constants that the kernel adds are made there too."""
    pattern, scoring = pattern_of([100, 100, 30], [40, 40, 0]).within(50), Scoring(softcap=2.0)
    tensors = [x.detach().to("meta", dtype) for x in qkv_for(pattern, (4, 2), torch.float32)]
    out, *grads = value_and_gradients(*tensors, pattern, "sdpa", Alibi(alibi_slopes(4).to("meta")), scoring)
    assert all(x.is_meta and x.dtype == dtype for x in (out, *grads))
    assert all(x.is_meta for x in block_attention._corners(torch.device("meta")))
    assert [x.shape for x in (out, *grads)] == [(230, 4, 8), (230, 4, 8), (230, 2, 8), (230, 2, 8)]


@pytest.mark.parametrize("backend", ["sdpa", "flash", "reference"])
@pytest.mark.parametrize("pattern", [pattern_of([0, 0], [0, 0]), crossing_of([3, 0], [0, 2])], ids=["empty", "apart"])
def test_where_nothing_is_to_be_seen_the_answer_is_zero_and_has_gradients(backend, pattern):
    q, k, v, grad = qkv_for(pattern, (2, 1), torch.float32)
    out, *grads = value_and_gradients(q, k, v, grad, pattern, backend)
    assert out.shape == q.shape
    assert all(not x.any() for x in (out, *grads))


def test_auto_is_sdpa_without_a_gpu():
    assert resolve_backend("auto", "cpu") == "sdpa"
    assert resolve_backend("sdpa", "cpu") == "sdpa"
    assert resolve_backend("reference", "cpu") == "reference"


def test_flash_is_refused_where_it_cannot_run(monkeypatch):
    with pytest.raises(ValueError, match="attention_backend: flash cannot run, it needs a CUDA device and this is cpu"):
        resolve_backend("flash", "cpu")
    monkeypatch.setattr("model.kernels.flash.installed", lambda: False)
    with pytest.raises(ValueError, match=r"flash-attn is not installed"):
        resolve_backend("flash", "cuda")
    monkeypatch.setattr("model.kernels.flash.installed", lambda: True)
    assert resolve_backend("auto", "cuda") == resolve_backend("flash", "cuda") == "flash"
    with pytest.raises(ValueError, match="precision bf16"):
        resolve_backend("flash", "cuda", torch.float32)
    with pytest.raises(ValueError, match="head_dim is 512"):
        resolve_backend("flash", "cuda", torch.bfloat16, 512)
    assert resolve_backend("auto", "cuda", torch.float32) == "sdpa"


def test_auto_is_the_first_of_flash_varlen_and_sdpa_that_runs(monkeypatch):
    def chosen(*installed: str, **facts) -> str:
        for name in ("flash", "varlen"):
            module = {"flash": "flash", "varlen": "torch_varlen"}[name]
            monkeypatch.setattr(f"model.kernels.{module}.installed", lambda name=name: name in installed)
        return resolve_backend("auto", "cuda", **facts)

    assert chosen("flash", "varlen") == chosen("flash") == "flash"
    assert chosen("varlen") == "varlen"
    assert chosen() == "sdpa"
    assert chosen("varlen", positions="alibi") == chosen("varlen", head_dim=60) == "sdpa"
    assert chosen("flash", "varlen", softcap=50.0) == "flash" and chosen("varlen", softcap=50.0) == "sdpa"
    assert chosen("flash", "varlen", positions="t5_bias") == chosen("flash", "varlen", dtype=torch.float32) == "sdpa"


def test_a_gpu_too_old_for_the_kernels_gets_sdpa(monkeypatch):
    for module in ("flash", "torch_varlen"):
        monkeypatch.setattr(f"model.kernels.{module}.installed", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert resolve_backend("auto", "cuda") == "sdpa"
    with pytest.raises(ValueError, match=r"varlen cannot run, it needs a GPU of compute capability 8\.0 .* has 7\.5"):
        resolve_backend("varlen", "cuda")


def test_flash_takes_alibi_but_no_learned_bias(monkeypatch):
    monkeypatch.setattr("model.kernels.flash.installed", lambda: True)
    assert resolve_backend("flash", "cuda", positions="alibi") == "flash"
    with pytest.raises(ValueError, match=r"no learned bias and model\.positions is t5_bias; or use sdpa"):
        resolve_backend("flash", "cuda", positions="t5_bias")
    assert resolve_backend("auto", "cuda", positions="t5_bias") == "sdpa"
