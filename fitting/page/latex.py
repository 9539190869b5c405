r"""A table of the report as LaTeX, for a paper: booktabs, numbers in columns that align right.

`\input` it; the preamble needs `\usepackage{booktabs}`, and `longtable` for a table of more than
`ROWS_OF_A_PAGE` rows.  Not by pandas' Styler, which has no rows that span all columns, breaks long
tables with words of its own, and leaves the escaping of most characters to us anyway.
"""

from __future__ import annotations

import re

from fitting.page.tables import View

ROWS_OF_A_PAGE = 45
_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "∞": r"$\infty$", "Δ": r"$\Delta$",
    "δ": r"$\delta$", "–": "--", "\u00a0": "~", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def to_latex(view: View) -> str:
    """The whole table, including the rows that the page leaves to the CSV file."""
    width = len(view.header)
    columns = "".join("r" if kind == "num" else "l" for _, kind in view.header)
    head = _row([title for title, _ in view.header])
    body = []
    for kind, cells in view.rows:
        if kind == "group":
            body.append(
                rf"\addlinespace\multicolumn{{{width}}}{{l}}{{\textit{{{escape(cells[0])}}}}} \\"
            )
        else:
            body.append(_row(cells))
    if len(view.rows) <= ROWS_OF_A_PAGE:
        start, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        lines = [start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", end]
    else:
        start, end = rf"\begin{{longtable}}{{{columns}}}", r"\end{longtable}"
        top = [r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endlastfoot"]
        lines = [start, *top, *body, end]
    about = [f"% {line}" for line in (view.title, view.note) if line]
    return "\n".join([*about, *lines]) + "\n"


def _row(cells: list[str]) -> str:
    r"""One line, ended by `\\`; a bracket after that would be read as its length."""
    text = " & ".join(escape(cell) for cell in cells)
    return (f"{{}}{text}" if text.startswith(("[", "*")) else text) + r" \\"


def escape(text: str) -> str:
    r"""Text escaped for LaTeX.

    >>> print(escape("eff_N: 2.5×10⁻⁷ ± 3 %"))
    eff\_N: 2.5$\times$10$^{-7}$ $\pm$ 3 \%
    """
    text = "".join(_SPECIAL.get(character, character) for character in text)
    return re.sub(
        "[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: f"$^{{{power[0].translate(_SUPERSCRIPT)}}}$", text
    )
