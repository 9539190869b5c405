"""What a study found, in sentences made from its numbers.

No sentence here calls a difference real unless `fitting.seeds.verdicts` does.  Differences that
cannot be told, and parameters that cannot be pinned, are named as plainly as the others.
Differences are losses above `none`, the unquantized run, in nats per token; ± is one standard error
from the spread between seeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fitting.analysis.chinchilla import COMPUTE_OPTIMAL_EXPONENT
from fitting.analysis.costs import COST_OF_BITS
from fitting.analysis.layouts import LAYOUTS
from fitting.figures.interaction import within
from fitting.fit.fit_file import SavedFit
from fitting.law.conclusion import UNKNOWN, Derived, Interval, Number
from fitting.laws.catalogue import LAWS
from fitting.naming import TableRow, records
from fitting.seeds.interaction import most_measured
from fitting.seeds.verdicts import BETTER, WORSE, enough
from fitting.words import at, count_label, interval, number, series, signed, where, z_score

SMALL_MODEL = 1_000_000
"""Parameters below which absolute constants say nothing about the papers' models."""
PINNED, ROUGHLY = 2.0, 10.0
"""A parameter is pinned, or known roughly, if its 95 % interval spans at most this factor."""
NEAR_CERTAIN = 0.95
FEW = 4
"""Conditions that are listed one by one; more are summed up."""
_NONE = re.compile(r"\b(?:than|from|above) none\b")


def pooled(cells: pd.DataFrame) -> tuple[float, float, float]:
    """Mean difference over conditions, its standard error (of independent means) and z."""
    mean = float(cells["difference"].mean())
    error = float(np.sqrt((cells["standard_error"] ** 2).sum(skipna=False)) / len(cells))
    return mean, error, mean / error if error > 0 else float("nan")


def needed(cells: pd.DataFrame) -> float:
    """|z| from which the mean of these cells' differences counts as a difference."""
    return float(enough(cells["dof"].min()))


def verdict_words(cells: pd.DataFrame) -> str:
    """How large a difference must be for a verdict on these cells.

    >>> verdict_words(pd.DataFrame({"dof": [16, 16, 9]}))[:54]
    'A verdict needs 3.54 standard errors (16 degrees of fr'
    """
    each = sorted({int(dof) for dof in cells["dof"] if dof > 0}, reverse=True)
    if not each:
        return "No verdict is possible without repeated seeds."
    listed = series(f"{enough(dof):.3g} standard errors ({dof} degrees of freedom)" for dof in each)
    return (
        f"A verdict needs {listed}, by Student's t: a false alarm is then as rare (0.27 %) as at "
        "three standard errors if these were known exactly. The standard errors come from the "
        "spread between seeds, pooled over repeated cells, of sizes apart where these scatter "
        "differently."
    )


def lowest_bits(cells: pd.DataFrame) -> tuple[list[str], list[str]]:
    """How much worse than `none` each lowest-bit format is.

    Args:
        cells: Quantized cells: `format`, `bits`, `params`, `tokens`, `difference`,
            `standard_error`, `dof`, `z`, `verdict`.

    Returns:
        One sentence per format on its mean over sizes and tokens; then, where these are several
        but not many, one sentence per format that lists them.
    """
    means: list[str] = []
    details: list[str] = []
    bits = cells["bits"].min()
    lowest = cells[cells["bits"] == bits]
    if lowest["format"].nunique() > FEW:
        return [_many_lowest(lowest)], details
    for name, group in lowest.groupby("format", sort=True):
        what = f"{name} ({bits:.0f} bits)"
        mean, error, z = pooled(group)
        over = f" at {where(group.iloc[0])}"
        if len(group) > 1:
            over = f", averaged over {len(group)} combinations of size and token count"
        if not np.isfinite(z):
            means.append(
                f"{what} differs from none by {signed(mean)} nats per token{over}; without "
                "repeated seeds this study cannot say whether that is real."
            )
            continue
        amount = (
            f"{number(abs(mean), 3)} ± {number(error, 2)} nats per token (z = {z_score(z)}){over}"
        )
        if abs(z) >= needed(group):
            sentence = f"{what} is {WORSE if z > 0 else BETTER} than none by {amount}"
        else:
            side = "above" if mean >= 0 else "below"
            sentence = f"{what} cannot be told from none: it ends {side} it by {amount}"
        if len(group) > 1:
            told = int((group["verdict"] == WORSE).sum())
            sentence += f"; taken one by one, it is worse in {told} of {len(group)}"
        means.append(sentence + ".")
        if 1 < len(group) <= FEW and lowest["format"].nunique() <= 2:
            each = [
                f"{signed(c.difference, 3)} ± {number(c.standard_error, 2)} "
                f"(z = {z_score(c.z)}) at {where(c)}"
                for c in records(group)
            ]
            details.append(f"{name} one by one: {'; '.join(each)}.")
    return means, details


def _many_lowest(lowest: pd.DataFrame) -> str:
    """One sentence on all lowest-bit formats, where they are too many to list one by one."""
    each = {name: pooled(group) for name, group in lowest.groupby("format", sort=True)}
    means = [mean for mean, _, _ in each.values()]
    start = (
        f"The {len(each)} formats of {lowest['bits'].min():.0f} bits, the fewest, differ from none "
        f"by {signed(min(means), 3)} to {signed(max(means), 3)} nats per token, averaged over "
        "sizes and tokens; "
    )
    if not np.isfinite([z for _, _, z in each.values()]).any():
        return f"{start}without repeated seeds this study cannot say whether that is real."
    limit = needed(lowest)
    worse = [str(name) for name, (_, _, z) in each.items() if z >= limit]
    if not worse:
        return f"{start}not one of them can be told from it."
    return f"{start}worse by more than {limit:.1f} standard errors: {series(worse)}."


def not_told_apart(cells: pd.DataFrame, order: Sequence[str]) -> str:
    """Which formats cannot be told from `none`, by name; columns as in `lowest_bits`."""
    if not np.isfinite(cells["z"].astype(float)).any():
        return "Without repeated seeds no format at all can be told from none."
    everywhere, partly = [], []
    for name in order:
        group = cells[cells["format"] == name]
        open_ = group[~group["verdict"].isin([WORSE, BETTER])]
        if len(group) and len(open_) == len(group):
            everywhere.append(name)
        elif len(open_):
            partly.append(f"{name} ({len(open_)} of {len(group)})")
    if not everywhere and not partly:
        return "Every format can be told from none in every combination of size and token count."
    sentences = []
    if everywhere:
        listed = series(everywhere)
        sentences.append(f"Cannot be told from none at any size or token count: {listed}.")
    if partly:
        listed = series(partly)
        sentences.append(f"Cannot be told from none at some sizes and token counts: {listed}.")
    return " ".join(sentences)


def order_by_bits(cells: pd.DataFrame) -> str | None:
    """Whether the mean difference falls with bits, over the conditions that hold every width."""
    widths = cells["bits"].nunique()
    counts = cells.groupby(["params", "tokens"])["bits"].transform("nunique")
    complete = cells[counts == widths]
    if widths < 2 or complete.empty:
        return None
    means = complete.groupby(["bits", "params", "tokens"])["difference"].mean()
    by_bits = means.groupby("bits").mean()
    steps = np.diff(by_bits.to_numpy(float))
    verdict = "falls at every step" if (steps < 0).all() else "does not fall at every step"
    listed = series(f"{signed(v, 3)} at {b:.0f} bits" for b, v in by_bits.items())
    return (
        f"With more bits, the mean difference from none {verdict}: {listed} "
        "(means over formats, sizes and tokens; neighbours may differ by no more than the noise)."
    )


def pinned(fit: SavedFit) -> dict[str, str]:
    """How well the study knows each parameter of the law.

    Returns:
        For each parameter "yes" (the 95 % interval spans at most a factor `PINNED`), "roughly"
        (at most a factor `ROUGHLY`), "no" (more, or not identified), "held fixed", or "unknown"
        (identified, but without an interval).
    """
    result = {}
    for name in fit.parameters:
        low, high = fit.interval(name)
        if name in fit.frozen:
            result[name] = "held fixed"
        elif fit.identified.get(name) is False:
            result[name] = "no"
        elif low is None or high is None:
            result[name] = "unknown"
        else:  # parameters of the laws are positive or zero
            factor = high / low if low > 0 else np.inf
            result[name] = "yes" if factor <= PINNED else "roughly" if factor <= ROUGHLY else "no"
    return result


def parameters_pinned(fit: SavedFit) -> list[str]:
    """Which parameters of the law the study pins, with intervals, and which it cannot."""
    words = pinned(fit)

    def listed(kind: str) -> str:
        return series(
            f"{name} = {number(fit.parameters[name])}"
            + (f" ({interval(fit.interval(name))})" if kind in ("yes", "roughly") else "")
            for name, word in words.items()
            if word == kind
        )

    kinds = set(words.values())
    sentences = []
    if "yes" in kinds:
        sentences.append(
            "Pinned by this study, with 95 % intervals that span at most a factor of "
            f"{PINNED:.0f}: {listed('yes')}."
        )
    if "roughly" in kinds:
        sentences.append(f"Known only roughly, with 95 % intervals: {listed('roughly')}.")
    if "no" in kinds:
        names = series(name for name, word in words.items() if word == "no")
        sentences.append(
            f"This study cannot pin {names}: other values, far from those printed here, fit its "
            "losses about as well."
        )
    if "held fixed" in kinds:
        sentences.append(f"Held fixed and not fitted: {listed('held fixed')}.")
    if "unknown" in kinds:
        names = series(name for name, word in words.items() if word == "unknown")
        sentences.append(f"Without a bootstrap nothing is known about the precision of {names}.")
    if fit.status != "converged":
        sentences.append(f"The fit did not end cleanly: {fit.status}.")
    return sentences


def compute_optimal(fit: SavedFit) -> str | None:
    """The exponent of the compute-optimal size, where the fit gives one."""
    found = fit.concluded.of(COMPUTE_OPTIMAL_EXPONENT)
    if found is None or found.value is None:
        return None
    return (
        f"Compute-optimal size grows as compute to the power {number(found.value, 3)} "
        f"(95 % interval {interval(found.interval)}), as far as the law holds."
    )


def best_layouts(fit: SavedFit) -> str | None:
    """The best exponent/mantissa split at each trained width, with its share of the draws."""
    inside = [row for row in fit.concluded.of(LAYOUTS) or [] if not row.extrapolated]
    if not inside:
        return None
    unknown = [name for name in ("delta", "nu") if fit.identified.get(name) is False]
    shares = [row.shares.get(row.layout) for row in inside]
    listed = series(
        f"{row.layout} at {row.bits} bits" + (f" ({100 * s:.0f} % of draws)" if s else "")
        for row, s in zip(inside, shares, strict=True)
    )
    sure = all(share is not None and share >= NEAR_CERTAIN for share in shares)
    sentence = f"Best split of the bits according to the fit: {listed}."
    if unknown:
        pin = f"the study cannot pin {series(unknown)}"
        return f"{sentence} {pin[0].upper()}{pin[1:]}, so this is not yet a finding about layouts."
    if not sure:
        sentence += f" Where the share is below {100 * NEAR_CERTAIN:.0f} %, the split is open."
    return sentence


def cost_of_fewest_bits(fit: SavedFit) -> str | None:
    """The cost of the fewest trained bits at equal loss, in parameters and in tokens."""
    inside = [
        row
        for row in fit.concluded.of(COST_OF_BITS) or []
        if not row.extrapolated and row.params_factor and row.tokens_factor
    ]
    if not inside:
        return None
    row = inside[0]

    def more(factor: Number, bounds: Interval | None, what: str) -> str:
        low, high = bounds or UNKNOWN
        between = "" if low is None else f" ({number(low, 3)} to {number(high, 3)})"
        return f"{number(factor, 3)} times{between} the {what}"

    return (
        f"By the fit, the loss from {row.bits} bits ({row.format}) at "
        f"{at(row.params, row.tokens)} is made up for by "
        f"{more(row.params_factor, row.params_factor_interval, 'parameters')} or "
        f"{more(row.tokens_factor, row.tokens_factor_interval, 'tokens')}."
    )


def not_concluded(fit: SavedFit | None) -> list[str]:
    """What the page cannot say, and what would be needed to say it."""
    law = LAWS["floating_point"] if fit is None else fit.model
    concluded = Derived() if fit is None else fit.concluded
    missing = [c.missing for c in law.conclusions if c.missing and not concluded.of(c)]
    if missing or concluded.values or any(c.missing for c in law.conclusions):
        return missing
    return ["No conclusions: the data do not determine what they rest on."]


def splits_by_factor(found: pd.DataFrame) -> str:
    """Whether the better split depends on the recipe or the scale; "" where that was not measured.

    Said of the pair of splits with the most runs, and first of the factor that changes it most.
    """
    if found.empty or not np.isfinite(found["low"]).any():
        return ""
    rows = records(most_measured(found))
    first, second = rows[0].first, rows[0].second
    told = {
        "better": f"{first} is better", "worse": f"{second} is better", "cannot tell": "undecided",
    }  # fmt: skip

    def words(row: TableRow) -> str:
        return f"{row.difference:+.4f} ({row.low:+.4f} to {row.high:+.4f})"

    said = []
    for factor in dict.fromkeys(row.factor for row in rows):
        mine = [row for row in rows if row.factor == factor]
        alone, changes = ([r for r in mine if bool(r.against) == kind] for kind in (False, True))
        listed = series(
            f"{row.at} {words(row)}, {told.get(row.verdict, row.verdict)}" for row in alone
        )
        real = [row for row in changes if row.verdict in ("better", "worse")]
        largest = max((abs(row.difference) for row in real), default=0.0)
        moved = [f"{row.at} instead of {row.against} {words(row)}" for row in real]
        limit = max(max(abs(row.low), abs(row.high)) for row in changes)
        if scales := within(mine[0]):  # one of several: only what it changes
            begin = f"With {scales} the recipe changes it"
            sentence = (
                f"{begin}: {series(moved)}."
                if real
                else f"{begin} by no more than {limit:.4f}, if at all."
            )
        elif real:
            sentence = f"By {factor}: {listed}; the {factor} changes it: {series(moved)}."
        else:
            sentence = (
                f"By {factor}: {listed}; no change with the {factor} was shown, and none beyond "
                f"{limit:.4f} is likely."
            )
        said.append((bool(scales), largest, sentence))
    said.sort(key=lambda each: (each[0], -each[1]))
    begin = f"At {rows[0].bits} bits {second} loses more than {first}, in nats per token. "
    return begin + " ".join(sentence for *_, sentence in said)


def leads(fit: SavedFit) -> str:
    """The sentences that a law's conclusions put at the head of a page."""
    said = []
    for conclusion in fit.model.conclusions:
        value = fit.concluded.of(conclusion)
        if conclusion.lead is not None and value is not None:
            said.append(conclusion.lead(value))
    return " ".join(said)


def measured_layouts(layouts: pd.DataFrame) -> str | None:
    """Splits of one width as measured (`seeds.compare_layouts`), to set beside those of a fit."""
    if layouts.empty:
        return None
    told = layouts[layouts["verdict"] == "better"]
    open_ = layouts[layouts["verdict"] != "better"]
    sentences = []
    if len(told):
        listed = series(
            f"{row.better} beats {row.other} by {_give_or_take(row)}" for row in told.itertuples()
        )
        sentences.append(f"Measured at equal bits and seeds: {listed} nats per token.")
    if len(open_):
        listed = series(
            f"{row.better} and {row.other} ({_give_or_take(row)})" for row in open_.itertuples()
        )
        sentences.append(
            f"At equal bits and seeds the runs themselves cannot tell apart {listed}; "
            "a fit that prefers one of them does so because of the law's form."
        )
    return " ".join(sentences)


def _give_or_take(pair: TableRow) -> str:
    """A difference with its standard error, if there are repeats to compute it from."""
    error = f" ± {pair.standard_error:.3f}" if np.isfinite(pair.standard_error) else ""
    return f"{pair.difference:.3f}{error}"


def with_none_defined(sentences: Sequence[str]) -> list[str]:
    """The sentences, with the word none explained where they first use it.

    >>> with_none_defined(["E1M0 is worse than none by 0.5.", "E2M1 cannot be told from none."])
    ['E1M0 is worse than none (the unquantized run) by 0.5.', 'E2M1 cannot be told from none.']
    """
    result = list(sentences)
    for i, sentence in enumerate(result):
        if match := _NONE.search(sentence):
            end = match.end()
            result[i] = f"{sentence[:end]} (the unquantized run){sentence[end:]}"
            break
    return result


def small_model(table: pd.DataFrame) -> str | None:
    """A warning against comparing constants, if all models are small."""
    largest = float(table["params"].max())
    if not largest < SMALL_MODEL:
        return None
    return (
        f"The largest model has {count_label(largest)} parameters: absolute losses and constants "
        "on this page must not be compared with those in papers on models a thousand times larger."
    )
