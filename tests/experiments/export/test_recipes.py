"""Recipes as configurations of other libraries: what is written, what is refused, and the table.

The libraries' own classes read each file where they are installed:

    pip install torchao==0.18.0 nvidia-modelopt==0.47.0; pip install --no-deps transformer_engine
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from experiments.config.schema import TrainConfig
from experiments.configure import configure
from experiments.export import command
from experiments.export.recipes import table, verdict, written
from experiments.paths import conf_dir

NAMES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
DOCS = Path(__file__).parents[3] / "docs" / "export-recipes.md"
MX = "E4M3-ocp-block32-e8m0_ceil"
CASES = {
    **{name: (f"recipe={name}",) for name in NAMES},
    **{
        f"nearest {precision}": ("recipe=nearest", f"precision={precision}")
        for precision in ("fp8_e4m3", MX, "nvfp4", "int8_row", "E4M3-ocp-row-e8m0_ceil")
    },
    "hadamard nvfp4": ("recipe=hadamard", "precision=nvfp4"),
    "weight gradient in high precision": (
        *("recipe=nearest", f"precision={MX}"),
        *("recipe.grad_weight.grad_output=null", "recipe.grad_weight.input=null"),
    ),
    "two granularities": (
        *("recipe=halo0", "recipe.output.input.precision=E4M3-ocp-row-fp32"),
        *("recipe.grad_weight.grad_output=null", "recipe.grad_weight.input=null"),
    ),
    "forward only": (
        *("recipe=nearest", "precision=fp8_e4m3"),
        *(f"recipe.grad_{of}=null" for of in ("input.grad_output", "weight.grad_output")),
        *(f"recipe.grad_{of}.rounding=none" for of in ("input.weight", "weight.input")),
        *(f"recipe.grad_{of}.forward=true" for of in ("input.weight", "weight.input")),
    ),
}
WRITTEN = {
    "transformer_engine": {
        "fp8_hybrid": "Float8CurrentScaling(fp8_format=Format.HYBRID)",
        "halo0": "Float8CurrentScaling(fp8_format=Format.E4M3)",
        "nearest fp8_e4m3": "Float8CurrentScaling(fp8_format=Format.E4M3)",
        f"nearest {MX}": "MXFP8BlockScaling(fp8_format=Format.E4M3)",
        "nvidia_nvfp4": "NVFP4BlockScaling(disable_2d_quantization=False, disable_rht=False, "
        "disable_stochastic_rounding=False)",
        "nearest nvfp4": "NVFP4BlockScaling(disable_2d_quantization=True, disable_rht=True, "
        "disable_stochastic_rounding=True)",
        "forward only": 'Float8CurrentScaling(backward_override="dequantized", '
        "fp8_format=Format.E4M3)",
    },
    "torchao": {
        f"nearest {MX}": "from_recipe(MXFP8TrainingRecipe.MXFP8_RCEIL)",
        "weight gradient in high precision": "MXFP8TrainingRecipe.MXFP8_RCEIL_WGRAD_WITH_HP",
        "nearest int8_row": "TrainingConfig(output=True, grad_input=True, grad_weight=True)",
        "fp8_hybrid": "torch.float8_e5m2",
        "halo0": "ScalingGranularity.TENSORWISE",
        "nearest fp8_e4m3": "ScalingGranularity.TENSORWISE",
        "nearest E4M3-ocp-row-e8m0_ceil": "round_scales_to_power_of_2=True",
        "two granularities": "ScalingType.DISABLED",
    },
}
"""All that is written for these libraries, by a part of its text."""


def config(case: str) -> TrainConfig:
    return configure(*CASES[case])


@pytest.mark.parametrize("to", WRITTEN)
def test_what_is_written_and_nothing_else(to: str) -> None:
    texts = {case: written(config(case), to).text for case in CASES}
    assert {case for case, text in texts.items() if text} == set(WRITTEN[to])
    for case, part in WRITTEN[to].items():
        assert part in texts[case], case


def test_a_file_for_modelopt_to_the_letter() -> None:
    assert written(config("nearest nvfp4"), "modelopt").text == (
        "# nearest for ModelOpt\n"
        "# Not in here: backward (P3 P4 P5 P6): its gradients are those of the forward operands\n"
        "# Not in here: P1: its tensor scale is calibrated, here it is that of the tensor at hand\n"
        "\nconfig = {\n"
        '    "quant_cfg": [\n'
        "        {'quantizer_name': '*', 'enable': False},\n"
        "        {'quantizer_name': '*weight_quantizer', 'cfg': {'num_bits': (2, 1), "
        "'block_sizes': {-1: 16, 'type': 'dynamic', 'scale_bits': (4, 3)}}},\n"
        "        {'quantizer_name': '*input_quantizer', 'cfg': {'num_bits': (2, 1), "
        "'block_sizes': {-1: 16, 'type': 'dynamic', 'scale_bits': (4, 3)}}},\n"
        "        {'quantizer_name': '*lm_head*', 'enable': False},\n"
        '    ],\n    "algorithm": "max",\n}\n'
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("recipe.grad_input.hadamard=16", "P3 and P4 (recipe.grad_input): it does not rotate"),
        ("recipe.grad_weight.signs=random", "by 16 with random ones"),
        ("recipe.grad_weight.grad_output.rounding=nearest_even", "P5 (recipe.grad_weight"),
        ("recipe.output.weight.precision=mxfp4", "P2 (recipe.output.weight)"),
        ("recipe.grad_weight.input=null", "P6 (recipe.grad_weight.input): it quantizes all"),
        ("recipe.output.input.gradient=masked", "straight through, in this recipe masked"),
        ("recipe.attention.key={rounding: nearest_even, precision: nvfp4}", "recipe.attention"),
    ],
)
def test_a_change_of_nvidias_recipe_is_refused_by_its_part(change: str, reason: str) -> None:
    found = written(configure("recipe=nvidia_nvfp4", change), "transformer_engine")
    assert not found.text
    assert any(reason in each for each in found.reasons), found.reasons


def test_what_is_left_to_the_caller_is_said() -> None:
    found = configure("recipe=nvidia_nvfp4", "recipe.high_precision_share=0.18")
    said = verdict(found, "transformer_engine")
    assert said.startswith("TransformerEngine: expressible; not in it: recipe.keep_last=1")
    assert "recipe.high_precision_share=0.18" in said


def test_the_table_of_the_documentation_is_the_programs() -> None:
    assert DOCS.read_text().endswith(table({name: config(name) for name in NAMES}))


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lowbit-export", *words])
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_writes_a_file_or_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "recipe.py"
    words = ("to=transformer_engine", f"out={out}")
    assert call(monkeypatch, "recipe=nvidia_nvfp4", *words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(out)
    assert "recipe.keep_last=1" in printed[1]
    text = out.read_text()
    assert call(monkeypatch, "recipe=halo0", *words) == 2
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == text
    other = tmp_path / "other.py"
    assert call(monkeypatch, "recipe=quest", "to=torchao", f"out={other}") == 2
    assert "recipe=quest: torchao: not expressible. " in capsys.readouterr().err
    assert not other.exists()
    assert call(monkeypatch, "recipe=halo0", "to=hf", f"out={other}") == 2
    assert "run: missing" in capsys.readouterr().err


def executed(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(text, "written", "exec"), found)
    return found


def texts(to: str) -> dict[str, str]:
    found = {case: written(config(case), to).text for case in CASES}
    return {case: text for case, text in found.items() if text}


def test_torchao_takes_each_file() -> None:
    pytest.importorskip("torchao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {case: executed(text)["config"] for case, text in texts("torchao").items()}
        from torchao.float8.config import Float8LinearConfig

        tensorwise = Float8LinearConfig.from_recipe_name("tensorwise")
        rowwise = Float8LinearConfig.from_recipe_name("rowwise")
        made_row = made["nearest E4M3-ocp-row-e8m0_ceil"]
    for field in ("input", "weight", "grad_output", "input_for_grad_weight"):
        for ours, theirs in ((made["fp8_hybrid"], tensorwise), (made_row, rowwise)):
            name = f"cast_config_{field}"
            assert getattr(ours, name) == getattr(theirs, name), name
    assert made_row.round_scales_to_power_of_2 == rowwise.round_scales_to_power_of_2 is True
    assert made["weight gradient in high precision"].wgrad_with_hp


def test_modelopt_takes_each_file() -> None:
    pytest.importorskip("modelopt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.quantization.config import QuantizeConfig

        for case, text in texts("modelopt").items():
            assert QuantizeConfig(**executed(text)["config"]), case


def test_transformer_engine_takes_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipes are plain Python, read from their file: the package itself wants CUDA."""
    spec = importlib.util.find_spec("transformer_engine")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("transformer_engine is not installed")
    file = Path(spec.submodule_search_locations[0], "common", "recipe", "__init__.py")
    name = "transformer_engine.common.recipe"
    found = importlib.util.spec_from_file_location(name, file)
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    for parent in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    found.loader.exec_module(module)
    made = {case: executed(text)["recipe"] for case, text in texts("transformer_engine").items()}
    nvfp4 = made["nvidia_nvfp4"]
    assert nvfp4.fp4_quant_bwd_grad.stochastic_rounding
    assert nvfp4.fp4_quant_fwd_inp.random_hadamard_transform
    assert nvfp4.fp4_quant_fwd_weight.fp4_2d_quantization
    plain = made["nearest nvfp4"]
    assert not plain.fp4_quant_bwd_grad.stochastic_rounding
    assert not plain.fp4_quant_fwd_inp.random_hadamard_transform
    assert not plain.fp4_quant_fwd_weight.fp4_2d_quantization
