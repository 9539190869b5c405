"""Quantizing what is no ordinary tensor: gradients, transforms, compilers, fakes, lazy views.

The same values and the same stated gradient as of ordinary tensors, or one line that refuses.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.gradient import rounding_gradient
from experiments.quant.hadamard import rotate, unrotate
from experiments.quant.kernels import cpu
from experiments.quant.modes import Estimator
from tests.support.quantizers import ALL, MXFP4, ROTATED, SIGNS, normal

every = pytest.mark.parametrize("name", ALL)


@pytest.fixture(params=["as installed", "plain"])
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(cpu, "_library", None)


def stated(name: str, gradient: Tensor) -> Tensor:
    """Straight through, after the transposed rotation."""
    if name not in ROTATED:
        return gradient
    size = 8 if "8" in name else 32
    return unrotate(gradient, size, None if size == 8 else SIGNS)


@pytest.mark.usefixtures("_backend")
@every
def test_every_backend_has_the_stated_gradient(name: str) -> None:
    x, along = normal(8, 64), normal(8, 64).flip(0)
    leaf = x.clone().requires_grad_()
    q = ALL[name](leaf)
    assert torch.equal(q.detach(), ALL[name](x))
    (gradient,) = torch.autograd.grad((q * along).sum(), leaf)
    assert torch.allclose(gradient, stated(name, along), atol=1e-6)
    narrow = x.bfloat16().requires_grad_()
    (gradient,) = torch.autograd.grad(ALL[name](narrow).float().sum(), narrow)
    assert gradient.dtype is torch.bfloat16


@every
def test_second_derivatives_are_those_of_the_stated_gradient(name: str) -> None:
    """The first derivative of sum(q^2) / 2 is q passed back; that of half the square of this is x,
    since a rotation is linear and orthonormal.
    """
    x = normal(4, 64).requires_grad_()
    q = ALL[name](x)
    (first,) = torch.autograd.grad((q.square() / 2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first.square() / 2).sum(), x)
    assert torch.allclose(first, stated(name, q), atol=1e-5)
    assert torch.allclose(second, first, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own use
@every
def test_forward_mode_and_torch_func_agree(name: str) -> None:
    call, x, along = ALL[name], normal(2, 64), normal(2, 64).flip(0)
    (tangent,) = (torch.func.jvp(call, (x,), (along,))[1],)
    back = torch.func.vjp(call, x)[1](tangent)[0]
    assert torch.allclose(back, along, atol=1e-5), "what is orthonormal there and back"
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(call(forward_ad.make_dual(x, along)))
        assert torch.allclose(dual.tangent, tangent)
    gradient = torch.func.grad(lambda x: (call(x) * along).sum())(x)
    assert torch.allclose(gradient, stated(name, along), atol=1e-6)
    assert torch.equal(torch.func.functionalize(call)(x), call(x))


@every
def test_vmap_is_one_after_the_other(name: str) -> None:
    x = normal(3, 4, 64)
    expected = torch.stack([ALL[name](part) for part in x])
    assert torch.equal(torch.vmap(ALL[name])(x), expected)
    noise = torch.rand(3, 4, 64, generator=torch.Generator().manual_seed(1))
    mxfp4 = Precision.parse("mxfp4")
    mapped = torch.vmap(lambda draws: quantize(x[0], mxfp4, draws))(noise)
    assert torch.equal(mapped, torch.stack([quantize(x[0], mxfp4, draws) for draws in noise]))


@every
def test_lazy_views_are_what_they_stand_for(name: str) -> None:
    """A negated view and the imaginary part of a conjugate, both with the wrong sign in memory."""
    x, call = normal(8, 64), ALL[name]
    conjugate = torch.complex(x, x).conj().imag
    assert torch.equal(call(torch._neg_view(x)), call(-x))
    assert torch.equal(call(conjugate), call(-x))
    assert torch.equal(call(torch._neg_view(x.t().contiguous()).t()), call(-x))
    zeros = torch._efficientzerotensor((8, 64))
    assert torch.equal(call(zeros).abs(), torch.zeros(8, 64))


def test_lazy_noise_and_signs_are_read_as_they_stand() -> None:
    x, draws, mxfp4 = normal(8, 64), torch.rand(8, 64) / 2, Precision.parse("mxfp4")
    lazy = torch._neg_view(-draws)
    assert torch.equal(quantize(x, mxfp4, lazy), quantize(x, mxfp4, draws))
    turned = torch._neg_view(-SIGNS)
    expected = quantize(x, mxfp4, hadamard=32, signs=SIGNS)
    assert torch.equal(quantize(x, mxfp4, hadamard=32, signs=turned), expected)
    assert torch.equal(rotate(x, 32, turned), rotate(x, 32, SIGNS))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_and_meta_tensors_have_shape_dtype_and_layout(name: str, dtype: torch.dtype) -> None:
    for x in (normal(8, 64).to(dtype), normal(64, 8).t().to(dtype)):
        expected = ALL[name](x)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = ALL[name](mode.from_tensor(x))
        for stand_in in (fake, ALL[name](mode.from_tensor(x)), ALL[name](x.to("meta"))):
            assert stand_in.shape == expected.shape
            assert stand_in.dtype is expected.dtype
        assert fake.stride() == expected.stride()


def test_within_a_mode_nothing_is_written_to_address_zero() -> None:
    """In a process of its own, which would die of it."""
    code = """
import torch
from torch._subclasses import FakeTensorMode
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.hadamard import random_signs
with FakeTensorMode() as mode:
    print(quantize(torch.ones(8, 64), Precision.parse("mxfp4")).shape, random_signs(1, 4).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "torch.Size([8, 64]) torch.Size([4])\n", done


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does
@pytest.mark.parametrize("name", [name for name in ALL if name != "ms_eden"])
@pytest.mark.parametrize("follow", [False, True])
def test_a_compiled_graph_is_whole_and_has_the_same_bits(name: str, follow: bool) -> None:
    torch._dynamo.reset()
    x = normal(8, 64).requires_grad_(follow)
    compiled = torch.compile(ALL[name], backend="aot_eager", fullgraph=True)
    q = compiled(x)
    assert torch.equal(q.detach(), ALL[name](x.detach()))
    if follow:
        q.sum().backward()
        assert x.grad is not None
        assert torch.allclose(x.grad, stated(name, torch.ones(8, 64)), atol=1e-6)


@pytest.mark.skipif(cpu.NAME is None, reason="the library was not built")
def test_the_kernels_themselves_read_no_stand_in() -> None:
    x, mxfp4 = normal(8, 64), Precision.parse("mxfp4")
    for other in (torch._neg_view(x), FakeTensorMode().from_tensor(x), x.to("meta")):
        assert not cpu.supports(other, mxfp4)
        assert not cpu.rotates(other, 32)
        assert not cpu.rounds(other)
        for call in (
            lambda other=other: cpu.quantize(other, mxfp4),
            lambda other=other: cpu.round_elements(other, mxfp4.element),
            lambda other=other: cpu.rotate(other, 32),
        ):
            with pytest.raises(TypeError, match="takes dense CPU tensors, got a"):
                call()


def test_noise_and_signs_have_no_gradient_and_say_so() -> None:
    x, mxfp4 = normal(8, 64), Precision.parse("mxfp4")
    with pytest.raises(ValueError, match="noise has no gradient here: detach it"):
        quantize(x, mxfp4, torch.rand(8, 64).requires_grad_())
    with pytest.raises(ValueError, match="signs has no gradient here: detach it"):
        quantize(x, mxfp4, hadamard=32, signs=SIGNS.clone().requires_grad_())


@pytest.mark.parametrize("estimator", ["masked", "dge_5"])
def test_the_factor_of_a_gradient_is_a_constant(estimator: str) -> None:
    factor = rounding_gradient(normal(8, 64).requires_grad_(), MXFP4, Estimator.parse(estimator))
    assert not factor.requires_grad
