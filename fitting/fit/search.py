"""Fits of a law to a results table, with warnings about what the table cannot tell.

    fit(table, "floating_point").parameters

Objective: the sum over rows of Huber's function of log L - log Lhat (delta as given), of its
absolute value (`lad`) or of half its square (`least_squares`).  The search for the optimum begins
at points spread over the parameters' ranges, which know nothing of the data but its median loss,
and takes Newton steps with exact derivatives (`fitting.fit.minimise`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fitting.fit.centred import Centred, representable
from fitting.fit.designs import doubts_of_design
from fitting.fit.minimise import at_bounds, minimise
from fitting.fit.problem import Mask
from fitting.fit.result import Fit, Objective, Rows, Starts
from fitting.law.curves import Array
from fitting.law.terms import LARGEST, FitError, Law
from fitting.laws.catalogue import get
from fitting.results.table import require_columns, select_rows

OBJECTIVES = ("huber", "lad", "least_squares")
LAD_DELTA = 1e-7
"""LAD is solved as Huber with this threshold, below any loss's precision: 1e-7 of the loss."""
WIDEST_DELTA = 0.1
"""The first threshold below least squares on the way down from a blind start."""
DELTA_FACTOR = 0.3
AGREE = 1e-6
"""Starts agree where their objectives differ by less than this share."""
EXACT_RESIDUAL = 1e-10
"""Residuals below which objectives differ by rounding only."""
SAME = 1e-9
"""Objectives that differ by less than this share are the same."""
ENOUGH_AGREEING = 0.95
ENOUGH_ROWS = 2
"""Rows per free parameter below which intervals are not to be trusted."""
FLAT = 1e-9
"""Singular values of the Jacobian below this share of the largest are flat directions."""
SMOOTH = 0.1
"""Share of the mean residual at which a warm start begins if its threshold lies far below."""
LONG = 4_000
"""Rows beyond which blind starts come down on part of them."""
VAGUE = 1.0
"""Standard error of log(parameter) beyond which it is not identified: a factor of e."""


def thresholds(objective: str, delta: float | None) -> list[float]:
    """Huber thresholds from least squares, where a blind start begins, down to the objective's."""
    if objective == "least_squares":
        return [math.inf, math.inf]
    path = [LAD_DELTA if delta is None or objective == "lad" else delta]
    while path[0] / DELTA_FACTOR < WIDEST_DELTA:
        path.insert(0, path[0] / DELTA_FACTOR)
    return [math.inf, *path]


def fit(
    table: pd.DataFrame,
    law: Law | str,
    *,
    objective: str = "huber",
    delta: float = 1e-3,
    overestimate: float = 1.0,
    freeze: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    weights: str | None = None,
    starts: int = 64,
    seed: int = 0,
    near: Sequence[Mapping[str, float]] = (),
) -> Fit:
    """Fit `law` to the finished rows of `table`.

    Args:
        table: One row per run: `loss` in nats per token, the law's columns, `status` if there is
            one (rows that are not finished do not count) and, if there are such columns, `corpus`,
            `compute_dtype`, `operand_values`, `operands` and `recipe`, which decide what may be
            pooled.
        law: A law, or the name of one of `fitting.laws.catalogue.LAWS`.
        objective: huber, lad (solved as Huber with a threshold of 1e-7) or least_squares, of
            log L - log Lhat, summed over rows.
        delta: Huber's threshold, in log loss: .001 is 0.1 % of the loss.
        overestimate: How many times a run counts that lies below the law.  Runs that were not well
            tuned lie above the law of those that were: with 10 the law goes along the lower edge.
        freeze: Parameters held at a value.
        bounds: Parameters held between two values, either of which may be infinite.
        weights: A column of non-negative weights, e.g. how many seeds a row averages; None weighs
            all rows alike.
        starts: Number of points from which the search begins.
        seed: Shifts the lattice of starts; the optimum should not depend on it.
        near: Parameters likely to be near the optimum, such as those of a fit to most of the same
            rows: a start besides the blind ones.

    Returns:
        The best optimum found, with status, warnings, and which parameters the table identifies.

    Raises:
        FitError: An unknown law, objective or parameter, impossible bounds, too few rows,
            values that the law is not defined for, or rows that cannot be pooled.
        ResultsError: A column is missing.
    """
    law = get(law) if isinstance(law, str) else law
    freeze, bounds = dict(freeze or {}), dict(bounds or {})
    _check_how(objective, delta, overestimate, starts)
    require_columns(table, ("loss", *law.columns, *law.schemes), f"law={law.name}")
    rows, excluded = select_rows(table)
    if (rows["loss"] >= LARGEST).any():
        raise FitError(f"loss: is up to {rows['loss'].max():g}, but must be below {LARGEST:g}")
    law = law.on(rows)
    law.check(freeze, "freeze.")
    weight = row_weights(rows, weights)
    counted = int((weight > 0).sum())
    _check_enough(law, counted, len(freeze), excluded)
    _refuse_pooling(rows)

    centred = Centred.of(law, rows, freeze, bounds, overestimate)
    path = thresholds(objective, delta)
    if centred.free:
        found = [_search(centred, rows, weight, path, starts, seed)]
        found += [_search_near(centred, weight, path, parameters) for parameters in near]
        ends = _Ends(*(np.concatenate(part) for part in zip(*found, strict=True)))
    else:
        ends = _Ends(np.empty((1, 0)), np.zeros(1), np.ones(1, dtype=bool))
    best, agreeing, rival = ends.best(len(rows) * EXACT_RESIDUAL**2)
    point, converged = ends.points[best], bool(ends.converged[best])

    log_predicted, jacobian = centred.problem.predict(point)
    residual = centred.problem.log_loss - log_predicted
    bound = at_bounds(centred.problem, point)
    parameters = representable(law, centred.decode(point)) | freeze
    root = np.sqrt(weight)
    flat, vague = _unidentified(
        centred, parameters, jacobian * root[:, None], residual * root, bound
    )
    at_bound = tuple(n for n, b in zip(centred.free, bound, strict=True) if b)
    status = "converged" if converged else "max_steps"
    if converged and at_bound:
        status = f"at_bound: [{', '.join(at_bound)}]"
    agreed = Starts(len(ends.values), agreeing)
    warnings = _warn_fit(agreed, status, at_bound, flat, vague)
    if counted < ENOUGH_ROWS * len(centred.free):
        warnings.append(
            f"{counted} rows for {len(centred.free)} free parameters: too few for intervals that "
            "can be trusted"
        )
    above = np.where(residual < 0, overestimate, 1.0)
    value = objective_value(residual, objective, delta, weight * above)
    how = Objective(
        objective,
        delta if objective == "huber" else None,
        value,
        None if overestimate == 1 else overestimate,
    )
    return Fit(
        law=law,
        parameters=parameters,
        objective=how,
        status=status,
        starts=agreed,
        rows=Rows(len(rows), excluded),
        frozen=tuple(freeze),
        at_bound=at_bound,
        flat=flat,
        identified={n: n not in {*at_bound, *flat, *vague} for n in law.parameters},
        residuals=pd.Series(residual, index=rows.index, name="residual"),
        warnings=(*warnings, *doubts_of_design(law, rows, freeze)),
        weights=weights,
        bounds=bounds,
        rival=None if rival is None else centred.decode(rival),
    )


def _check_how(objective: str, delta: float, overestimate: float, starts: int) -> None:
    if objective not in OBJECTIVES:
        raise FitError(f"objective={objective}: must be one of {', '.join(OBJECTIVES)}")
    if not (delta > 0 and math.isfinite(delta)):
        raise FitError(f"objective.delta={delta}: must be a positive number")
    if not (overestimate > 0 and math.isfinite(overestimate)):
        raise FitError(f"objective.overestimate={overestimate}: must be a positive number")
    if starts < 1:
        raise FitError(f"starts={starts}: must be at least 1")


def _check_enough(law: Law, rows: int, frozen: int, excluded: Mapping[str, int]) -> None:
    """Refuse to fit a law to fewer rows than one more than it has free parameters."""
    free = len(law.parameters) - frozen
    if rows <= free:
        reasons = ", ".join(f"{count} {reason}" for reason, count in excluded.items())
        raise FitError(
            f"law={law.name}: {rows} usable rows, but {free} free parameters need at "
            f"least {free + 1}{f' ({reasons})' if reasons else ''}; freeze some or add runs"
        )


@dataclass(frozen=True)
class _Ends:
    """The places where starts ended."""

    points: Array
    """[starts, free]"""
    values: Array
    """Objectives, [starts]"""
    converged: Mask
    """Whether steps sufficed, [starts]"""

    def best(self, slack: float) -> tuple[int, int, Array | None]:
        """The best end, how many starts agree on it, and the lowest of the other ends, if any.

        Of the starts at the optimum the first that converged: along a flat direction all are as
        good.

        Args:
            slack: By how much objectives may differ through rounding alone.
        """
        least = self.values.min()
        agreeing = self.values <= least * (1 + AGREE) + slack
        lowest = self.values <= least * (1 + SAME) + slack
        best = int((lowest & (self.converged | ~self.converged[lowest].any())).argmax())
        others = np.where(agreeing, np.inf, self.values)
        rival = None if agreeing.all() else self.points[others.argmin()]
        return best, int(agreeing.sum()), rival


def _search(
    centred: Centred, rows: pd.DataFrame, weight: Array, path: list[float], count: int, seed: int
) -> tuple[Array, Array, Mask]:
    """The ends of `count` blind starts: points, objectives, and whether steps sufficed.

    In a long table they come down on some of its rows, drawn by chance, and go on from there on all
    of them: the way down takes ten times as many steps as the end.
    """
    if len(rows) <= LONG:
        return minimise(centred.problem, centred.starts(count, seed), weight[None], path)
    some = np.random.default_rng(0).choice(len(rows), LONG, replace=False)
    weighed = centred.problem.overestimate
    rough = Centred.of(centred.law, rows.iloc[some], centred.frozen, centred.bounds, weighed)
    theta, _, _ = minimise(rough.problem, rough.starts(count, seed), weight[None, some], path)
    near = np.array([centred.encode(rough.decode(point)) for point in theta])
    return minimise(centred.problem, near, weight[None], path[-1:])


def _search_near(
    centred: Centred, weight: Array, path: list[float], parameters: Mapping[str, float]
) -> tuple[Array, Array, Mask]:
    """The end of one start at given parameters, which may be more than this law has."""
    own = {name: parameters[name] for name in centred.law.parameters}
    start = centred.encode(own | dict(centred.frozen))
    residual = centred.problem.log_loss - centred.problem.predict(start)[0]
    warm = warm_path(path, float(np.abs(residual).mean()))
    return minimise(centred.problem, start[None], weight[None], warm)


def warm_path(path: Sequence[float], residual: float) -> list[float]:
    """Huber thresholds for a start at which log residuals are already as small as `residual`.

    The objective's own, after those that come down to it from a tenth of the residuals: far below
    these most rows have no curvature, and Newton's steps come to nothing.
    """
    *before, last = path
    return [*(delta for delta in before if last < delta <= SMOOTH * residual), last]


def row_weights(rows: pd.DataFrame, column: str | None) -> Array:
    """The rows' weights, all one without a column.

    Raises:
        ResultsError: There is no such column.
        FitError: A weight is negative or not finite.
    """
    if column is None:
        return np.ones(len(rows))
    require_columns(rows, (column,), f"weights={column}")
    weights = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        first = rows[column].iloc[int(bad.argmax())]
        raise FitError(
            f"weights={column}: must be a number that is not negative, but is not in "
            f"{int(bad.sum())} of {len(rows)} rows (the first has {first})"
        )
    return weights


def objective_value(residual: Array, objective: str, delta: float, weights: Array) -> float:
    """The objective of log residuals, summed over rows with their weights."""
    size = np.abs(residual)
    rho = np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))
    if objective == "lad":
        rho = size
    if objective == "least_squares":
        rho = 0.5 * size**2
    return float((weights * rho).sum())


def in_coordinates(
    fitted: Fit, rows: pd.DataFrame, freeze: Mapping[str, float] | None = None
) -> Centred:
    """A fit's law on rows in the solver's coordinates, with its bounds and what it holds.

    Args:
        fitted: The fit.
        rows: One row per run, as `select_rows` returns them.
        freeze: Parameters to hold besides those that are frozen.
    """
    held = {name: fitted.parameters[name] for name in fitted.frozen} | dict(freeze or {})
    bounds = {name: ends for name, ends in fitted.bounds.items() if name not in held}
    return Centred.of(fitted.law, rows, held, bounds, fitted.objective.times)


def _refuse_pooling(rows: pd.DataFrame) -> None:
    """Refuse to pool losses on different texts or from different dtypes: no one law holds for them.

    Nor does one hold for operands that were multiplied as quantized together with operands that
    were rounded again; runs without quantized operands go with both.
    """
    for column in ("corpus", "compute_dtype", "operand_values"):
        if column in rows:
            quantized = column == "operand_values" and "operands" in rows
            pooled = rows[rows["operands"] != ""] if quantized else rows
            values = sorted(str(v) for v in pooled[column].unique())
            if len(values) > 1:
                raise FitError(
                    f"{column} has {len(values)} values ({', '.join(values)}): their losses "
                    f"cannot be pooled; keep one with where=\"{column} == '{values[0]}'\""
                )


def _unidentified(
    centred: Centred, parameters: Mapping[str, float], jacobian: Array, residual: Array, held: Mask
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parameters in flat directions, and those with a standard error above a factor of e.

    The standard errors are those of least squares, residual variance times (J'J)^-1: rough, but the
    only question here is whether the data determine a parameter at all.  Parameters held at a bound
    count as known.
    """
    moving = ~held
    if not moving.any():
        return (), ()
    _, singular, rotation = np.linalg.svd(jacobian[:, moving], full_matrices=False)
    to_raw = centred.to_raw[:, moving] @ rotation.T
    null = singular <= FLAT * singular.max()
    reach = np.abs(to_raw[:, null]).max(axis=1, initial=0.0)
    is_flat = reach > 1e-6 * max(reach.max(), 1e-300)
    dof = max(1, len(residual) - len(centred.free))
    deviation = math.sqrt(float((residual**2).sum()) / dof)
    error = deviation * np.sqrt(((to_raw[:, ~null] / singular[~null]) ** 2).sum(axis=1))
    scale = [_one_factor_e(centred.law, name, parameters) for name in centred.free]
    is_vague = ~is_flat & (error > VAGUE * np.array(scale))
    names = np.array(centred.free)
    return tuple(map(str, names[is_flat])), tuple(map(str, names[is_vague]))


def _one_factor_e(law: Law, name: str, parameters: Mapping[str, float]) -> float:
    """How far the coordinate of a parameter moves when the parameter changes by a factor e."""
    step = law.multiplier(name, parameters)  # of a logarithm or a shift
    if law.parameters[name].kind == "exponent":
        step *= abs(parameters[name])
    elif law.parameters[name].kind == "rate":
        step /= parameters[name]
    return max(step, 1e-300)


def _warn_fit(
    starts: Starts,
    status: str,
    at_bound: tuple[str, ...],
    flat: tuple[str, ...],
    vague: tuple[str, ...],
) -> list[str]:
    """Warnings about the search itself."""
    warnings = []
    if status == "max_steps":
        warnings.append("the search ran out of steps: the parameters are not an optimum")
    if starts.agreeing < ENOUGH_AGREEING * starts.tried:
        warnings.append(
            f"only {starts.agreeing} of {starts.tried} starts agree on the optimum: "
            "there may be a better one; try more starts or a larger objective.delta"
        )
    if at_bound:
        warnings.append(
            f"{_are(at_bound)} at a bound: the optimum lies beyond what the law allows, "
            "or the term has no measurable effect here"
        )
    if flat:
        warnings.append(
            f"{_are(flat)} not identified: the fit stays the same when "
            f"{'they move' if len(flat) > 1 else 'it moves'} together, so the values are arbitrary"
        )
    if vague:
        warnings.append(
            f"{_are(vague)} hardly identified: the standard error exceeds a factor of e"
        )
    return warnings


def _are(names: tuple[str, ...]) -> str:
    return f"{', '.join(names)} {'are' if len(names) > 1 else 'is'}"
