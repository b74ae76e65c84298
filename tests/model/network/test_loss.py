import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import model.network.loss as loss_module
from model.network.loss import Shaping, chunked_cross_entropy


def problem(num_tokens, width=6, vocab_size=11, targets=0.7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(vocab_size, width, dtype=dtype, generator=generator).requires_grad_()
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    labels[torch.rand(num_tokens, generator=generator) >= targets] = -100
    return hidden, weight, labels


def plain(hidden, weight, labels, z_loss):
    logits = (hidden @ weight.t()).to(torch.promote_types(hidden.dtype, torch.float32))
    cross_entropy = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
    return cross_entropy + z_loss * logits[labels != -100].logsumexp(-1).square().sum(), cross_entropy


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 25),
    st.sampled_from([0.0, 0.01]),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.floats(-3, 3),
)
def test_any_chunking_gives_torchs_cross_entropy_and_gradients(num_tokens, chunk_size, z_loss, targets, upstream):
    hidden, weight, labels = problem(num_tokens, targets=targets)
    result = chunked_cross_entropy(hidden, weight, labels, z_loss, chunk_size)
    loss, cross_entropy = plain(hidden, weight, labels, z_loss)
    torch.testing.assert_close(result.loss_sum, loss)
    torch.testing.assert_close(result.cross_entropy_sum, cross_entropy)
    assert result.num_targets == (labels != -100).sum()
    ours = torch.autograd.grad(result.loss_sum * upstream, (hidden, weight))
    expected = torch.autograd.grad(loss * upstream, (hidden, weight))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_the_numerical_ones():
    """torch's gradcheck wants to go backward twice over one graph, so the differences are taken here."""
    hidden, weight, labels = problem(9)

    def loss(h, w):
        return chunked_cross_entropy(h, w, labels, 0.1, 4).loss_sum

    gradients = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    step = 1e-6
    for which, gradient in enumerate(gradients):
        for place in range(gradient.numel()):
            moved = []
            for sign in (1, -1):
                inputs = [hidden.detach().clone(), weight.detach().clone()]
                inputs[which].view(-1)[place] += sign * step
                moved.append(loss(*inputs))
            torch.testing.assert_close(
                (moved[0] - moved[1]) / (2 * step), gradient.view(-1)[place], atol=1e-6, rtol=1e-6
            )


def test_fp32_agrees_with_torch_on_a_larger_vocabulary():
    hidden, weight, labels = problem(300, width=32, vocab_size=5000, dtype=torch.float32)
    ours = chunked_cross_entropy(hidden, weight, labels, 1e-4).loss_sum
    loss, _ = plain(hidden, weight, labels, 1e-4)
    torch.testing.assert_close(ours, loss, rtol=1e-6, atol=0)
    for one, other in zip(
        torch.autograd.grad(ours / 300, (hidden, weight)),
        torch.autograd.grad(loss / 300, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_bf16_weights_get_fp32_softmax_and_bf16_gradients():
    hidden, weight, labels = problem(64, width=32, vocab_size=200, dtype=torch.bfloat16)
    result = chunked_cross_entropy(hidden, weight, labels, 1e-3, 10)
    loss, _ = plain(hidden, weight, labels, 1e-3)
    assert result.loss_sum.dtype == result.cross_entropy_sum.dtype == torch.float32
    torch.testing.assert_close(result.loss_sum, loss, rtol=1e-5, atol=0)
    ours = torch.autograd.grad(result.loss_sum, (hidden, weight))
    expected = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def test_large_logits_stay_finite():
    hidden, weight, labels = problem(5, dtype=torch.float32)
    result = chunked_cross_entropy(hidden * 1e4, weight, labels)
    loss, _ = plain(hidden * 1e4, weight, labels, 0.0)
    assert result.loss_sum.isfinite()
    torch.testing.assert_close(result.loss_sum, loss)


def test_no_targets_give_zero_loss_and_zero_gradients():
    hidden, weight, labels = problem(6, targets=0.0)
    result = chunked_cross_entropy(hidden, weight, labels, 0.1, 4)
    assert result.loss_sum == result.cross_entropy_sum == result.num_targets == 0
    for grad in torch.autograd.grad(result.loss_sum, (hidden, weight)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_evaluation_makes_no_gradients(monkeypatch):
    hidden, weight, labels = problem(6)
    chunks = []
    from model.network import loss

    original = loss._chunk
    monkeypatch.setattr(loss, "_chunk", lambda *args: chunks.append(args[-1]) or original(*args))
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).loss_sum.requires_grad
    chunked_cross_entropy(hidden.detach(), weight.detach(), labels)
    assert chunks == [None, None]
    chunked_cross_entropy(hidden, weight, labels)
    assert chunks[-1] is not None


@pytest.mark.parametrize(("targets", "all_rows"), [(0.15, False), (0.95, True)])
def test_positions_without_a_target_are_left_out_where_they_are_many(targets, all_rows, monkeypatch):
    hidden, weight, labels = problem(400, targets=targets)
    rows = []
    from model.network import loss

    original = loss._chunk
    monkeypatch.setattr(loss, "_chunk", lambda *args: rows.append(len(args[0])) or original(*args))
    result = chunked_cross_entropy(hidden, weight, labels, 0.1, 100)
    assert sum(rows) == (400 if all_rows else result.num_targets)
    ours = torch.autograd.grad(result.loss_sum, (hidden, weight))
    expected = torch.autograd.grad(plain(hidden, weight, labels, 0.1)[0], (hidden, weight))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_backward_is_refused_rather_than_wrong():
    hidden, weight, labels = problem(6)
    loss = chunked_cross_entropy(hidden, weight, labels).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already differentiated"):
        loss.backward()


def test_a_weight_shared_with_the_embedding_gets_both_gradients():
    _, weight, labels = problem(6)
    tokens = torch.arange(6)
    ours = torch.autograd.grad(chunked_cross_entropy(F.embedding(tokens, weight), weight, labels).loss_sum, weight)[0]
    expected = torch.autograd.grad(plain(F.embedding(tokens, weight), weight, labels, 0.0)[0], weight)[0]
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("chunk_size", [3, 40])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("shaping", [Shaping(), Shaping(0.3), Shaping(1.0, 2.0), Shaping(2.5, 1.5)])
def test_a_bias_scale_and_cap_of_logits_have_the_gradients_of_the_plain_formula(shaping, z_loss, chunk_size):
    hidden, weight, labels = problem(40)
    bias = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    result = chunked_cross_entropy(hidden, weight, labels, z_loss, chunk_size, bias=bias, shaping=shaping)
    logits = (hidden @ weight.t() + bias) * shaping.scale
    if shaping.softcap is not None:
        logits = shaping.softcap * torch.tanh(logits / shaping.softcap)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(result.cross_entropy_sum, expected)
    expected = expected + z_loss * logits[labels != -100].logsumexp(-1).square().sum()
    ours, theirs = (torch.autograd.grad(2 * loss, (hidden, weight, bias)) for loss in (result.loss_sum, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def most_allocated(action) -> int:
    """Bytes that torch's tensors take at the peak of what an action allocates."""
    with torch.profiler.profile(profile_memory=True) as profile:
        action()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize(
    ("dtype", "chunk_size", "expected"), [("float32", 8, 4), ("float32", 4, 4), ("bfloat16", 8, 2), ("bfloat16", 4, 6)]
)
def test_bytes_at_the_peak_of_each_element_of_the_matrix(dtype, chunk_size, expected, monkeypatch):
    """Its gradient alone; with several chunks in bf16 the fp32 sum too, when it is rounded."""
    monkeypatch.setattr(loss_module, "SLAB_ELEMENTS", 64_000)
    rows, width = 20_000, 128
    hidden, weight, labels = problem(8, width=width, vocab_size=rows, dtype=getattr(torch, dtype))
    loss = functools.partial(chunked_cross_entropy, hidden, weight, labels, chunk_size=chunk_size)
    assert most_allocated(lambda: loss().loss_sum.backward()) / (rows * width) == pytest.approx(expected, abs=0.45)


def test_a_bf16_gradient_is_the_same_to_the_last_bit_in_slabs_of_any_size(monkeypatch):
    def gradient(slab, chunk_size):
        monkeypatch.setattr(loss_module, "SLAB_ELEMENTS", slab)
        hidden, weight, labels = problem(60, width=32, vocab_size=500, dtype=torch.bfloat16)
        (chunked_cross_entropy(hidden, weight, labels, 0.1, chunk_size).loss_sum / 7).backward()
        return weight.grad

    for chunk_size in (60, 16):
        assert torch.equal(gradient(2**24, chunk_size), gradient(100, chunk_size))
