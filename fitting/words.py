"""Numbers, counts and durations in words: on pages, in figures, in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np

Words: TypeAlias = Callable[[float], str]
Bounds: TypeAlias = Sequence[float | None] | None


class Cell(Protocol):
    """Anything with a size and a token count."""

    params: float
    tokens: float


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits, or a dash if there is no number.

    >>> number(0.23681), number(68973.06), number(None), number(-2.5e-7)
    ('0.2368', '68,970', '–', '−2.5×10⁻⁷')
    """
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = int(np.floor(np.log10(abs(value))))
    if not -4 <= exponent < 7:
        power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"{value / 10.0**exponent:.{digits}g}×10{power}"
    elif exponent >= digits - 1:
        text = f"{float(f'{value:.{digits}g}'):,.0f}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference with its sign: '+0.0921', '−0.0040'; a zero has a plus.

    >>> signed(0.0921), signed(-0.004), signed(-1e-9), signed(float("nan"))
    ('+0.0921', '−0.0040', '+0.0000', '–')
    """
    if value is None or not np.isfinite(value):
        return "–"
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def z_score(value: float | None) -> str:
    """One decimal, cut and not rounded: 2.99 must not read as a 3.0 from which one could tell.

    >>> z_score(2.99), z_score(-12.34), z_score(-0.01)
    ('2.9', '−12.3', '0.0')
    """
    if value is None or not np.isfinite(value):
        return "–"
    return f"{np.trunc(round(value, 6) * 10) / 10 + 0.0:.1f}".replace("-", "−")


def interval(bounds: Sequence[float | None] | None, digits: int = 3) -> str:
    """'0.21 to 0.27', or a dash if a bound is missing."""
    if bounds is None or any(bound is None or not np.isfinite(bound) for bound in bounds):
        return "–"
    return f"{number(bounds[0], digits)} to {number(bounds[1], digits)}"


def series(words: Iterable[str]) -> str:
    """Words joined as in a sentence.

    >>> series(["a", "b", "c"]), series(["a"])
    ('a, b and c', 'a')
    """
    listed = list(words)
    return listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + f" and {listed[-1]}"


def duration(seconds: float) -> str:
    """A duration in words.

    >>> duration(40), duration(1314), duration(40_000)
    ('40 s', '22 min', '11.1 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plural(count: int, word: str) -> str:
    """'1 run', '2 runs'."""
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def where(cell: Cell) -> str:
    """A cell's size and tokens in words."""
    return at(cell.params, cell.tokens)


def at(params: float, tokens: float) -> str:
    """A size and a token count in words."""
    return f"{count_label(params)} parameters and {count_label(tokens)} tokens"


def count_label(value: float) -> str:
    """98304 -> "98.3k": parameters and tokens, three digits.

    >>> count_label(98304), count_label(1_000_000), count_label(1.2e9), count_label(3.9e11)
    ('98.3k', '1M', '1.2B', '390B')
    """
    if not np.isfinite(value):
        return "–"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,600 rounds to 1000k: let it be 1M
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def whole(value: float) -> str:
    """A count of bits or of a block's elements: '4', '9132'."""
    return f"{value:.4g}"


def percent(share: float | None, *, sign: bool = False) -> str:
    """A share of the loss in percent, two digits, or a dash if there is no share.

    >>> percent(0.00214), percent(-0.0131, sign=True), percent(0.0, sign=True), percent(None)
    ('0.21 %', '−1.3 %', '0 %', '–')
    """
    if share is None:
        return "–"
    plus = "+" if sign and share > 0 else ""
    return f"{plus}{number(100 * share, 2)} %"


def open_interval(bounds: Sequence[float | None] | None) -> str:
    """'0.21 to 0.27', or '0.21 to ∞'; a dash for no interval."""
    if bounds is None or all(bound is None for bound in bounds):
        return "–"
    low, high = bounds
    start, end = (number(bound, 3) for bound in bounds)
    return f"{'−∞' if low is None else start} to {'∞' if high is None else end}"


BEYOND = "extrapolated"
"""The word for a conclusion that no run has tested."""


def between(value: float | None, bounds: Bounds, words: Words) -> str:
    """A value with its interval: "1.58 (1.41 to 1.73)"; a dash for no value."""
    if value is None:
        return "–"
    ends = interval_of(bounds, words)
    return words(value) if ends == "–" else f"{words(value)} ({ends})"


def interval_of(bounds: Bounds, words: Words) -> str:
    """An interval in words, open where it is infinite: "0.4T to ∞"."""
    low, high = bounds or (None, None)
    if low is None:
        return "–"
    return f"{words(low)} to {'∞' if high is None else words(high)}"


def three_digits(value: float) -> str:
    """Three significant digits."""
    return number(value, 3)


def decimals(value: float | None, bounds: Bounds, places: int = 2) -> str:
    """A value with its interval in this many decimals."""
    return between(value, bounds, lambda x: f"{x:.{places}f}".replace("-", "−"))


def count(value: float | None) -> str:
    """A count with its unit, or as a power of ten where there is no unit."""
    if value is None:
        return "–"
    return count_label(value) if value < 1e15 else number(value, 3)


def by_share(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    """Names with their shares, the largest first."""
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


def share_words(shares: Mapping[str, float], most: int | None = None) -> str:
    """Names with their shares in percent, those of half a percent or more; else a dash."""
    listed = by_share(shares)[:most]
    return (
        ", ".join(f"{name} {100 * share:.0f} %" for name, share in listed if share >= 0.005) or "–"
    )
