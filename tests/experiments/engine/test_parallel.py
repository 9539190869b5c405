"""Quantized models in several processes, from the meta device, and in other people's loops."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import lowbit
from experiments.quant.linear import QuantizedGemms
from experiments.quant.recipe import RecipeConfig
from tests.support.hub_models import llama

pytest.importorskip("transformers", reason="needs the extra hf")
IDS = torch.randint(0, 96, (4, 33), generator=torch.Generator().manual_seed(1))
LEARNING_RATE = 0.1


def asked() -> RecipeConfig:
    """Linear layers and attention, and scales that no two sequences share."""
    words = ["recipe=nearest", *(f"recipe.attention.{label}={{}}" for label in ("key", "value"))]
    recipe = lowbit.configure(*words, "precision=mxfp4").recipe
    recipe.grad_weight.grad_output = recipe.grad_weight.input = None
    return recipe


def quantized() -> nn.Module:
    torch.manual_seed(0)
    return lowbit.quantize_(llama(), asked(), "mxfp4")


def loss_of(model: Any, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def stepped(model: nn.Module) -> dict[str, Tensor]:
    """The weights after two steps on everything, in one process."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def _process(rank: int, port: int, folder: str, way: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        inner = quantized()
        model: Any = DistributedDataParallel(inner) if way == "ddp" else _sharded(inner)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model, IDS[2 * rank : 2 * rank + 2]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        whole = {
            n: getattr(t, "full_tensor", lambda t=t: t)() for n, t in inner.state_dict().items()
        }
        if rank == 0:
            torch.save({n: t.detach() for n, t in whole.items()}, Path(folder) / "weights.pt")
    finally:
        dist.destroy_process_group()


def _sharded(model: Any) -> nn.Module:
    """As FSDP2 is used: every block, then the rest."""
    mesh = init_device_mesh("cpu", (2,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does(tmp_path: Path, way: str) -> None:
    """Each has half of the sequences; nothing that is rounded reaches across two of them.

    A gradient that is added in another order may move a weight across a rounding threshold in the
    second step, so a few values may differ by what that makes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (port, str(tmp_path), way), nprocs=2)  # type: ignore[no-untyped-call]
    expected, start = stepped(quantized()), quantized().state_dict()
    found = torch.load(tmp_path / "weights.pt")
    assert set(found) == set(expected)
    for name, weight in expected.items():
        moved = (weight - start[name]).norm()
        assert (found[name] - weight).norm() <= 0.02 * moved, name
        assert moved > 0, name


def test_a_model_is_quantized_on_the_meta_device_and_filled_later() -> None:
    """As large ones are made: no values, then storage, then the weights of a checkpoint."""
    with torch.device("meta"):
        model = llama()
    lowbit.quantize_(model, asked(), "mxfp4")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len([m for m in model.modules() if isinstance(m, QuantizedGemms)]) == 21
    logits = model(input_ids=IDS.to("meta")).logits
    assert logits.is_meta
    assert logits.shape == (4, 33, 96)
    model.to_empty(device="cpu")
    reference = quantized()
    model.load_state_dict(reference.state_dict())
    buffers = dict(reference.named_buffers())
    for name, buffer in model.named_buffers():  # rotary tables, which no checkpoint holds
        buffer.copy_(buffers[name])
    for each in (model, reference):
        loss_of(each).backward()  # type: ignore[no-untyped-call]
    ours, theirs = gradients(model), gradients(reference)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], g) for name, g in theirs.items())


def test_functional_call_takes_other_weights() -> None:
    model, other = quantized(), quantized()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    weights = {n: p.detach().clone().requires_grad_() for n, p in other.named_parameters()}
    loss = functional_call(model, weights, (), {"input_ids": IDS, "labels": IDS}).loss
    loss.backward()
    loss_of(other).backward()  # type: ignore[no-untyped-call]
    for name, gradient in gradients(other).items():
        assert torch.equal(weights[name].grad, gradient), name  # type: ignore[arg-type]
    assert not gradients(model)


def test_gradients_accumulate_over_batches_and_forward_passes() -> None:
    """One backward pass for two forward ones, or one each: the same sums."""
    found = []
    for together in (True, False):
        model = quantized()
        if together:
            (loss_of(model, IDS[:2]) + loss_of(model, IDS[2:])).backward()  # type: ignore[no-untyped-call]
        else:
            for part in (IDS[:2], IDS[2:]):
                loss_of(model, part).backward()  # type: ignore[no-untyped-call]
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, rtol=1e-5, atol=1e-7), name


def test_stochastic_passes_of_one_step_have_noise_of_their_own() -> None:
    """Two forward passes, then both backward: each takes the noise of its own forward pass."""
    words = ["recipe=stochastic", "recipe.attention.key={}"]
    recipe = lowbit.configure(*words, "recipe.attention.key.rounding=stochastic").recipe
    sums = []
    for together in (True, False):
        torch.manual_seed(0)
        model = lowbit.quantize_(llama(), recipe, "mxfp4")
        torch.manual_seed(5)
        losses = []
        for part in (IDS[:2], IDS[2:]):
            losses.append(loss_of(model, part))
            if not together:
                losses[-1].backward()  # type: ignore[no-untyped-call]
        if together:
            for loss in losses:
                loss.backward()  # type: ignore[no-untyped-call]
        sums.append(gradients(model))
    assert all(torch.equal(sums[1][name], gradient) for name, gradient in sums[0].items())


class Residual(nn.Module):
    """As in a ResNet: two convolutions, batch norms, a stride and a 1 x 1 way around them."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.around = nn.Sequential(
            nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(y)) + self.around(x)).relu()  # type: ignore[no-any-return]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(stem, Residual(16, 16, 1), Residual(16, 32, 2), end)


def cross_entropy(model: nn.Module) -> Tensor:
    images = torch.randn(8, 3, 15, 15, generator=torch.Generator().manual_seed(2))
    return nn.functional.cross_entropy(model(images), torch.arange(8))


@pytest.mark.parametrize(
    ("recipe", "precision", "close"),
    [("none", "mxfp4", 0.0), ("nearest", "E5M10", 0.1), ("nearest", "int8_tensor", 0.5)],
)
def test_a_residual_network_with_batch_norm_is_quantized(
    recipe: str, precision: str, close: float
) -> None:
    """Bit for bit itself without a recipe; near in wide formats; batch statistics go on.

    A unit whose sign rounding flips takes its whole gradient along: errors go by the square root of
    the share of such units: some percent in the widest format, of 11 significant bits.
    """
    model, plain = resnet(), resnet()
    lowbit.quantize_(model, recipe, precision)
    names = {n for n, m in model.named_modules() if isinstance(m, QuantizedGemms) and not m.kept}
    convolutions = {
        "0.0",
        "3.2",
        *(f"{n}.{c}" for n in (1, 2) for c in ("conv1", "conv2", "around.0")),
    }
    assert names == (convolutions if recipe != "none" else set())
    for each in (model, plain):
        cross_entropy(each).backward()  # type: ignore[no-untyped-call]
    ours = gradients(model)
    for name, gradient in gradients(plain).items():
        assert (ours[name] - gradient).norm() <= close * gradient.norm(), name
    for name, buffer in plain.named_buffers():
        other = dict(model.named_buffers())[name].float()
        assert (other - buffer.float()).norm() <= close * buffer.float().norm(), name
    model.eval()
    again = copy.deepcopy(model)
    assert torch.equal(cross_entropy(again), cross_entropy(model))


def test_a_residual_network_learns_in_four_bits() -> None:
    model = resnet()
    lowbit.quantize_(model, "quartet_v4", "mxfp4")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    step: Callable[[], Tensor] = lambda: cross_entropy(model)  # noqa: E731
    for _ in range(30):
        optimizer.zero_grad()
        loss = step()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
