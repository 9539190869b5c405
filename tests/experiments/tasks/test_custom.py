"""Tasks of the user's own: what they are asked for, what is scored, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.precision import ConfigError
from experiments.config.schema import TrainConfig
from experiments.data.shards import DataError
from experiments.export.load import ExportError
from experiments.export.load import load as load_run
from experiments.models.source import ModelError, make
from experiments.run.identity import run_id
from experiments.store.weights import read_weights
from experiments.sweep.plan import make_plan
from experiments.tasks.choose import task_of
from experiments.tasks.custom import TaskError
from experiments.train import train
from fitting.entry.errors import Refusal
from tests.support.own_task import Line
from tests.support.small_runs import Stop, rows

Compose = Callable[..., TrainConfig]
STEPS = 40
WORDS = (
    *("task=custom", "task.factory=tests.support.own_task:Line", "model=module"),
    *("model.factory=tests.support.own_task:net", "batch_size=10", f"tokens={STEPS * 10}"),
    *("tracking=none", "tracking.log_every=4", "optim.lr=3e-2"),
)


@pytest.fixture
def own(composed: Compose) -> Compose:
    """A run of seconds on a task of one's own."""
    return lambda *more: composed(*WORDS, *more)


def test_a_task_of_ones_own_is_trained_and_scored(own: Compose) -> None:
    config = own("recipe=none", "keep=last")
    result = train(config)
    record = result.record
    assert (record.status, record.corpus) == ("finished", "line-v1")
    assert (record.tokens, record.unique_tokens) == (STEPS * 10, 100)
    net = make(config.model, 0).eval()
    state = read_weights(result.folder, record.weights_sha256)
    net.load_state_dict({n.removeprefix("model.module."): v for n, v in state.items()})
    x = torch.linspace(-1, 1, 100)[::10, None]
    with torch.no_grad():
        predicted = net(x)
    assert record.loss == pytest.approx((predicted - 2 * x).square().mean().item(), rel=1e-5)
    right = (predicted.sign() == x.sign()).float().mean().item()
    assert record.metrics == {"sign": pytest.approx(right)}
    assert record.loss < 0.3


@pytest.mark.parametrize("recipe", ["none", "stochastic"])
def test_a_resumed_run_is_the_same_to_the_bit(own: Compose, tmp_path: Path, recipe: str) -> None:
    """With dropout and a batch norm in the model."""
    words = (f"recipe={recipe}", "precision=INT8-row")
    whole = train(own(*words, f"runs={tmp_path / 'whole'}"))
    for step in (12, 28):
        with pytest.raises(KeyboardInterrupt):
            train(own(*words), Stop(step))
    resumed = train(own(*words))
    assert resumed.record.attempts == 3
    assert resumed.record.weights_sha256 == whole.record.weights_sha256
    assert rows(resumed.folder) == rows(whole.folder)


def test_costs_are_counted_on_the_task_itself(own: Compose) -> None:
    config, counter = own("recipe=none"), FlopCounterMode(display=False)
    net, task = make(config.model, 0), Line()
    with counter:
        x = torch.stack([task.train[n][0] for n in range(4)])
        task.losses(net, (x, 2 * x)).sum().backward()
    assert make_plan([config]).runs[0].flops == counter.get_total_flops() / 4 * STEPS * 10


def test_every_example_is_seen_once_an_epoch(own: Compose) -> None:
    data = task_of(own("data.validation_windows=5")).open()
    seen = torch.cat([data.batch(step, 10, seed=4)[0] for step in range(10)])
    assert torch.equal(seen.flatten().sort()[0], torch.linspace(-1, 1, 100))
    [(x, _)] = data.validation_batches(100)
    assert torch.equal(x.flatten(), torch.linspace(-1, 1, 100)[::10][::2])


def test_code_arguments_and_data_are_part_of_the_address(own: Compose) -> None:
    changes = ("seed=0", "task.config.points=50", "task.factory=tests.support.own_task:Steep")
    assert len({run_id(own(change)) for change in changes}) == 3
    with pytest.raises(ConfigError, match="task.sha256=0123: tests.support.own_task:Line has"):
        own("task.sha256='0123'")


def test_no_record_makes_its_task(own: Compose) -> None:
    """Code that a record names is not imported."""
    result = train(own("recipe=none", "keep=last"))
    with pytest.raises(ExportError, match="its model is made by tests.support.own_task:net"):
        load_run(result.folder)


class Wrong(Line):
    """Something is wrong with it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        if what == "raises":
            raise RuntimeError("no such file\nas mine")
        if what == "corpus":
            self.corpus = ""
        if what == "guess":
            self.guess = "much"  # type: ignore[assignment]
        if what == "empty":
            self.validation = []
        if what == "length":
            self.train = iter(self.train)  # type: ignore[assignment]
        if what == "collate":
            self.train = [(torch.zeros(n), 0) for n in range(1, 101)]  # type: ignore[misc]

    def losses(self, model: Callable[[Tensor], Tensor], batch: Any) -> Tensor:
        if self.what == "mean":
            return super().losses(model, batch).mean()
        if self.what == "number":
            return 0.5  # type: ignore[return-value]
        if self.what == "shape":
            return model(torch.zeros(2, 7))
        return super().losses(model, batch)

    def metrics(self, model: Callable[[Tensor], Tensor], batch: Any) -> dict[str, Tensor]:
        return {"all": torch.ones(1)} if self.what == "metric" else {}


def nothing() -> object:
    return nn.Identity()


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("raises", TaskError, "with {'what': 'raises'} it raised RuntimeError: no such file"),
        ("corpus", TaskError, "its corpus=''; must be a name of its data"),
        ("guess", TaskError, "its guess='much'; must be a number"),
        ("length", TaskError, "its train has no length"),
        ("empty", DataError, "its validation part has no example"),
        ("collate", TaskError, "a batch of its train, numbers 0, 1, ..., raises RuntimeError"),
        ("mean", TaskError, r"losses returns \[\] for a batch of 2; must be one loss for each"),
        ("number", ModelError, "losses returns float; must be a tensor"),
        ("shape", ModelError, "on examples of .* its forward and backward pass raise RuntimeError"),
    ],
)
def test_what_is_wrong_with_a_task_is_one_line(
    own: Compose, what: str, kind: type[Refusal], said: str
) -> None:
    with pytest.raises(kind, match=said) as error:
        make_plan([own(f"task.factory={__name__}:Wrong", f"task.config.what={what}")])
    assert "\n" not in str(error.value)


def test_a_measure_for_each_example_is_asked_for(own: Compose) -> None:
    config = own(f"task.factory={__name__}:Wrong", "task.config.what=metric")
    with pytest.raises(TaskError, match=r"its metric all has the shape \[1\]; must be one number"):
        train(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("task.factory=", "task.factory=: task=custom needs one"),
        ("task.factory=nowhere:build", "task.factory=nowhere:build: No module named 'nowhere'"),
        ("task.factory={here}:nothing", "returned Identity, which has no corpus"),
        ("data.name=digits", "data.name=digits: task=custom brings its own data"),
        (
            "batch_size=400",
            "batch_size=400: must be at most 100, the training examples of",
        ),
        (
            "data.max_epochs=1",
            "data.max_epochs=1: 40 steps of 10 examples are 400, line-v1",
        ),
    ],
)
def test_wrong_requests_are_one_line(own: Compose, words: str, said: str) -> None:
    with pytest.raises(Refusal) as error:
        make_plan([own(*words.format(here=__name__).split())])
    assert said in str(error.value)
    assert "\n" not in str(error.value)
