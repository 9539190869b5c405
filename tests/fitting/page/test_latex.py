"""Tables as LaTeX: every row whole, every character one that LaTeX takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from fitting.page.latex import ROWS_OF_A_PAGE, escape, to_latex
from fitting.page.tables import View

HOSTILE = "50 % of $x_1^2$ & {a} ~ \\ # <b> −2.5×10⁻⁷ ± ∞ – Δδ E2M1/32"
VIEW = View(
    "some", [("format", ""), ("loss & error", "num")],
    [("group", ["24.6k parameters"]), ("", ["E2M1", "+0.06 ± 0.02"]), ("muted", [HOSTILE, "–"])],
    pd.DataFrame({"a": [1]}), "A title", "What it means, 95 % of it.",
)  # fmt: skip


def test_a_table_is_booktabs_with_numbers_on_the_right() -> None:
    lines = to_latex(VIEW).splitlines()
    assert lines[:2] == ["% A title", "% What it means, 95 % of it."]
    assert lines[2:5] == [r"\begin{tabular}{lr}", r"\toprule", r"format & loss \& error \\"]
    assert lines[6] == r"\addlinespace\multicolumn{2}{l}{\textit{24.6k parameters}} \\"
    assert lines[7] == r"E2M1 & +0.06 $\pm$ 0.02 \\"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]


def test_every_row_has_as_many_columns_as_the_head() -> None:
    for line in to_latex(VIEW).splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == 1, line


def test_only_ascii_and_no_bare_special_character_is_left() -> None:
    text = escape(HOSTILE)
    assert text.isascii()
    bare = re.sub(
        r"\\[a-zA-Z]+(?:\{\})?|\\[&%$#_{}]|\$\\[a-zA-Z]+\$|\$\^\{-?\d+\}\$|\$-\$", "", text
    )
    assert not set("&%$#_{}^~\\<>") & set(bare), bare


def test_a_row_that_starts_with_a_bracket_is_no_length_after_the_line_before() -> None:
    view = View("b", [("a", "")], [("", ["x"]), ("", ["[1, 2]"])], pd.DataFrame())
    assert "{}[1, 2]" in to_latex(view)


def test_a_table_of_many_rows_runs_over_pages() -> None:
    rows = [("", [str(i)]) for i in range(ROWS_OF_A_PAGE + 1)]
    text = to_latex(View("long", [("n", "num")], rows, pd.DataFrame()))
    assert r"\begin{longtable}{r}" in text
    assert text.count(r"\midrule") == 1
    assert text.count(r" \\") == len(rows) + 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX here")
def test_latex_takes_it(tmp_path: Path) -> None:
    head = r"\documentclass{article}\usepackage{booktabs,longtable}\begin{document}"
    (tmp_path / "page.tex").write_text(head + "\n" + to_latex(VIEW) + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
