"""Configurations from Python are those of the command line, and as plain where they are wrong."""

from pathlib import Path

import pytest

from experiments.config.precision import ConfigError
from experiments.configure import configure
from experiments.quant.formats import Precision


def test_it_is_what_the_command_line_says() -> None:
    config = configure("recipe=quest", "precision=mxfp4", "tokens=1_000_000", "optim.lr=1e-3")
    assert config.recipe.name == "quest"
    assert config.precision.build() == Precision.parse("mxfp4")
    assert (config.tokens, config.optim.lr) == (1_000_000, 1e-3)


def test_files_of_ones_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("defaults: [nearest]\nname: mine\n")
    assert configure("recipe=mine", folder=tmp_path).recipe.name == "mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("precision.mantisa=1", "precision.mantisa: no such key; did you mean precision.mantissa?"),
        ("recipe=quast", "recipe=quast: no such choice; there are: .* quest "),
        ("tokens=few", "tokens"),
        ("optim.lr=-1", "optim.lr=-1"),
    ],
)
def test_what_is_wrong_is_one_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        configure(override)
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_is_not_there_is_said() -> None:
    with pytest.raises(ConfigError, match="--config-dir=/nowhere: no such folder"):
        configure(folder="/nowhere")
