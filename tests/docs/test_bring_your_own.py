"""docs/bring-your-own.md: its programs run as they stand, and say what the page says."""

from __future__ import annotations

import re

import pytest

from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "bring-your-own.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
EXPECTED = (
    ("2 of 2 quantized: 100.0%",),
    ("recipe.keep", "output head"),
    ("lora_A.default",),
    ("model.layers.0.self_attn", "INT4-row-fp32", "0 of 16 quantized"),
    (),  # it fails where the graph breaks
)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("program", "said"), [*zip(PROGRAMS, EXPECTED, strict=True)])
def test_a_program_of_the_page_runs(
    program: str, said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="needs the extra hf")
    exec(compile(program, "docs/bring-your-own.md", "exec"), {})
    printed = capsys.readouterr().out
    for words in said:
        assert words in printed


def test_what_the_page_says_of_precedence_holds(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs the extra hf")
    exec(compile(PROGRAMS[1], "docs/bring-your-own.md", "exec"), {})
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    kept = lines["model.layers.0.self_attn.q_proj"]
    assert kept.endswith("override model.layers.0.self_attn.q_proj")
    assert "E4M3-ocp-block32-e8m0" in lines["model.layers.0.mlp.down_proj"]
    assert lines["model.layers.3.mlp.up_proj"].endswith("recipe.keep")
