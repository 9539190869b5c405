"""The recipe's schema: what is refused and why, and what a key at its default does not change."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.models.build import build
from experiments.quant.formats import FloatFormat, Precision
from experiments.quant.recipe import OperandConfig, OutputConfig, RecipeConfig
from experiments.run.identity import run_id, science
from experiments.run.record import _format_of
from experiments.train import train
from fitting.results.table import SUPERSEDED, table_of

Compose = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+recipe.output.grad_output={}"], "recipe.output.grad_output: no such key"),
        (["+recipe.keep_middle=1"], "recipe.keep_middle: no such key"),
        (
            ["recipe.output.input.rounding=stochastic_24"],
            "recipe.output.input.rounding=stochastic_24: must be one of nearest_even, "
            "nearest_away, toward_zero, up, down, stochastic, stochastic_<1 to 23 bits>, "
            "ms_eden, none",
        ),
        (
            ["recipe.output.input.rounding=none"],
            "recipe.output.input.rounding=none: is for forward=true; null leaves an operand in",
        ),
        (
            ["recipe.output.weight.precision=mxfp5"],
            "recipe.output.weight.precision=mxfp5: precision 'mxfp5': .*; did you mean mxfp4",
        ),
        (
            ["recipe.output.input.rounding=ms_eden"],
            "recipe.output.input.rounding=ms_eden: needs precision nvfp4, not E2M1-block32-fp32",
        ),
        (
            ["recipe=quest", "recipe.output.weight=null"],
            "recipe.grad_input.weight.forward=true: needs output.weight to be quantized",
        ),
        (
            ["recipe=quest", "recipe.output.input.gradient=dge_0.5"],
            "recipe.output.input.gradient=dge_0.5: must be one of straight_through, masked, dge_",
        ),
        (
            ["recipe=quest", "recipe.output.input.precision=nvfp4_4_6"],
            "recipe.output.input.gradient=masked: needs one scale rule along the summed axis",
        ),
        (
            ["recipe=quest", "+recipe.grad_input.weight.gradient=masked"],
            "recipe.grad_input.weight.gradient=masked: only output.input, output.weight and ",
        ),
        (
            ["+recipe.output.input.forward=true"],
            "recipe.output.input.forward=true: only grad_input.weight and grad_weight.input",
        ),
        (
            ["recipe=quest", "+recipe.grad_input.weight.precision=mxfp4"],
            "recipe.grad_input.weight.precision=mxfp4: must be empty with rounding=none",
        ),
        (
            ["recipe=quartet2", "recipe.grad_input.hadamard=128"],
            "recipe.grad_input.hadamard=128: must divide model.hidden=64, over which the grad_in",
        ),
        (
            ["recipe=halo2", "recipe.grad_input.row_hadamard=48"],
            "recipe.grad_input.row_hadamard=48: must be 0 .none. or a power of two",
        ),
        (
            ["recipe=halo2", "recipe.grad_input.row_hadamard=4096"],
            "recipe.grad_input.row_hadamard=4096: must divide batch_size x data.seq_len=",
        ),
        (
            ["recipe.output.input.precision=E2M1-block48"],
            "recipe.output.input.precision=E2M1-block48: its block size 48 must divide model.hidd",
        ),
        (["recipe.keep_first=-1"], "recipe.keep_first=-1: must be 0 or more blocks"),
        (["recipe.keep_last=2"], "recipe.keep=: with keep_first=0 and keep_last=2 of model.layer"),
        (["recipe.keep=[mlp.up]"], "recipe.keep=mlp.up: no such layer; there are blocks.0 to bl"),
        (
            ["recipe.high_precision_share=1"],
            "recipe.high_precision_share=1.0: must be from 0 to below 1",
        ),
    ],
)
def test_a_bad_recipe_is_refused_with_the_reason(
    composed: Compose, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        composed(*overrides)
    assert all(re.match(r"[\w.]+(=\S*)?: ", line) for line in str(error.value).splitlines())


def test_a_key_at_its_default_changes_no_address(composed: Compose) -> None:
    base = composed()
    spelled = ["+recipe.output.input.forward=false", "recipe.keep=[]", "recipe.keep_last=0"]
    assert science(composed(*spelled)) == science(base)
    said = {key: value for key, value in science(base).items() if key.startswith("recipe.")}
    assert len(said) == 6, "that an operand is there, and nothing else of the recipe"
    assert all(key.endswith(".rounding") for key in said)
    assert said["recipe.output.input.rounding"] == "nearest_even"
    changes = (
        "recipe.keep_first=1",
        "recipe.keep=[mlp]",
        "recipe.high_precision_share=0.2",
        "recipe.output.input.precision=mxfp4",
        "recipe.output.input.gradient=masked",
        "recipe.output.input.rounding=stochastic_8",
        "recipe.grad_input.weight.forward=true",
        "recipe.grad_input.row_hadamard=32",
        "recipe.grad_weight.signs=shared",
    )
    assert len({run_id(composed(change))[-12:] for change in changes} | {run_id(base)[-12:]}) == 10


def test_a_recipe_with_formats_of_its_own_has_one_address(composed: Compose) -> None:
    ids = {run_id(composed("recipe=quartet_v4", f"precision={p}")) for p in ("mxfp4", "nvfp4")}
    assert len(ids) == 1
    assert ids.pop().startswith("quartet-v4-ladder-b-")


def test_an_operand_that_is_taken_over_rounded_has_the_forward_products_format() -> None:
    recipe = RecipeConfig(output=OutputConfig(weight=OperandConfig(precision="nvfp4_tile")))
    recipe.grad_input.weight = OperandConfig("none", forward=True)
    recipe.grad_weight.input = OperandConfig(precision="mxint8")
    assert recipe.problems() == []
    assert recipe.quantized == ("P2", "P4", "P6")
    formats = recipe.precisions(Precision.parse("e4m3"))
    tile, int8 = Precision.parse("nvfp4_tile"), Precision.parse("mxint8")
    assert formats == {"P2": tile, "P4": tile, "P6": int8}
    assert not recipe.uses_run_precision


def test_the_record_counts_what_is_quantized(composed: Compose) -> None:
    """Ladder b: 2 blocks of 64 x (192 + 64 + 384 + 192) weights; 2,048 rows per step."""
    fp8 = _format_of(composed("recipe=fp8_hybrid"))
    assert (fp8.exponent, fp8.mantissa, fp8.granularity, fp8.scale) == (4, 3, "tensor", "fp32")
    assert fp8.params == 2 * 64 * 832
    assert 8 < fp8.bits_with_scales < 8.01
    nvidia = _format_of(composed("recipe=nvidia_nvfp4"))
    assert nvidia.params == 64 * 832, "the last block is kept"
    assert 4.45 < nvidia.bits_with_scales < 4.51, "tiles share more than blocks of 16"
    assert "torch" in _format_of(composed("recipe=quartet2")).backend
    none = _format_of(composed("recipe=none"))
    assert (none.params, none.sharing, none.scale) == (0, 1.0, "none")


def test_the_last_share_of_the_steps_is_in_high_precision(composed: Compose) -> None:
    config = composed("recipe.high_precision_share=0.18", "tokens=204800")
    assert config.steps == 100
    assert [config.quantizes(step) for step in (0, 81, 82, 100)] == [True, True, False, False]
    config.recipe.high_precision_share = 0.0
    assert config.quantizes(config.steps), "the validation of a quantized run is quantized"


def test_a_run_can_end_in_high_precision(composed: Compose, text: Path) -> None:
    """Half of it: another loss than either, for training remembers how it began."""
    small = ["model=ladder/a", "data=tokens", "data.seq_len=64", "batch_size=4", "tokens=2048"]
    small += ["tracking=none", f"data.path={text}", "precision=mxfp4"]
    results = [
        train(composed(*small, *change))
        for change in (["recipe=none"], [], ["recipe.high_precision_share=0.5"])
    ]
    assert len({result.record.loss for result in results}) == 3
    assert [result.record.numerics_version for result in results] == [4, 4, 5]
    # It is scored as it ended: by its weights in an unquantized model.
    module = results[2].module
    assert module is not None
    plain = build(module.config.model, RecipeConfig(), Precision(FloatFormat(2, 1)), 0).eval()
    plain.load_state_dict(module.model.state_dict())
    total = count = 0.0
    with torch.no_grad():
        for batch in TokenData(module.config.data).validation_batches(64):
            total += plain.loss(batch, reduction="sum").double().item()
            count += batch[:, 1:].numel()
    assert results[2].record.loss == total / count
    # Version 4 scored such runs quantized: what it left counts no more, and compares with nothing.
    records = [result.record for result in results]
    assert table_of(records)["numerics_version"].tolist() == [4, 4, 4]
    wrong = dataclasses.replace(records[2], numerics_version=4)
    assert table_of([*records[:2], wrong])["status"].tolist() == ["finished"] * 2 + [SUPERSEDED]
