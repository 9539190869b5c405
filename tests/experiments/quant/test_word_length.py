"""Word lengths move as their criteria say, and a resumed run moves them alike."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.stats
import torch

from experiments.config.check import check
from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.quant.block import quantize
from experiments.quant.formats import Precision
from experiments.quant.linear import NoiseClock, QuantLinear
from experiments.quant.recipe import OperandConfig, OutputConfig, RecipeConfig, WordLengthConfig
from experiments.quant.word_length import (
    WordLength,
    divergence,
    gradient_diversity,
    least_word_length,
    with_word_length,
)
from experiments.run.identity import run_folder, run_id
from experiments.train import train
from tests.support.small_runs import Stop, rows, small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
FIXED = Precision.parse("E0M7-tensor-e8m0_ceil")


def normal(rows: int = 64, columns: int = 192) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_the_divergence_is_scipys() -> None:
    counts = torch.tensor([[5.0, 0.0, 3.0, 2.0], [4.0, 1.0, 3.0, 2.0]])
    assert divergence(*counts) == pytest.approx(scipy.stats.entropy(*counts.numpy()))
    assert divergence(*counts.flip(0)) == math.inf


@pytest.mark.parametrize("bins", [8, 30, 100])
def test_the_least_word_length_is_the_first_that_hides_in_the_sampling_noise(bins: int) -> None:
    weight = normal()
    least = least_word_length(weight, FIXED, bins)
    low, high = weight.min().item(), weight.max().item()
    allowed = (bins - 1) / weight.numel()
    found = {}
    for bits in range(2, 12):
        rounded = quantize(weight, with_word_length(FIXED, bits)).clamp(low, high)
        pair = (torch.histc(t, bins, low, high).numpy() for t in (weight, rounded))
        found[bits] = scipy.stats.entropy(*pair) <= allowed
    assert least == min(bits for bits, enough in found.items() if enough or bits == 11)


def test_more_values_show_more_and_a_grid_wants_no_more_than_its_own() -> None:
    few, many = (least_word_length(normal(rows), FIXED, 30) for rows in (4, 512))
    assert few < many
    assert least_word_length(quantize(normal(), with_word_length(FIXED, 4)), FIXED, 100) <= 4
    assert least_word_length(torch.ones(8, 8), FIXED, 100) == 2


def test_diversity_is_one_for_agreement_and_the_root_of_n_for_right_angles() -> None:
    eye = torch.eye(9)
    assert gradient_diversity(9.0, eye.sum(0).norm().item()) == pytest.approx(3.0)
    assert gradient_diversity(9.0, (9 * eye[0]).norm().item()) == 1.0
    assert gradient_diversity(9.0, 0.0) == math.inf
    assert gradient_diversity(math.nan, math.nan) == math.inf


def layer(lookback: int) -> WordLength:
    fixed = OperandConfig(precision=str(FIXED))
    recipe = RecipeConfig(output=OutputConfig(input=fixed, weight=fixed))
    linear = QuantLinear(192, 64, recipe, Precision.parse("mxfp4"), NoiseClock(0))
    with torch.no_grad():
        linear.weight.copy_(normal())
    return WordLength(linear, WordLengthConfig(lookback, 30))


def test_windows_push_down_then_up_and_get_shorter_where_gradients_disagree() -> None:
    agreeing, cancelling, random, opposed = (layer(40) for _ in range(4))
    least = least_word_length(normal(), FIXED, 30)
    generator = torch.Generator().manual_seed(1)
    for step in range(40):
        assert agreeing.bits == cancelling.bits == 8, "the window is not over"
        agreeing.observe(torch.ones(64, 192))
        cancelling.observe(torch.ones(64, 192) * (-1) ** step)
        random.observe(torch.randn(64, 192, generator=generator))
        opposed.observe(torch.ones(64, 192) * (1.0 if step < 21 else -1.0))
    assert agreeing.bits == least
    assert agreeing.lookback == 40
    assert cancelling.bits == 11
    assert cancelling.lookback == math.ceil(0.33 * 10 + 0.67 * 40)
    # d = sqrt(40) to a percent, so no more bits; at most every 40 / 6.3 = 7 steps, at least 10.
    assert random.bits == least
    assert random.lookback == cancelling.lookback
    # Of 40 steps two remain: d = 20, 3.2 times that of chance, log2 3.2 = 1.7.
    assert opposed.bits == least + 2
    operands = agreeing.layer.precisions
    assert {str(operands[label]) for label in ("P1", "P2")} == {f"E0M{least - 1}-tensor-e8m0_ceil"}


def test_an_integer_operand_stays_what_it_is() -> None:
    word = layer(40)
    word.layer.precisions["P1"] = Precision.parse("INT8-asymmetric-row")
    word.bits = 5
    operands = {label: str(precision) for label, precision in word.layer.precisions.items()}
    assert operands == {"P1": "INT8-asymmetric-row-fp32", "P2": "E0M4-tensor-e8m0_ceil"}


def test_a_run_moves_them_says_so_and_resumes_to_the_same_bits(
    small: Compose, tmp_path: Path
) -> None:
    overrides = ["recipe=fixed_adaptive", "recipe.word_length.lookback=7"]
    undisturbed = train(small(*overrides, f"runs={tmp_path / 'undisturbed'}"))
    config = small(*overrides)
    for step in (8, 16):
        with pytest.raises(KeyboardInterrupt):
            train(config, Stop(step))
    resumed = train(config)
    assert resumed.record.attempts == 3
    assert resumed.record.weights_sha256 == undisturbed.record.weights_sha256
    assert rows(resumed.folder) == rows(undisturbed.folder)
    curve = [json.loads(x) for x in (run_folder(config) / "metrics.jsonl").read_text().splitlines()]
    lengths = [
        [v for k, v in row.items() if k.startswith("word_length/")]
        for row in curve
        if "train/loss" in row
    ]
    assert all(len(row) == 8 for row in lengths), "four layers per block, two blocks"
    assert set(lengths[0]) == {8}
    assert lengths[-1] != lengths[0]


def test_a_run_that_diverges_says_so(small: Compose) -> None:
    wild = ["optim.lr=1e20", "optim.clip_norm=1e30", "tracking.log_every=12"]
    result = train(small("recipe=fixed_adaptive", "recipe.word_length.lookback=2", *wild))
    assert result.record.status == "diverged"


def test_it_is_part_of_the_address_and_what_cannot_move_is_refused(composed: Compose) -> None:
    others = {
        run_id(composed("recipe=fixed_adaptive", f"recipe.word_length.bins={n}")) for n in (9, 10)
    }
    assert len(others) == 2
    with pytest.raises(ConfigError) as error:
        check(composed("recipe=nearest", "recipe.word_length.lookback=5"))
    assert "recipe.word_length.lookback=5: needs output.weight in fixed point" in str(error.value)
    assert "not E2M1-block32-fp32" in str(error.value)
    for change in ("lookback=-1", "bins=1"):
        with pytest.raises(ConfigError, match=f"recipe.word_length.{change}: must be"):
            check(composed("recipe=fixed_adaptive", f"recipe.word_length.{change}"))
