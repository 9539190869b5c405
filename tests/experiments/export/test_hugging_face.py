"""`lowbit-export to=hf`: what transformers makes of the folder is the built-in model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lowbit
from experiments.config.schema import TrainConfig
from experiments.data.batches import TokenData
from experiments.export.folder import export
from experiments.train import train
from tests.support.corpora import pages, write_tokenizer
from tests.support.small_runs import small

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
Compose = Callable[..., TrainConfig]
__all__ = ["small"]  # a fixture
MODELS = {
    "ladder/a": [],
    "heads and an own matrix for the head": ["model=ladder/b", "model.tied=false"],
    "positions of another base": ["model.rope_base=500", "model.heads=4", "model.layers=3"],
}


def exported(config: TrainConfig, out: Path) -> tuple[Path, Any]:
    """The run's folder, and the model that transformers loads from the exported one."""
    folder = train(config).folder
    export(folder, "hf", out)
    loaded, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told.values()), "each weight has its place, and each place its weight"
    return folder, loaded


def unquantized(folder: Path) -> Any:
    model = lowbit.load(folder)
    model.clock.quantizing = False
    return model


@torch.no_grad()
def greedy(logits_of: Callable[[Tensor], Tensor], start: Tensor, count: int) -> Tensor:
    for _ in range(count):
        start = torch.cat((start, logits_of(start)[:, -1:].argmax(-1)), dim=1)
    return start


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())
def test_transformers_computes_the_same_logits_and_tokens(
    small: Compose, tmp_path: Path, overrides: list[str]
) -> None:
    config = small(*overrides, "recipe=nearest", "precision=mxfp4")
    folder, llama = exported(config, tmp_path / "out")
    ours = unquantized(folder)
    batch = next(iter(TokenData(config.data).validation_batches(16)))[:, :-1]
    with torch.no_grad():
        expected, found = ours(batch), llama(batch).logits
    assert type(llama).__name__ == "LlamaForCausalLM"
    assert found.dtype == torch.float32
    worst = float((found - expected).abs().max())
    print(f"largest difference of a logit: {worst:.2g} of {float(expected.abs().max()):.3g}")
    assert worst < 1e-5
    start = batch[:, :8]
    made = llama.generate(start, max_new_tokens=40, do_sample=False, eos_token_id=None)
    assert torch.equal(made, greedy(ours, start, 40))
    assert torch.equal(made[:, :8], start)


def test_a_difference_in_convention_would_be_seen(small: Compose, tmp_path: Path) -> None:
    """Rotation by another base, or gate and up exchanged, moves logits a thousand times more."""
    folder, llama = exported(small("recipe=none"), tmp_path / "out")
    ours = unquantized(folder)
    ids = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ours(ids)
        llama.model.rotary_emb.inv_freq *= 1.1
        assert (llama(ids).logits - expected).abs().max() > 1e-2
        llama.model.rotary_emb.inv_freq /= 1.1
        mlp = llama.model.layers[0].mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj
        assert (llama(ids).logits - expected).abs().max() > 1e-2


def test_the_tokenizer_gives_the_tokens_of_the_data(
    small: Compose, tmp_path: Path, text: Path
) -> None:
    config = small("recipe=none")
    exported(config, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 0
    data = TokenData(config.data)
    train_stream = data.train.read(0, len(data.train)).tolist()
    documents = [path.read_text() for path in sorted(text.glob("*.txt"))]
    encoded = {tuple(tokenizer(document).input_ids) for document in documents}
    ours, start = set(), 0
    for position, token in enumerate(train_stream):
        if token == 0:
            ours.add(tuple(train_stream[start:position]))
            start = position + 1
    assert ours
    assert ours <= encoded
    chance = random.Random(3)
    plain = [chr(n) for n in range(0x3000) if not 0xD800 <= n < 0xE000]
    for said in ("", " a  b ", "\0a\0\0", "Āé日本🎉\r\n\t", "".join(chance.choices(plain, k=5000))):
        ids = tokenizer(said).input_ids
        assert ids == list(said.encode())
        assert tokenizer.decode(ids) == said
    for byte in range(256):
        assert tokenizer.convert_ids_to_tokens(byte) is not None
    assert tokenizer.decode(list("é".encode())[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_tokens_of_a_users_own_have_no_tokenizer_and_the_card_says_so(
    small: Compose, tmp_path: Path
) -> None:
    import numpy as np

    place = tmp_path / "bin"
    place.mkdir()
    ids = np.random.default_rng(0).integers(0, 300, 20_000).astype("<u2")
    ids[:300] = np.arange(300)
    for part in ("train", "val"):
        ids.tofile(place / f"{part}.bin")
    config = small("recipe=none", f"data.path={place}", "model.vocab_size=300", "optim.lr=1e-4")
    exported(config, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    assert "whose tokenizer it does\nnot know" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] is None


def with_own_tokenizer(small: Compose, place: Path, *more: str) -> TrainConfig:
    """A run on pages, cut by a tokenizer that begins a text with a token of its own."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra data")
    path = write_tokenizer(place / "own.json")
    own = tokenizers.Tokenizer.from_file(str(path))
    end = "<|endoftext|>"
    own.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, own.token_to_id(end))]
    )
    own.save(str(path))
    (place / "pages").mkdir()
    for number, page in enumerate(pages(200)):
        (place / "pages" / f"{number}.txt").write_text(page)
    words = [f"data.path={place / 'pages'}", f"data.tokenizer={path}", "model.vocab_size=500"]
    return small("recipe=none", *words, "data.max_epochs=99", *more)


def test_the_users_tokenizer_is_in_the_folder_and_gives_the_tokens_of_the_data(
    small: Compose, tmp_path: Path
) -> None:
    config = with_own_tokenizer(small, tmp_path)
    _, model = exported(config, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    data = TokenData(config.data)
    end = data.manifest.eos
    assert end is not None
    assert tokenizer.eos_token_id == model.config.eos_token_id == end
    stream = data.train.read(0, len(data.train)).tolist()
    encoded = {tuple(tokenizer(page).input_ids) for page in pages(200)}
    first = stream[: stream.index(end)]
    assert tuple(first) in encoded, "no token is added at the start"
    assert tokenizer.decode(first) in pages(200)
    made = model.generate(torch.tensor([first[:8]]), max_new_tokens=5, do_sample=False)
    assert made.shape[1] <= 13
    assert f"Token {end} ends a\ndocument" in (tmp_path / "out" / "README.md").read_text()


def test_a_tokenizer_that_was_changed_is_left_out_and_the_card_says_so(
    small: Compose, tmp_path: Path
) -> None:
    config = with_own_tokenizer(small, tmp_path)
    folder = train(config).folder
    path = tmp_path / "own.json"
    path.write_text(path.read_text() + "\n")
    export(folder, "hf", tmp_path / "changed")
    path.unlink()
    export(folder, "hf", tmp_path / "gone")
    for name, said in (("changed", "are not what they were"), ("gone", "no such file")):
        assert not (tmp_path / name / "tokenizer.json").exists()
        assert said in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_of_theirs_ends_a_text_with_the_token_that_did(
    small: Compose, tmp_path: Path, kind: str
) -> None:
    """GPT-2's own, 50256, is none of its 256."""
    sizes = {
        "gpt2": ["n_embd=32", "n_layer=1", "n_head=2", "n_positions=64"],
        "llama": ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=1",
                  "num_attention_heads=2", "max_position_embeddings=64"],
    }  # fmt: skip
    words = [f"model.config.{each}" for each in (f"model_type={kind}", "vocab_size=256")]
    words += [f"model.config.{each}" for each in sizes[kind]]
    _, model = exported(small("model=hf", *words, "recipe=none"), tmp_path / "out")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
    assert (model.config.bos_token_id or 0) < 256
    made = model.generate(torch.tensor([[84, 104]]), max_new_tokens=4, do_sample=False)
    assert made.shape[1] <= 6
