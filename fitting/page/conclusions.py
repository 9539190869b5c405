"""What follows from a fit, as tables of words: the same in the terminal and on the page.

Each function takes fit.json and gives its table, or None where the law or the data do not support
it.  A row that goes beyond the data says so in a column of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fitting.analysis.trades import cost_formula
from fitting.page.tables import View, flat
from fitting.words import BEYOND, count_label, interval, number

Fit = Mapping[str, Any]
"""fit.json as read."""
Words = Callable[[float], str]

BEYOND_COLUMN = ("beyond data?", "")


def views(fit: Fit) -> list[View]:
    """All conclusions of a fit that there are, in the order in which they are reported."""
    fit = {"derived": {}, **fit}
    made = (
        layouts(fit), cost_of_bits(fit), cost_of_precision(fit), efficiencies(fit),
        critical_tokens(fit), bits_for_tokens(fit), bits_for_params(fit), bits_jointly(fit),
        equivalent_blocks(fit), crossovers(fit), precision_map(fit), single_values(fit),
    )  # fmt: skip
    return [view for view in made if view is not None]


def layouts(fit: Fit) -> View | None:
    """The optimal exponent/mantissa split by bits."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        shares = sorted(row["shares"].items(), key=lambda item: (-item[1], item[0]))
        listed = [f"{name} {100 * share:.0f} %" for name, share in shares[:2] if share >= 0.005]
        ties = [name for name in row["near_ties"] if name != row["layout"]][:2]
        return [
            str(row["bits"]),
            row["layout"],
            ", ".join(listed) or "–",
            _decimals(row["exponent_opt"], row["exponent_interval"]),
            _decimals(row["mantissa_opt"], row["mantissa_interval"]),
            _decimals(row["ratio"], row["ratio_interval"]),
            ", ".join(ties) or "–",
        ]

    return _view(
        fit, "layouts", "Best exponent/mantissa split", fit["derived"].get("layouts"), cells,
        "bits# | best | share of draws | exponent bits# | mantissa bits# | E:M# | near-ties",
        "Best: the whole-bit split with the smallest precision term. Exponent and mantissa bits as "
        "real numbers, and their ratio: the law's optimum with 95 % intervals. Near-ties lie "
        "within 1.25 times the best precision term.",
    )  # fmt: skip


def cost_of_bits(fit: Fit) -> View | None:
    """How many more parameters or tokens so few bits cost."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [str(row["bits"]), row["format"], *_costs(row, ("params_factor", "tokens_factor"))]

    rows = fit["derived"].get("cost_of_bits")
    return _view(
        fit, "cost_of_bits", "What bits cost at equal loss", rows, cells,
        "bits# | best split | effective parameters# | more parameters# | more tokens#",
        f"{_at(rows)}Effective parameters: the share of its parameters with which an unquantized "
        "model does as well. More parameters, or more tokens: either makes up for the bits.",
    )  # fmt: skip


def cost_of_precision(fit: Fit) -> View | None:
    """The same for each format, or choice of bits, that the table holds."""
    rows = fit["derived"].get("cost_of_precision")
    if not rows:
        return None
    factors = [key for key in ("params_factor", "tokens_factor") if key in rows[0]]
    blocks = "block_size" in rows[0]

    def cells(row: Mapping[str, Any]) -> list[str]:
        block = [number(row["block_size"], 3)] if blocks else []
        return [row["format"], *block, *_costs(row, factors)]

    titles = {"params_factor": "more parameters#", "tokens_factor": "more tokens#"}
    header = ["format", *(["block size#"] if blocks else [])]
    header += ["effective parameters#", *(titles[key] for key in factors)]
    note = "Effective parameters: the share of its parameters with which an unquantized model "
    note += "does as well."
    if factors:
        note += " More parameters, or more tokens: either makes up for the format."
    title = "What each format costs"
    view = _view(fit, "cost_of_precision", title, rows, cells, " | ".join(header), note)
    return _grouped(
        view,
        [
            f"{count_label(row['params'])} parameters, {count_label(row['tokens'])} tokens"
            for row in rows
        ],
    )


def efficiencies(fit: Fit) -> View | None:
    """eff_N and eff_D by scheme (Castro et al. 2505.14669)."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        factor = "params_factor" if row["pass"] == "forward" else "tokens_factor"
        share = _decimals(row["efficiency"], row["efficiency_interval"], 3)
        both = [_factor(row[factor], row[f"{factor}_interval"]), "–"]
        return [
            row["scheme"],
            row["pass"],
            share,
            *(both if factor == "params_factor" else both[::-1]),
        ]

    return _view(
        fit, "efficiencies", "Efficiency by scheme", fit["derived"].get("efficiencies"), cells,
        "scheme | pass | efficiency# | more parameters# | more tokens#",
        "Efficiency: the share of parameters (forward pass, eff_N) or of tokens (backward pass, "
        "eff_D) that the scheme is worth. More parameters, or more tokens: what makes up for it.",
    )  # fmt: skip


def critical_tokens(fit: Fit) -> View | None:
    """Token counts beyond which more data raise the loss."""
    rows = fit["derived"].get("critical_tokens")
    blocks = bool(rows) and "block_size" in rows[0]

    def cells(row: Mapping[str, Any]) -> list[str]:
        block = [number(row["block_size"], 3)] if blocks else []
        tokens = _count(row["tokens"]), _bounds(row["interval"], _count)
        return [count_label(row["params"]), row["format"], *block, *tokens]

    header = ["parameters#", "format", *(["block size#"] if blocks else [])]
    header += ["critical tokens#", "95 % interval#"]
    return _view(
        fit, "critical_tokens", "Critical data size", rows, cells, " | ".join(header),
        "Beyond this many training tokens the law says that more data raise the loss.",
    )  # fmt: skip


def bits_for_tokens(fit: Fit) -> View | None:
    """Compute-optimal bits where the data are given."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [_count(row["tokens"]), _bits(row)]

    return _view(
        fit, "bits_for_tokens", "Compute-optimal bits for given data",
        fit["derived"].get("optimal_precision", {}).get("fixed_tokens"), cells,
        "tokens# | best bits#",
        f"Whatever the cost: the rest of it, {cost_formula(fit['derived'])}, goes into parameters.",
    )  # fmt: skip


def bits_for_params(fit: Fit) -> View | None:
    """Compute-optimal bits where the size is given."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [
            count_label(row["params"]), number(row["cost"], 3), _count(row["tokens"]), _bits(row),
        ]  # fmt: skip

    return _view(
        fit, "bits_for_params", "Compute-optimal bits for a given size",
        fit["derived"].get("optimal_precision", {}).get("fixed_params"), cells,
        "parameters# | cost C# | tokens# | best bits#",
        f"{_costs_tried(fit)}; what the bits leave of it goes into tokens.",
    )  # fmt: skip


def bits_jointly(fit: Fit) -> View | None:
    """Compute-optimal bits, parameters and tokens."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        found = [
            _interval_too(row[key], row[f"{key}_interval"], _count) for key in ("params", "tokens")
        ]
        return [number(row["cost"], 3), _bits(row), *found]

    return _view(
        fit, "bits_jointly", "Compute-optimal bits, size and data together",
        fit["derived"].get("optimal_precision", {}).get("joint"), cells,
        "cost C# | best bits# | parameters# | tokens#",
        f"{_costs_tried(fit)}.",
    )  # fmt: skip


def equivalent_blocks(fit: Fit) -> View | None:
    """The block size that a scale per channel or tensor is worth."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        law = "–"
        if row.get("omega") is not None:
            pairs = (
                f"{name} {_interval_too(row[name], row[f'{name}_interval'], _three)}"
                for name in ("omega", "xi", "eta")
            )
            law = ", ".join(pairs)
        return [
            row["granularity"],
            _interval_too(row["log2_block"], row["interval"], _three),
            number(row["given"], 3),
            str(row["rows"]),
            "took the given size" if row["fitted"] else "did not use them",
            law,
        ]

    return _view(
        fit, "equivalent_blocks", "Block size that coarse scales are equivalent to",
        fit["derived"].get("equivalent_blocks"), cells,
        "a scale per | log2 B# | given log2 B# | runs# | the fit | log2 B = N^omega/(xi D^eta)",
        "Measured from the losses of these runs and the law. Sun et al. (2501.02423) find 13.16 "
        "per channel. A fit that took their given block size pulls the measurement towards it.",
    )  # fmt: skip


def crossovers(fit: Fit) -> View | None:
    """Where FP4 in both passes beats FP4 in the backward one."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        value = row["tokens_per_param"]
        words = "never" if value is None else "always" if value == 0 else number(value, 3)
        return [count_label(row["params"]), words, _bounds(row["interval"], _three)]

    derived = fit["derived"]
    return _view(
        fit, "crossovers", "From where FP4 pays in both passes", derived.get("crossovers"), cells,
        "parameters# | tokens per parameter# | 95 % interval#",
        "From so many tokens per parameter of the FP8:FP8 budget on, FP4 forward and backward "
        f"beats FP4 in the backward pass alone. {_speedups(derived)}",
    )  # fmt: skip


def precision_map(fit: Fit) -> View | None:
    """Which forward:backward precision wins at the table's budgets."""

    def cells(row: Mapping[str, Any]) -> list[str]:
        ranked = sorted(row["shares"].items(), key=lambda item: (-item[1], item[0]))
        shares = [f"{name} {100 * share:.0f} %" for name, share in ranked if share >= 0.005]
        ratio = number(row["tokens"] / row["params"], 3)
        return [count_label(row["params"]), ratio, row["best"], ", ".join(shares) or "–"]

    derived = fit["derived"]
    return _view(
        fit, "map", "Which forward:backward precision wins", derived.get("map"), cells,
        "parameters# | tokens per parameter# | best | share of draws",
        f"At the budget of an FP8:FP8 run of that size and length. {_speedups(derived)} A faster "
        "forward pass serves a larger model as cheaply, faster training sees more tokens.",
    )  # fmt: skip


def single_values(fit: Fit) -> View | None:
    """Conclusions that are one number."""
    names = {
        "optimal_bits": "optimal bits at any cost",
        "compute_optimal_exponent": "exponent of the compute-optimal size",
    }
    rows = [
        {"what": what, **fit["derived"][key]}
        for key, what in names.items()
        if key in fit["derived"]
    ]

    def cells(row: Mapping[str, Any]) -> list[str]:
        return [row["what"], number(row["value"], 3), interval(row["interval"])]

    return _view(
        fit, "conclusions", "Conclusions", rows, cells,
        "what | value# | 95 % interval#", "",
    )  # fmt: skip


# --- words ------------------------------------------------------------------------------------


def _view(
    fit: Fit,
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]] | None,
    cells: Callable[[Mapping[str, Any]], list[str]],
    header: str,
    note: str,
) -> View | None:
    """A table of `rows`, one line each; columns are parted by "|", "#" marks those of numbers."""
    if not rows:
        return None
    columns = [(c.strip().rstrip("#"), "num" * c.strip().endswith("#")) for c in header.split("|")]
    beyond = "extrapolated" in rows[0]
    text = [
        (
            "muted" if row.get("extrapolated") else "",
            cells(row) + ([BEYOND if row["extrapolated"] else ""] if beyond else []),
        )
        for row in rows
    ]
    header_row = columns + ([BEYOND_COLUMN] if beyond else [])
    return View(name, header_row, text, flat(rows), title, note)


def _grouped(view: View | None, headings: Sequence[str]) -> View | None:
    """The table with a heading before the first of the rows that share it."""
    if view is None:
        return None
    rows: list[tuple[str, list[str]]] = []
    for heading, before, row in zip(headings, ["", *headings], view.rows, strict=False):
        rows += [row] if heading == before else [("group", [heading]), row]
    return replace(view, rows=rows)


def _at(rows: Sequence[Mapping[str, Any]] | None) -> str:
    if not rows:
        return ""
    size, tokens = count_label(rows[0]["params"]), count_label(rows[0]["tokens"])
    block = number(rows[0]["block_size"], 3)
    return f"At {size} parameters, {tokens} tokens and blocks of {block} values. "


def _costs_tried(fit: Fit) -> str:
    formula = cost_formula(fit["derived"])
    at_16_bits = formula.removeprefix("C = ").replace("/16 P", "")
    return (
        f"Costs {formula} ({at_16_bits} at 16 bits), from a hundredth of the dearest quantized "
        "run's to a hundred times that"
    )


def _costs(row: Mapping[str, Any], factors: Sequence[str]) -> list[str]:
    share = _interval_too(row["effective_params"], row["effective_params_interval"], _share)
    return [share, *(_factor(row[key], row[f"{key}_interval"]) for key in factors)]


def _share(value: float) -> str:
    """Three decimals, or two digits of what would be lost in them: 0.785, 0.00014."""
    return f"{value:.3f}" if value >= 0.01 else number(value, 2)


def _factor(value: float | None, bounds: Sequence[float | None]) -> str:
    """How much more makes up, which may be no amount: "+30 % (+13 % to +80 %)".

    One unit for the value and its interval: times where any of them is two or more.
    """
    known = [x for x in (value, *bounds) if x is not None]
    in_times = any(x >= 2 for x in known)

    def more(factor: float) -> str:
        if in_times:
            return f"{number(factor, 3)} ×"
        percent = 100 * (factor - 1)
        return f"{'−' if percent < 0 else '+'}{number(abs(percent), 2)} %"

    if value is None:
        return "no amount" if bounds[0] is None else f"no amount (at least {more(bounds[0])})"
    return _interval_too(value, bounds, more)


def _bits(row: Mapping[str, Any]) -> str:
    """Optimal bits; at the end of the scale they are a bound and no optimum."""
    text = _decimals(row["bits"], row["bits_interval"])
    if row["clamped"]:
        unclamped = row["unclamped"]
        side = "at least" if unclamped is None or unclamped > row["bits"] else "at most"
        text = f"{side} {text}"
    return text


def _speedups(derived: Mapping[str, Any]) -> str:
    if "speedups" not in derived:
        return ""
    speed = derived["speedups"]
    return (
        f"Schemes: {derived['forward']} forward, {derived['backward']} backward; FP4 is taken to "
        f"be {number(speed['forward'], 3)} × as fast as FP8 forward and "
        f"{number(speed['backward'], 3)} × backward."
    )


def _three(value: float) -> str:
    return number(value, 3)


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return count_label(value) if value < 1e15 else number(value, 3)


def _decimals(value: float | None, bounds: Sequence[float | None] | None, decimals: int = 2) -> str:
    """A value with its interval: 1.58 (1.41 to 1.73)."""
    return _interval_too(value, bounds, lambda x: f"{x:.{decimals}f}".replace("-", "−"))


def _interval_too(value: float | None, bounds: Sequence[float | None] | None, words: Words) -> str:
    if value is None:
        return "–"
    between = _bounds(bounds, words)
    return words(value) if between == "–" else f"{words(value)} ({between})"


def _bounds(bounds: Sequence[float | None] | None, words: Words) -> str:
    """An interval, open where it is infinite: "0.4T to ∞"."""
    low, high = bounds or (None, None)
    if low is None:
        return "–"
    return f"{words(low)} to {'∞' if high is None else words(high)}"
