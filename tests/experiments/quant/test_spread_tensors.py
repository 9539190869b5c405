"""Tensors whose values are not all in this process: refused by every function, in one line of ours.

Other wrappers give the values of what they wrap (`test_stand_ins.py` has the rest).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import experiments.measure
import experiments.quant
from experiments.quant.recipe import OperandConfig
from tests.support.layers import case, six
from tests.support.quantizers import ALL, ROUNDED, normal

NOT_DOORS = {
    *("straight_through", "differentiated", "passed_back", "wide_product"),
    *("to_blocks", "from_blocks", "turned", "lying_as", "narrowed"),
    *("filled", "compute_dtype", "forward_product", "backward_products", "compiled_products"),
    "layer_of",
}
"""Functions that the doors call, behind them."""


def _functions() -> Iterator[tuple[str, Callable[..., Any], list[str]]]:
    """Every public function of quant and measure and its parameters that are tensors."""
    for package in (experiments.quant, experiments.measure):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, function in vars(importlib.import_module(module.name)).items():
                if not inspect.isfunction(function) or function.__module__ != module.name:
                    continue
                parameters = inspect.signature(function).parameters.values()
                tensors = [p.name for p in parameters if str(p.annotation).startswith("Tensor")]
                if tensors and not name.startswith("_") and name not in NOT_DOORS:
                    yield name, function, tensors


FUNCTIONS = {name: (function, tensors) for name, function, tensors in _functions()}


@pytest.fixture(scope="module")
def mesh() -> Iterator[Any]:
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_the_walk_has_found_the_doors() -> None:
    assert len(FUNCTIONS) >= 34
    assert {"quantize", "ms_eden", "rotate", "lmul", "qsnr", "block_scale"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_spread_over_processes_is_refused_by_name(name: str, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    function, tensors = FUNCTIONS[name]
    for placement in (Shard(0), Shard(1), Replicate()):
        spread = distribute_tensor(normal(8, 64), mesh, [placement])
        for parameter in tensors:
            others = {p: normal(8, 64) for p in tensors if p != parameter}
            given = {
                p.name: None
                for p in inspect.signature(function).parameters.values()
                if p.default is p.empty and p.name not in tensors
            }
            with pytest.raises(
                ValueError, match=rf"^{name} got a DTensor, which is spread .*to_lo"
            ):
                function(**given, **others, **{parameter: spread})


def test_a_layer_refuses_it_as_input_and_as_weight(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    layer, x, _ = case(six(OperandConfig()))
    spread = distribute_tensor(x, mesh, [Replicate()])
    with pytest.raises(ValueError, match="^QuantLinear got a DTensor"):
        layer(spread)
    assert torch.equal(layer(spread.to_local()), layer(x)), "what is to be done instead"
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Replicate()]))
    with pytest.raises(ValueError, match="^QuantLinear got a DTensor"):
        layer(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("name", ALL)
def test_a_masked_tensor_is_refused_with_what_to_do(name: str) -> None:
    masked = torch.masked.masked_tensor(normal(8, 64), normal(8, 64) > 0)
    with pytest.raises(ValueError, match=r"got a MaskedTensor, which has .* fill them"):
        ALL[name](masked)


NOT_DENSE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "x.dequantize()"),
    "sparse": (lambda x: x.to_sparse(), "x.to_dense()"),
    "sparse rows": (lambda x: x.to_sparse_csr(), "x.to_dense()"),
    "of another library": (lambda x: x.to_mkldnn(), "x.to_dense()"),
    "nested": (lambda x: torch.nested.nested_tensor([x[:3], x]), "x.unbind()"),
    "jagged": (
        lambda x: torch.nested.nested_tensor([x[:3], x], layout=torch.jagged),
        "x.unbind()",
    ),
}
"""Tensors whose values do not lie in rows, and what has them."""


@pytest.mark.filterwarnings("ignore:.*(Sparse|sparse|nested|quantized).*")
@pytest.mark.parametrize("kind", NOT_DENSE)
def test_what_is_not_dense_is_refused_with_what_would_be(kind: str) -> None:
    make, remedy = NOT_DENSE[kind]
    for name, (function, tensors) in FUNCTIONS.items():
        for parameter in tensors:
            given = {
                p.name: None
                for p in inspect.signature(function).parameters.values()
                if p.default is p.empty
            }
            with pytest.raises(ValueError, match=rf"^{name} got a .*{re.escape(remedy)}$"):
                function(**{**given, parameter: make(normal(8, 64))})


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.complex64, torch.float8_e5m2])
@pytest.mark.parametrize("name", ROUNDED)
def test_no_other_dtype_is_rounded(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"takes float32, bfloat16 or float16, got {dtype}$"):
        ROUNDED[name](torch.ones(8, 64).to(dtype))


def test_memory_that_was_freed_is_not_read() -> None:
    """In a process of its own, which would die of it."""
    code = """
import torch
from tests.support.quantizers import ALL
x = torch.ones(8, 64)
x.untyped_storage().resize_(0)
for call in ALL.values():
    try:
        call(x)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(ALL), done
    said = " got a tensor whose memory was freed (its storage is empty)"
    assert all(line.endswith(said) for line in lines), done


class Boxed(Tensor):
    """A wrapper as libraries of quantized weights write them: every operator on what is inside."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Boxed:
        made: Boxed = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(lambda t: t.inner if isinstance(t, Boxed) else t, (args, kwargs or {}))
        result = func(*given[0], **given[1])
        return tree_map(lambda t: Boxed(t) if isinstance(t, Tensor) else t, result)


class Named(Tensor):
    """A subclass that changes nothing."""


def _overlapping() -> Tensor:
    return torch.as_strided(normal(200), (8, 64), (16, 1))


WRAPPED: dict[str, Callable[[], Tensor]] = {
    "a subclass": lambda: normal(8, 64).as_subclass(Named),
    "a wrapper": lambda: Boxed(normal(8, 64)),
    "one row eight times": lambda: normal(1, 64).expand(8, 64),
    "one column 64 times": lambda: normal(8, 1).expand(8, 64),
    "rows that overlap": _overlapping,
    "every other value": lambda: normal(8, 128)[:, ::2],
    "a transposed one": lambda: normal(64, 8).t(),
    "no row": lambda: torch.empty(0, 64),
    "shared memory": lambda: normal(8, 64).share_memory_(),
    "a buffer": lambda: nn.Buffer(normal(8, 64)),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("name", ALL)
def test_what_wraps_or_shares_values_has_their_result(name: str, kind: str) -> None:
    if kind == "no row" and name != "rotation":
        pytest.skip("of a tensor without values there is no largest")
    made = WRAPPED[kind]()
    whole = (made.inner if isinstance(made, Boxed) else made).detach().clone()
    expected = ALL[name](whole.as_subclass(Tensor).contiguous())
    result = ALL[name](made)
    result = result.inner if isinstance(result, Boxed) else result
    assert torch.equal(result.as_subclass(Tensor), expected)
