"""Planned memory is an upper bound: measured against what torch allocates, for every recipe."""

from collections.abc import Callable

import pytest

from experiments.accounting import training_bytes
from experiments.config.schema import TrainConfig
from experiments.paths import conf_dir
from tests.support.memory import peak_bytes

Compose = Callable[..., TrainConfig]
RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))
SIZES = {
    "wide layers": ["batch_size=1", "model.layers=1", "model.hidden=512", "model.ffn=1536"],
    "many rows": ["batch_size=4", "model.layers=3", "model.hidden=128", "model.ffn=384"],
}
MORE = {
    "one narrow layer": ["batch_size=8", "model.layers=1", "model.hidden=64", "model.ffn=64"],
    "wide middle": ["batch_size=2", "model.layers=1", "model.hidden=128", "model.ffn=2048"],
    "narrow middle": ["batch_size=1", "model.layers=2", "model.hidden=512", "model.ffn=128"],
    "deep": ["batch_size=1", "model.layers=8", "model.hidden=128", "model.ffn=384"],
    "few rows": ["batch_size=1", "model.layers=1", "model.hidden=768", "model.ffn=768"],
}
CASES = [
    *(pytest.param(recipe, size) for recipe in RECIPES for size in SIZES),
    *(pytest.param(recipe, size, marks=pytest.mark.long) for recipe in RECIPES for size in MORE),
]


@pytest.mark.parametrize(("recipe", "size"), CASES)
def test_no_recipe_takes_more_than_is_planned(composed: Compose, recipe: str, size: str) -> None:
    precision = "nvfp4" if recipe == "nvidia_nvfp4" else "mxfp4"
    layers = ["recipe.keep_last=0"] if recipe == "nvidia_nvfp4" else []
    config = composed(
        *(f"recipe={recipe}", f"precision={precision}", "tokens=4096"),
        *("data.seq_len=128", "model.heads=4", *(SIZES | MORE)[size], *layers),
    )
    planned = training_bytes(config.model, config.rows, config.recipe, config.data.seq_len)
    measured = peak_bytes(config)
    print("RATIO", recipe, size, measured / planned)
    assert measured <= planned
    assert planned < 4 * measured
