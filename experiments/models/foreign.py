"""Somebody else's model as this project trains it: layers quantized in place, one clock for all.

Its own randomness (dropout) is drawn from a seed that is a function of the run's seed and the step,
as rounding noise is: a resumed run sees what it would have seen.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from experiments.engine.attention import attentions, unreached
from experiments.engine.blocks import block_numbers
from experiments.engine.convert import become, multiply_by_layers, quantizable
from experiments.engine.experts import QuantExperts, are_experts
from experiments.engine.experts import matrices as expert_matrices
from experiments.engine.kinds import by_default_not, kind, not_its_own, output_heads
from experiments.models import source
from experiments.models.config import ModelConfig
from experiments.models.next_token import NextToken
from experiments.models.shape import Cost, Matrix, ParameterCount, Shape
from experiments.models.source import ModelError
from experiments.quant.formats import Precision
from experiments.quant.linear import STREAMS
from experiments.quant.recipe import RecipeConfig
from fitting.entry.errors import Refusal, one_line

FOREIGN = "module."
"""What stands before the names of somebody else's layers here."""
_CHOSEN = "num_experts_per_tok"
"""The key by which transformers says how many experts a token goes to."""
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class ForeignModel(NextToken):
    """A model of Hugging Face or of the user's, its linear layers quantized.

    Args:
        config: Where it comes from.
        recipe: Which operands of which layers are quantized.
        precision: The format to which they are quantized.
        seed: As for `NextToken`.
    """

    def __init__(
        self, config: ModelConfig, recipe: RecipeConfig, precision: Precision, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.config = config
        self.module = source.make(config, seed)
        shape = shape_of_module(self.module, source.vocabulary(config))
        self.vocab_size = shape.vocab_size
        for number, layer in enumerate(quantizable(self.module).values()):
            become(layer, recipe, precision, self.clock, number)
        self.treat(shape, recipe, precision, FOREIGN)
        multiply_by_layers(self.module)

    def initialize(self, seed: int) -> None:
        """Draw the weights anew, or read them again, if the seed is another."""
        if seed != self.clock.seed:
            self.module.load_state_dict(source.make(self.config, seed).state_dict())

    def recompute_blocks(self) -> None:
        """Recompute each block's activations in the backward pass, as transformers does it."""
        enable: Any = getattr(self.module, "activation_checkpointing_enable", None)
        if enable is None:  # in older transformers
            enable = self.module.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    def save_pretrained(self, folder: Path, end_of_text: int | None = None) -> None:
        """Write a model of transformers as that library does, in high precision.

        Args:
            folder: Where.
            end_of_text: The token that ends a text, if that is known.  What its configuration says
                of tokens that its vocabulary does not have (GPT-2's 50256) is left out.
        """
        count: int = self.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
        for config in (self.module.config, getattr(self.module, "generation_config", None)):
            for name in _SPECIAL_TOKENS if config is not None else ():
                token = getattr(config, name, None)
                if isinstance(token, int) and token >= count:
                    setattr(config, name, None)
            if config is not None and end_of_text is not None:
                setattr(config, "eos_token_id", end_of_text)  # noqa: B010 (its type has no such)
        self.module.save_pretrained(folder)  # type: ignore[operator]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the module makes of its inputs; if that has logits, as transformers', these."""
        if not self.training:
            return outputs(self.module, *inputs, **named)
        device = next(self.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.clock.key(self.clock.counter, 0, STREAMS["dropout"]))
            return outputs(self.module, *inputs, **named)


def outputs(module: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What a model returns, without what transformers wraps around its logits."""
    if hasattr(module, "get_output_embeddings"):
        named = {"use_cache": False, **named}
    output = module(*inputs, **named)
    found = getattr(output, "logits", None)
    return found if isinstance(found, Tensor) else output


def logits_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a model returns for a tensor, which must be a tensor or have logits.

    Raises:
        TypeError: It is something else.
    """
    output = outputs(module, inputs)
    if not isinstance(output, Tensor):
        raise TypeError(f"it returns {type(output).__name__}, no logits and nothing that has any")
    return output


def foreign_shape(config: ModelConfig) -> Shape:
    """The matrices and sizes of somebody else's model; it is built, but without values."""
    return _built(_as_text(config))[2]


def foreign_cost(config: ModelConfig, work: Work) -> Cost:
    """What it costs somebody else's model to be trained on one token, or example."""
    key = _as_text(config), work.said
    if key not in _COSTS:
        mode, module, _ = _built(key[0])
        with mode:
            _COSTS[key] = _cost(config.name, module, work)
    return _COSTS[key]


_COSTS: dict[tuple[str, str], Cost] = {}


@dataclass(frozen=True)
class Work:
    """What a model is run on for its cost: values do not count, sizes do."""

    said: str
    """Its inputs in words, which tell this work from any other on the same model."""
    count: int
    """The tokens, or examples, in it."""
    forward: Callable[[nn.Module], Tensor]
    """The forward pass of a bare model, to logits, of two axes or more, or to losses."""


def _as_text(config: ModelConfig) -> str:
    return json.dumps(asdict(config), sort_keys=True)


@functools.cache
def _built(config_text: str) -> tuple[FakeTensorMode, nn.Module, Shape]:
    """A model without values, the mode in which it runs, and its shape."""
    config = ModelConfig(**json.loads(config_text))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # constants that are no buffers
        module = source.without_values(config)
        shape = shape_of_module(module, source.vocabulary(config))
    if not shape.matrices:
        raise ModelError(
            f"model.name={config.name}: has no linear layer and no convolution to quantize"
        )
    return mode, module, shape


def _cost(name: str, module: nn.Module, work: Work) -> Cost:
    """Count a training step.

    Products are counted with attention written out, since its fused kernels are products that
    torch does not count; memory with the kernels that will run.
    """
    rows: dict[str, float] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}

    def kept(*backends: SDPBackend) -> tuple[int, int]:
        """Bytes that the graph of a forward pass keeps, and if blocks are recomputed.

        Args:
            backends: The kernels of attention; if none is given, those that will run.
        """
        saved: dict[int, int] = {}
        inside: list[int] = []
        inputs: list[int] = []

        def size() -> int:
            return sum(size for storage, size in saved.items() if storage not in weights)

        def enter(_: nn.Module, given: tuple[Any, ...]) -> None:
            inputs.append(sum(t.untyped_storage().nbytes() for t in given if torch.is_tensor(t)))
            inside.append(-size())

        def leave(*_: Any) -> None:
            inside[-1] += size()

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with ExitStack() as watched:
            for block in blocks_of(module):
                watched.enter_context(block.register_forward_pre_hook(enter))
                watched.enter_context(block.register_forward_hook(leave))
            with hooks, sdpa_kernel(list(backends)) if backends else nullcontext():
                held = _loss(work.forward(module))
        total = size()
        del held  # whose graph kept what is counted
        return total, total - sum(inside) + sum(inputs) + max(inside, default=0)

    def watch(layer_name: str, out_features: int) -> Callable[..., None]:
        def count(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen = output.numel() / out_features / work.count
                rows[layer_name] = rows.get(layer_name, 0.0) + seen

        return count

    if any(map(are_experts, module.modules())):  # the one way that does not look at values
        module.set_experts_implementation("batched_mm")  # type: ignore[operator]
    counter = FlopCounterMode(display=False)
    try:
        with counter, sdpa_kernel(SDPBackend.MATH), ExitStack() as watched:
            for layer_name, layer in quantizable(module).items():
                if not are_experts(layer):
                    hook = watch(layer_name, _sizes(layer)[1])
                    watched.enter_context(layer.register_forward_hook(hook))
            output = work.forward(module)
            torch.autograd.backward(_loss(output))
        saved, recomputed = kept()
        written_out, _ = kept(SDPBackend.MATH)
    except Refusal:  # of the work itself
        raise
    except Exception as error:
        raise ModelError(
            f"model.name={name}: on {work.said} its forward and backward pass "
            f"raise {type(error).__name__}: {one_line(error)}"
        ) from error
    flops, more = counter.get_total_flops() / work.count, max(written_out - saved, 0)
    count, returned = work.count, tuple(output.shape)
    return Cost(flops, saved / count, more / count, recomputed / count, rows, returned)


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks that transformers recomputes, if it is told to; none with batch norms.

    Those would count every batch twice.
    """
    if not getattr(module, "supports_gradient_checkpointing", False):
        return []
    kind = "GradientCheckpointingLayer"  # of transformers, which need not be installed
    found = [m for m in module.modules() if kind in {c.__name__ for c in type(m).__mro__}]
    norms = (part for block in found for part in block.modules())
    return [] if any(isinstance(part, _BatchNorm) for part in norms) else found


def _loss(output: Tensor) -> Tensor:
    """A scalar that needs of an output what its loss does."""
    return (output.float().logsumexp(-1) if output.ndim > 1 else output).sum()


def shape_of_module(module: nn.Module, vocab_size: int) -> Shape:
    """The matrices and sizes of a bare module."""
    layers = quantizable(module)
    numbers, blocks = block_numbers(layers)
    matrices = {
        name: matrix
        for layer_name, layer in layers.items()
        for name, matrix in _matrices(module, layer_name, layer, numbers[layer_name])
    }
    heads = {id(head.weight): head.weight for head in output_heads(module)}
    tables = [m.weight for m in module.modules() if isinstance(m, nn.Embedding)]
    head = sum(int(w.numel()) for w in heads.values() if isinstance(w, Tensor))
    embedding = sum(table.numel() for table in tables)
    block = sum(m.in_features * m.out_features * m.copies for m in matrices.values())
    total = sum(parameter.numel() for parameter in module.parameters())  # tied ones once
    tied = sum(table.numel() for table in tables if id(table) in heads)
    norm = total - block - head - embedding + tied
    count = ParameterCount(block, head, embedding, norm, total)
    of_attention, _ = block_numbers([*layers, *attentions(module)])
    attention = {name: of_attention[name] for name in attentions(module)}
    others = dict(_others(module))
    hidden, recomputes = unreached(module), bool(blocks_of(module))
    return Shape(matrices, blocks, vocab_size, count, others, attention, hidden, recomputes)


def _others(module: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Heads, routers and embeddings, which only overrides quantize."""
    left_out, impossible = by_default_not(module), not_its_own(module)
    for name, layer in module.named_modules():
        if layer in left_out and layer not in impossible and kind(layer) is not None:
            what = left_out[layer]
            yield name, Matrix(*_sizes(layer), None, isinstance(layer, nn.Linear), left_out=what)


def _matrices(
    model: nn.Module, name: str, layer: nn.Module, block: int | None
) -> Iterator[tuple[str, Matrix]]:
    """The matrices of a layer by name: one, or of a layer of experts those of all experts."""
    if not isinstance(layer, QuantExperts) and not are_experts(layer):
        linear, conv = isinstance(layer, nn.Linear), isinstance(layer, nn.Conv1d | nn.Conv2d)
        yield name, Matrix(*_sizes(layer), block, linear, conv=conv, adapts=not conv)
        return
    count = layer.num_experts
    assert isinstance(count, int)
    chosen = getattr(model.config.get_text_config(), _CHOSEN)  # type: ignore[operator, union-attr]
    for parameter in expert_matrices(layer):
        _, out, into = getattr(layer, parameter).shape
        if layer.is_transposed:
            into, out = out, into
        yield (
            f"{name}.{parameter}",
            Matrix(
                *(into, out, block, False),
                layer=name,
                copies=count,
                adapts=False,
                share=chosen / count,
            ),
        )


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """in_features and out_features of a layer's product, whatever the layer calls them."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, layer.num_embeddings
    if isinstance(layer, nn.Conv1d | nn.Conv2d):  # one group's columns
        return weight[0].numel(), weight.shape[0]
    return weight.shape[0], weight.shape[1]  # of GPT-2's Conv1D
