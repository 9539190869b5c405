"""What fit.json holds, as types, and the reader that trusts none of them.

`fitting.command.describe` writes it; a page, a comparison and a publication are made of it, by then
maybe edited, merged by hand or written by another version.  None stands for what the data do not
say.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fitting.files.own_json import DamagedError, ResultsError, read_object
from fitting.laws.catalogue import LAWS

FIT = "fit.json"
REMEDY = "run lowbit-fit again"

Number: TypeAlias = float | None
Interval: TypeAlias = Annotated[list[Number], Field(min_length=2, max_length=2)]
"""Ends of 95 %; None is unknown, or in a profile infinite."""
Count: TypeAlias = Annotated[int, Field(ge=0)]
Shares: TypeAlias = dict[str, float]
"""Shares of the draws, by what wins in them."""


class Objective(TypedDict):
    """What was minimised."""

    name: str
    delta: Number
    value: Number


class Starts(TypedDict):
    """Starts tried, and those that ended at the best optimum."""

    tried: Count
    agreeing: Count


class Rows(TypedDict):
    """Rows used, and others by reason."""

    used: Count
    excluded: dict[str, Count]


class Bootstrap(TypedDict):
    """Draws, and those that converged."""

    draws: Count
    converged: int | None


class NoiseFloor(TypedDict):
    """`fitting.seeds.noise.NoiseFloor`."""

    std_log: Number
    std_loss: Number
    dof: Count
    cells: Count


class HeldOutRows(TypedDict):
    """How well rows are predicted that the fit did not see."""

    params: NotRequired[float]
    rows: Count
    trained: Count
    rms: Number
    bias: Number
    extrapolation: Number
    extrapolated: bool
    warnings: list[str]


class HeldOut(TypedDict):
    """`fitting.fit.evidence.evidence`."""

    residual_rms: Number
    sizes: NotRequired[list[HeldOutRows]]
    sizes_rms: NotRequired[Number]
    largest: NotRequired[HeldOutRows]


class Information(TypedDict):
    """Information criteria."""

    aic: Number
    bic: Number


class Rival(TypedDict):
    """A row of `fitting.fit.validation.compare_laws`."""

    law: str
    parameters: Count
    objective: Number
    aic: Number
    bic: Number
    rms: Number
    rms_largest: Number
    rms_sizes: Number
    sizes: Count
    sizes_won: Count


class HoldsFor(TypedDict):
    """What was quantized in the fitted rows; None where the table does not say."""

    operands: list[str] | None
    recipe: list[str] | None


class Layout(TypedDict):
    """A row of `fitting.analysis.layouts.layout_table`."""

    bits: Count
    exponent_opt: Number
    mantissa_opt: Number
    exponent_interval: Interval
    mantissa_interval: Interval
    ratio: Number
    ratio_interval: Interval
    layout: str
    shares: Shares
    near_ties: list[str]
    extrapolated: bool


class CriticalTokens(TypedDict):
    """A row of `fitting.analysis.layouts.critical_table` or of the law ptq."""

    params: float
    format: str
    block_size: NotRequired[float]
    tokens: Number
    interval: Interval
    extrapolated: bool


class Cost(TypedDict):
    """A row of what a precision costs at equal loss, as of `fitting.analysis.trades.equal_loss`."""

    format: str
    bits: NotRequired[Count]
    block_size: NotRequired[float]
    params: float
    tokens: float
    effective_params: Number
    effective_params_interval: Interval
    params_factor: NotRequired[Number]
    params_factor_interval: NotRequired[Interval]
    tokens_factor: NotRequired[Number]
    tokens_factor_interval: NotRequired[Interval]
    extrapolated: bool


class Optimum(TypedDict):
    """Optimal bits where something is given, as of `fitting.analysis.trades.optimum`."""

    bits: Number
    bits_interval: Interval
    block_size: NotRequired[float]
    clamped: bool
    cost: NotRequired[Number]
    extrapolated: bool
    params: NotRequired[Number]
    params_interval: NotRequired[Interval]
    tokens: NotRequired[Number]
    tokens_interval: NotRequired[Interval]
    unclamped: Number


class OptimalPrecision(TypedDict):
    """Optimal bits at given data, at given sizes and costs, and at costs alone."""

    fixed_tokens: NotRequired[list[Optimum]]
    fixed_params: NotRequired[list[Optimum]]
    joint: NotRequired[list[Optimum]]


class EquivalentBlock(TypedDict):
    """A row of `fitting.analysis.granularity.equivalent_blocks`."""

    granularity: str
    log2_block: Number
    interval: Interval
    given: Number
    rows: Count
    fitted: bool


Efficiency = TypedDict(
    "Efficiency",
    {
        "scheme": str,
        "pass": str,  # a word of Python's, so not as a class
        "efficiency": Number,
        "efficiency_interval": Interval,
        "params_factor": NotRequired[Number],
        "params_factor_interval": NotRequired[Interval],
        "tokens_factor": NotRequired[Number],
        "tokens_factor_interval": NotRequired[Interval],
    },
)
"""A scheme's, of `fitting.analysis.efficiency.quartet_table`; `pass` is forward or backward."""


class Speedups(TypedDict):
    """How many times faster FP4 is than FP8, by pass."""

    forward: float
    backward: float


class Crossover(TypedDict):
    """Data from which FP4 throughout is the better choice at a size."""

    params: float
    tokens_per_param: Number
    interval: Interval
    extrapolated: bool


class Choice(TypedDict):
    """The best choice of passes at a budget."""

    params: float
    tokens: float
    best: str
    shares: Shares
    extrapolated: bool


class Estimate(TypedDict):
    """A number that follows from the fit."""

    value: Number
    interval: Interval
    extrapolated: NotRequired[bool]


class Derived(TypedDict):
    """What follows from a fit, by conclusion: `fitting.analysis.derived.derived`."""

    identified: NotRequired[dict[str, bool]]
    holds_for: NotRequired[HoldsFor]
    layouts: NotRequired[list[Layout]]
    critical_tokens: NotRequired[list[CriticalTokens]]
    cost_of_bits: NotRequired[list[Cost]]
    cost_of_precision: NotRequired[list[Cost]]
    optimal_precision: NotRequired[OptimalPrecision]
    optimal_bits: NotRequired[Estimate]
    equivalent_blocks: NotRequired[list[EquivalentBlock]]
    cost_k: NotRequired[float]
    efficiencies: NotRequired[list[Efficiency]]
    forward: NotRequired[str]
    backward: NotRequired[str]
    speedups: NotRequired[Speedups]
    crossovers: NotRequired[list[Crossover]]
    map: NotRequired[list[Choice]]
    compute_optimal_exponent: NotRequired[Estimate]


class FitFile(TypedDict):
    """A whole fit.json; older ones lack what is not required."""

    law: str
    source: NotRequired[str]
    objective: Objective
    parameters: dict[str, Number]
    intervals: NotRequired[dict[str, Interval] | None]
    standard_errors: NotRequired[dict[str, Number]]
    status: str
    starts: Starts
    rows: Rows
    frozen: NotRequired[list[str]]
    bounds: NotRequired[dict[str, Interval]]
    weights: NotRequired[str | None]
    bootstrap: NotRequired[Bootstrap]
    derived: NotRequired[Derived]
    noise_floor: NotRequired[NoiseFloor]
    warnings: list[str]
    inputs_sha256: NotRequired[str]
    run_ids: NotRequired[list[str] | None]
    profile_intervals: NotRequired[dict[str, Interval]]
    information: NotRequired[Information]
    held_out: NotRequired[HeldOut]
    not_computed: NotRequired[dict[str, str]]
    comparison: NotRequired[list[Rival]]
    where: NotRequired[str | None]
    seed: NotRequired[int]
    cluster: NotRequired[str | None]


class Pilot(TypedDict):
    """As much of a fit.json as a design can be judged by."""

    law: NotRequired[str]
    parameters: dict[str, Number]
    noise_floor: NotRequired[dict[str, Number] | None]


_FIT_FILE, _PILOT = TypeAdapter(FitFile), TypeAdapter(Pilot)


def read_fit(path: Path) -> dict[str, Any] | None:
    """What a fit.json holds, its parameters in the law's order; None where there is none.

    Raises:
        DamagedError: It cannot be read, or a value of it is of another type.
        ResultsError: It lacks a key, or is of no law that there is, or of other parameters.
    """
    try:
        fit = _read(path, _FIT_FILE, FitFile.__required_keys__)
    except FileNotFoundError:
        return None
    law = LAWS.get(fit["law"])
    if law is None:
        raise ResultsError(f"{path}: law={fit['law']} is none of {', '.join(LAWS)}")
    law = law.with_schemes(fit["parameters"])
    if set(fit["parameters"]) != set(law.parameters):
        raise ResultsError(
            f"{path}: parameters {', '.join(fit['parameters'])}, but law={law.name} "
            f"has {', '.join(law.parameters)}"
        )
    fit["parameters"] = {name: fit["parameters"][name] for name in law.parameters}
    return fit


def read_pilot(path: Path) -> dict[str, Any]:
    """The same of a pilot's fit.json, or of one that a paper's constants were typed into.

    Raises:
        FileNotFoundError: There is none.
        DamagedError: It cannot be read, or a value of it is of another type.
        ResultsError: It lacks `parameters`.
    """
    return _read(path, _PILOT, Pilot.__required_keys__)


def _read(path: Path, kind: TypeAdapter[Any], needed: Iterable[str]) -> dict[str, Any]:
    """A JSON object that holds what is needed, each value of its type."""
    data = read_object(path, REMEDY)
    if missing := [key for key in sorted(needed) if key not in data]:
        raise ResultsError(f"{path}: lacks {', '.join(missing)}; {REMEDY}")
    try:
        kind.validate_python(data, strict=True)
    except ValidationError as error:
        raise DamagedError(path, _first(error), REMEDY) from error
    return data


def _first(error: ValidationError) -> str:
    """The first wrong value, as `rows.used='3': Input should be a valid integer`."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}={first['input']!r:.60}: {first['msg']}"
