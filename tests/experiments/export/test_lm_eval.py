"""lm-evaluation-harness on an exported folder: its likelihoods are those of the trained module.

It is not among our packages; the test runs where its command is on the path, or named by LM_EVAL.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lowbit
from experiments.config.schema import TrainConfig
from experiments.export.folder import export
from experiments.train import train
from tests.support.small_runs import small

Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
COMMAND = os.environ.get("LM_EVAL") or shutil.which("lm_eval")
DOCUMENTS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Returns the number of nodes in the graph: größere Ψ.",
    "def f(x):\n    return x + 1\n",
]
TASK = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""


@pytest.mark.skipif(not COMMAND, reason="needs lm_eval")
def test_its_bits_per_byte_are_ours(small: Compose, tmp_path: Path) -> None:
    assert COMMAND is not None
    folder = train(small("recipe=nearest", "precision=mxfp4", "data.seq_len=128")).folder
    export(folder, "hf", tmp_path / "out")
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.format(documents=documents))
    words = [
        COMMAND,
        "--model",
        "hf",
        "--model_args",
        f"pretrained={tmp_path / 'out'},dtype=float32",
    ]
    words += ["--tasks", "local_text", "--include_path", str(tmp_path / "tasks")]
    words += ["--device", "cpu", "--batch_size", "1", "--output_path", str(tmp_path / "said")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | offline)
    assert done.returncode == 0, done.stderr[-2000:]
    [found] = (tmp_path / "said").rglob("results*.json")
    theirs = json.loads(found.read_text())["results"]["local_text"]["bits_per_byte,none"]
    ours = lowbit.load(folder)
    ours.clock.quantizing = False
    total = count = 0.0
    for text in DOCUMENTS:
        tokens = torch.tensor([[0, *text.encode()]])
        with torch.no_grad():
            logs = ours(tokens[:, :-1]).log_softmax(-1)[0].gather(-1, tokens[0, 1:, None])
        total, count = total + float(logs.double().sum()), count + logs.numel()
    assert theirs == pytest.approx(-total / count / math.log(2), rel=1e-6)
