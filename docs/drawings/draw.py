"""Draw the pictures of docs/concepts.md; `python docs/drawings/draw.py` writes them beside it.

Each is a plain SVG that brings its own background and follows the reader's light or dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

STYLE = """\
  <style>
    svg { font: 14px system-ui, sans-serif; }
    .page { fill: #ffffff; }
    .box { fill: #eef3f8; stroke: #5b7083; }
    .key { fill: #fdf0dc; stroke: #b07a1e; }
    .line { fill: none; stroke: #5b7083; stroke-width: 1.5; marker-end: url(#tip); }
    .tip { fill: #5b7083; }
    text { fill: #1b2733; text-anchor: middle; }
    .small { font-size: 12px; fill: #4a5a68; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #14171a; }
      .box { fill: #223040; stroke: #8aa2b8; }
      .key { fill: #43331a; stroke: #e0aa4e; }
      .line { stroke: #8aa2b8; }
      .tip { fill: #8aa2b8; }
      text { fill: #e8eef4; }
      .small { fill: #b3c1cd; }
    }
  </style>
  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
    orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>
"""


@dataclass
class Drawing:
    """Shapes on a page of a width and a height, in pixels."""

    width: int
    height: int
    title: str
    shapes: list[str] = field(default_factory=list)

    def box(self, x: int, y: int, w: int, h: int, *lines: str, kind: str = "box") -> None:
        """A box with its first line in normal and the others in small letters."""
        self.shapes.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>'
        )
        top = y + h / 2 + 5 - 9 * (len(lines) - 1)
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + 18 * number, line, "small" if number else "")

    def text(self, x: float, y: float, line: str, kind: str = "small") -> None:
        """A line of text, its middle at x."""
        look = f' class="{kind}"' if kind else ""
        self.shapes.append(f'<text{look} x="{x:g}" y="{y:g}">{escape(line)}</text>')

    def arrow(self, *points: tuple[int, int]) -> None:
        """A line through points, with a tip at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.shapes.append(f'<polyline class="line" points="{path}"/>')

    def svg(self) -> str:
        """The file."""
        body = "\n".join(f"  {shape}" for shape in self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n'
            f"  <title>{escape(self.title)}</title>\n{STYLE}"
            f'  <rect class="page" width="{self.width}" height="{self.height}" rx="8"/>\n'
            f"{body}\n</svg>\n"
        )


def words() -> Drawing:
    """Precision, recipe, run, study, law."""
    d = Drawing(760, 300, "Precision and recipe make a run, runs a study, a study a law")
    d.box(20, 24, 170, 62, "precision", "to what: E2M1, block 32", kind="key")
    d.box(20, 114, 170, 62, "recipe", "where and how: P2, P4, P6", kind="key")
    d.box(20, 204, 170, 72, "and", "model, tokens, text,", "optimizer, seed")
    d.box(270, 104, 130, 82, "run", "one training,", "one result.json", kind="key")
    d.box(450, 104, 130, 82, "study", "many runs,", "a union of products", kind="key")
    d.box(630, 104, 110, 82, "law", "loss from", "N, D, E, M, B", kind="key")
    for y in (55, 145, 240):
        d.arrow((190, y), (230, y), (230, 145), (270, 145))
    d.arrow((400, 145), (450, 145))
    d.arrow((580, 145), (630, 145))
    d.text(335, 210, "lowbit-train")
    d.text(515, 210, "lowbit-train -m")
    d.text(685, 210, "lowbit-fit")
    d.text(685, 228, "lowbit-report")
    return d


def operands() -> Drawing:
    """Three matrix products of a linear layer and their six operands."""
    d = Drawing(754, 286, "The six operands of a linear layer: P1 to P6")
    products = (
        ("output", "Y = X Wᵀ", ("P1", "input X"), ("P2", "weight W"), "in_features"),
        ("grad_input", "dX = dY W", ("P3", "gradient dY"), ("P4", "weight W"), "out_features"),
        ("grad_weight", "dW = dYᵀ X", ("P5", "gradient dY"), ("P6", "input X"), "batch x sequence"),
    )
    for column, (name, formula, left, right, axis) in enumerate(products):
        x = 20 + 245 * column
        for offset, operand in ((0, left), (118, right)):
            d.box(x + offset, 24, 106, 52, *operand, kind="key")
            d.arrow((x + offset + 53, 76), (x + offset + 53, 104))
            d.box(x + offset, 104, 106, 52, "rotate, round", "or leave it")
            d.arrow((x + offset + 53, 156), (x + offset + 53, 190))
        d.box(x, 190, 224, 52, formula, f"recipe.{name}")
        d.text(x + 112, 264, f"sums along {axis}")
    return d


def value() -> Drawing:
    """The way of a value from the command line to a GEMM, and of the loss back to the law."""
    d = Drawing(868, 330, "From the command line to the GEMM, and from the loss to the law")
    there = (
        ("lowbit-train", "precision.mantissa=2"),
        ("TrainConfig", "checked as a whole"),
        ("QuantLinear", "in every block"),
        ("quantize", "scale, round, unscale"),
        ("GEMM", "on numbers of the grid"),
    )
    back = (
        ("fit, page", "parameters, intervals"),
        ("law", "one function"),
        ("table", "a row per run"),
        ("result.json", "written once"),
        ("validation loss", "nats per token"),
    )
    for number, (one, other) in enumerate(zip(there, back, strict=True)):
        x = 15 + 172 * number
        d.box(x, 50, 150, 72, *one, kind="key" if number == 0 else "box")
        d.box(x, 210, 150, 72, *other, kind="key" if number == 0 else "box")
        if number:
            d.arrow((x - 22, 86), (x, 86))
            d.arrow((x, 246), (x - 22, 246))
    d.arrow((778, 122), (778, 210))
    d.text(434, 30, "experiments/ trains, and may import torch")
    d.text(434, 312, "fitting/ reads records and tables, and never imports torch")
    d.text(700, 170, "thousands of steps")
    return d


def law() -> Drawing:
    """From a format's error on normal data to the parameters that are left and the loss."""
    d = Drawing(868, 250, "From the error of a format to what is left of the parameters")
    steps = (
        ("format", "grid, scale, rounding"),
        ("error e", "|x − Q(x)|² / |x|²"),
        ("noise s", "e / (1 − e)"),
        ("signal ρ", "1 / (1 + c s), a factor"),
        ("N ρ", "parameters left"),
    )
    for number, (name, what) in enumerate(steps):
        x = 15 + 172 * number
        d.box(x, 50, 150, 66, name, what, kind="key" if name in ("error e", "N ρ") else "box")
        if number:
            d.arrow((x - 22, 83), (x, 83))
    d.text(176, 30, "computed from the format, on normal data")
    d.text(606, 30, "fitted: one constant c for every format and operand")
    examples = (
        ("E2M1, blocks of 32", "0.0102", "0.0103", "0.76", "0.58 N"),
        ("E1M1, blocks of 32", "0.0513", "0.0541", "0.38", "0.15 N"),
        ("E2M3, blocks of 32", "0.000588", "0.000589", "0.98", "0.97 N"),
    )
    for row, cells in enumerate(examples):
        for number, cell in enumerate(cells):
            d.text(90 + 172 * number, 150 + 24 * row, cell)
    d.text(434, 236, "c = 30, weights and inputs of the forward pass in the same format")
    return d


DRAWINGS = {"words": words, "operands": operands, "value": value, "law": law}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
