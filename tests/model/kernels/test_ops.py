import pytest
import torch
import torch.nn.functional as F

from model.config import GATES
from model.kernels import ops

T, M, FF = 7, 12, 10


def leaf(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def tables(width, theta=100.0):
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2) / width)
    return ops.rope_tables(torch.arange(T), frequencies)


def test_gradients_are_the_numerical_ones():
    assert torch.autograd.gradcheck(lambda x, w: ops.rms_norm(x, w, 1e-5), (leaf(T, M), leaf(M, seed=1)))
    for activation in GATES:
        assert torch.autograd.gradcheck(lambda x: ops.activate(x, activation), (leaf(T, 2 * FF),))
    x, weight, bias, residual = leaf(T, M), leaf(FF, M, seed=1), leaf(FF, seed=2), leaf(T, FF, seed=3)
    for given in ((), (bias,), (None, residual), (bias, residual)):
        assert torch.autograd.gradcheck(ops.linear, (x, weight, *given))
    for width in (6, 4):
        doubles = [x.double() for x in tables(width)]
        assert torch.autograd.gradcheck(lambda x: ops.rotate_split(x, 4, 2, *doubles), (leaf(T, 8, 6),))
        assert torch.autograd.gradcheck(lambda x: ops.rotate(x, *doubles), (leaf(T, 3, 6),))


def plain_formulas():
    """name -> (fast, plain, inputs)."""
    cases = {
        "rms_norm": (
            lambda x, w: ops.rms_norm(x, w, 1e-5),
            lambda x, w: F.rms_norm(x, (M,), w, 1e-5),
            [(T, M), (M,)],
        ),
        "rms_norm_1p": (
            lambda x, w: ops.rms_norm_1p(x, w, 1e-5),
            lambda x, w: F.rms_norm(x, (M,), 1 + w, 1e-5),
            [(T, M), (M,)],
        ),
        "rms_norm of heads": (
            lambda x, w: ops.rms_norm(x, w, 1e-5),
            lambda x, w: F.rms_norm(x, (6,), w, 1e-5),
            [(T, 3, 6), (6,)],
        ),
        "layer_norm": (
            lambda x, w, b: ops.layer_norm(x, w, b, 1e-5),
            lambda x, w, b: (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * w + b
            ),
            [(T, M), (M,), (M,)],
        ),
        "linear": (ops.linear, lambda x, w: x @ w.t(), [(T, M), (FF, M)]),
        "linear with bias": (ops.linear, lambda x, w, b: x @ w.t() + b, [(T, M), (FF, M), (FF,)]),
        "linear with all": (ops.linear, lambda x, w, b, r: r + x @ w.t() + b, [(T, M), (FF, M), (FF,), (T, FF)]),
        "swiglu": (lambda x: ops.activate(x, "swiglu"), lambda x: F.silu(x[:, :FF]) * x[:, FF:], [(T, 2 * FF)]),
        "geglu": (lambda x: ops.activate(x, "geglu"), lambda x: tanh_gelu(x[:, :FF]) * x[:, FF:], [(T, 2 * FF)]),
        "geglu_exact": (
            lambda x: ops.activate(x, "geglu_exact"),
            lambda x: erf_gelu(x[:, :FF]) * x[:, FF:],
            [(T, 2 * FF)],
        ),
        "silu": (lambda x: ops.activate(x, "silu"), lambda x: x * x.sigmoid(), [(T, FF)]),
        "gelu": (lambda x: ops.activate(x, "gelu"), erf_gelu, [(T, FF)]),
        "gelu_tanh": (lambda x: ops.activate(x, "gelu_tanh"), tanh_gelu, [(T, FF)]),
        "relu": (lambda x: ops.activate(x, "relu"), lambda x: x.clamp(min=0), [(T, FF)]),
    }
    for name, width in (("", 6), (" of a part", 4)):
        cos, sin = tables(width)
        cases["rotate_split" + name] = (
            lambda x, cos=cos, sin=sin: torch.cat(ops.rotate_split(x, 4, 2, cos, sin), 1),
            lambda x, cos=cos, sin=sin: torch.cat((turned(x[:, :6], cos, sin), x[:, 6:]), 1),
            [(T, 8, 6)],
        )
        cases["rotate" + name] = (
            lambda x, cos=cos, sin=sin: ops.rotate(x, cos, sin),
            lambda x, cos=cos, sin=sin: turned(x, cos, sin),
            [(T, 3, 6)],
        )
    return cases


def erf_gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def tanh_gelu(x):
    return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def turned(x, cos, sin):
    """As products with cos + i sin of complex numbers, whose parts lie half the rotary dims apart."""
    half = cos.shape[-1]
    number = torch.complex(x[..., :half].float(), x[..., half : 2 * half].float()) * torch.complex(cos, sin)
    return torch.cat((number.real.to(x.dtype), number.imag.to(x.dtype), x[..., 2 * half :]), -1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", list(plain_formulas()))
def test_fast_and_plain_agree_in_value_and_gradients(name, dtype, tolerance):
    fast, plain, shapes = plain_formulas()[name]
    results = []
    for function in (fast, plain):
        inputs = [leaf(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
        out = function(*inputs)
        assert out.dtype == dtype
        out.backward(leaf(*out.shape, dtype=dtype, seed=9).detach())
        results.append([out, *(x.grad for x in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", list(plain_formulas()))
def test_the_graph_reads_weights_from_the_parameter_so_they_may_be_gathered_anew(name):
    """ZeRO-3 frees a parameter's storage after forward and gives it another before backward."""
    fast, _, shapes = plain_formulas()[name]
    inputs = [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]
    expected = torch.autograd.grad(fast(*inputs).square().sum(), inputs)
    out = fast(*inputs).square().sum()
    for parameter in inputs[1:2]:
        gathered = parameter.data.clone()
        parameter.data.fill_(torch.nan)
        parameter.data = gathered
    for one, other in zip(torch.autograd.grad(out, inputs), expected, strict=True):
        assert torch.equal(one, other)


def test_rotation_turns_by_position_and_keeps_lengths():
    cos, sin = ops.rope_tables(torch.tensor([0, 5, 0]), torch.tensor([1.0, 0.01]))
    x = leaf(3, 1, 4).detach()
    q, _, _ = ops.rotate_split(torch.cat((x, x, x), 1).float(), 1, 1, cos, sin)
    assert torch.equal(q[0], x[0].float())
    torch.testing.assert_close(q.norm(dim=-1), x.float().norm(dim=-1))
    angle = torch.tensor(5.0)
    first = x[1, 0, 0] * angle.cos() - x[1, 0, 2] * angle.sin()
    torch.testing.assert_close(q[1, 0, 0], first.float())


@pytest.mark.parametrize("onednn", [True, False])
def test_either_library_of_products_computes_the_same(monkeypatch, onednn):
    monkeypatch.setattr(ops, "onednn_is_faster", lambda: onednn)
    a, b, bias, plus = (
        leaf(*s, dtype=torch.float32, seed=i).detach() for i, s in enumerate([(T, M), (FF, M), (FF,), (T, FF)])
    )
    product = (a.double() @ b.double().t()).float()
    for matrix in (b, b.t().contiguous().t()):
        torch.testing.assert_close(ops.matmul_transposed(a, matrix), product, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ops.matmul_transposed(a, matrix, None, bias), product + bias, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ops.matmul_transposed(a, matrix, plus), product + plus, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            ops.matmul_transposed(a, matrix, plus, bias), product + plus + bias, rtol=1e-6, atol=1e-6
        )
