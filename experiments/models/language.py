"""What is asked of somebody else's model where it is to predict the next token of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.models.config import ModelConfig
from experiments.models.foreign import ForeignModel, Work, foreign_cost, foreign_shape, logits_of
from experiments.models.shape import Cost
from experiments.models.source import ModelError
from fitting.entry.errors import one_line


def language_cost(config: ModelConfig, seq_len: int) -> Cost:
    """What a sequence costs, by token.

    Raises:
        ModelError: The model fails on one, or returns no logits.
    """
    vocab_size = foreign_shape(config).vocab_size

    def forward(module: nn.Module) -> Tensor:
        _refuse_beyond_positions(config.name, module, seq_len)
        tokens = torch.zeros(1, seq_len, dtype=torch.int64)
        logits = logits_of(module, tokens)
        if logits.shape != (expected := (1, seq_len, vocab_size)):
            raise ModelError(
                f"model.name={config.name}: returns {list(logits.shape)} for token ids "
                f"{list(tokens.shape)}; must be logits, [batch, tokens, vocabulary]: "
                f"{list(expected)}"
            )
        return logits

    return foreign_cost(config, Work(f"token ids [1, {seq_len}]", seq_len, forward))


def _refuse_beyond_positions(name: str, module: nn.Module, seq_len: int) -> None:
    limit = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    tables = {m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)}
    if limit is not None and limit < seq_len and tables & {limit, limit + 2}:  # + 2 in OPT's
        raise ModelError(
            f"data.seq_len={seq_len}: {name} has a table of {limit} positions; set "
            f"model.config.max_position_embeddings={seq_len}, or a shorter data.seq_len"
        )


@torch.no_grad()
def refuse_unless_causal(model: ForeignModel) -> None:
    """Make sure that no token can be predicted by looking at it.

    Raises:
        ModelError: One can, or the model fails on the last token of its vocabulary.
    """
    training, quantizing = model.training, model.clock.quantizing
    model.eval()
    model.clock.quantizing = False
    last = model.vocab_size - 1
    tokens = torch.tensor([[0, last, 0, last], [0, last, 0, 0]])
    try:
        first, second = model(tokens)[:, :-1]
    except Exception as error:
        raise ModelError(
            f"model.name={model.config.name}: on tokens from 0 to {last} it raises "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        model.clock.quantizing = quantizing
        model.train(training)
    if not torch.allclose(first, second, rtol=0.0, atol=1e-5 * float(first.abs().max())):
        raise ModelError(
            f"model.name={model.config.name}: sees the tokens that it is to predict: another "
            "last token changes what it says of those before; give a causal model (an encoder "
            "of Hugging Face is one with model.config.is_decoder=true)"
        )
