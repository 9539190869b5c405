"""The scaling laws: the loss to expect from a run's size, data and number format.

Each law is one function that lists its terms (`fitting.law.terms`), with the paper's equation and,
where the paper printed them, its constants.  Parameter names are the papers' letters.
"""

from __future__ import annotations

import numpy as np

from fitting.analysis.capacity import (
    COMPRESSED_CONCLUSIONS,
    KUMAR_CONCLUSIONS,
    OPERANDS,
    PTQ_CONCLUSIONS,
    QAT_CONCLUSIONS,
)
from fitting.analysis.chinchilla import COMPUTE_OPTIMAL_EXPONENT
from fitting.analysis.conditions import HOLDS_FOR
from fitting.analysis.costs import COST_OF_BITS, COST_OF_PRECISION
from fitting.analysis.critical import CRITICAL_TOKENS
from fitting.analysis.efficiency import EFFICIENCIES
from fitting.analysis.granularity import EQUIVALENT_BLOCKS
from fitting.analysis.layouts import LAYOUTS
from fitting.analysis.optima import COST_K, OPTIMAL_PRECISION
from fitting.analysis.precision_map import PRECISION_MAP
from fitting.analysis.signal import BACKWARD_ERRORS, FORWARD_ERRORS
from fitting.analysis.switching import BEST_SHARES, tokens_per_byte
from fitting.analysis.unified import UNIFIED_CONCLUSIONS
from fitting.law.curves import (
    Capacity,
    Power,
    PowerOfCapacity,
    Signal,
    log_saturation,
    log_tanh,
)
from fitting.law.terms import (
    COEFFICIENT,
    EXPONENT,
    FORMAT_EXPONENT,
    PENALTY_COEFFICIENT,
    POSITIVE,
    Bent,
    Columns,
    FitError,
    Law,
    Parameter,
    Published,
    Term,
)
from fitting.laws.own import own_law
from fitting.laws.published import (
    BESIROGLU_2024,
    KUMAR_2024,
    KUMAR_2024_PTQ,
    OPTIMIZERS_2025,
    QAT_SWITCH_2025,
    QUARTET_2025,
    SUN_2025,
)
from fitting.laws.tuning import FINE_TUNING
from fitting.results.format_errors import ERRORS


def _chinchilla(c: Columns) -> list[Term]:
    """L = A/N^alpha + B/D^beta + E."""
    return [
        Term({"A": 1, "alpha": -np.log(c["params"])}),
        Term({"B": 1, "beta": -np.log(c["tokens"])}),
        Term({"E": 1}),
    ]


def _floating_point(c: Columns) -> list[Term]:
    """L = n/N^alpha + d/D^beta + epsilon + D^beta/N^alpha log2(B)/(gamma (E+.5)^delta (M+.5)^nu).

    N parameters, D tokens, E exponent and M mantissa bits, B values that share a scale; B = 1 is
    the unquantized run, whose last term is exactly zero.
    """
    log_n, log_d = np.log(c["params"]), np.log(c["tokens"])
    with np.errstate(divide="ignore"):  # log2(1) = 0: no quantization, no term
        log_log2_block = np.log(np.log2(c["block_size"]))
    return [
        Term({"n": 1, "alpha": -log_n}),
        Term({"d": 1, "beta": -log_d}),
        Term({"epsilon": 1}),
        Term(
            {
                "beta": log_d,
                "alpha": -log_n,
                "gamma": -1,
                "delta": -np.log(c["exponent"] + 0.5),
                "nu": -np.log(c["mantissa"] + 0.5),
            },
            offset=log_log2_block,
        ),
    ]


def _quartet(c: Columns) -> list[Term | Bent]:
    """L = (A/(N eff_N)^alpha + B/(D eff_D)^beta)^gamma + E.

    One eff_N for each scheme of the forward pass, one eff_D for each of the backward pass.
    """
    forward = {name: -rows for name, rows in c.items() if name.startswith("eff_N[")}
    backward = {name: -rows for name, rows in c.items() if name.startswith("eff_D[")}
    size = Term({"A": 1, "alpha": -np.log(c["params"]), **forward})
    data = Term({"B": 1, "beta": -np.log(c["tokens"]), **backward})
    return [Bent(Power(), [size, data, Term({"gamma": 1})]), Term({"E": 1})]


def _precision(c: Columns) -> list[Term | Bent]:
    """L = A/N_eff^alpha + B/D^beta + E, N_eff = N prod_x (1 - exp(n_x - P_x/gamma_x)).

    P_x are the bits of weights, activations and key-value cache.
    """
    size = [Term({"A": 1, "alpha": -np.log(c["params"])}), Term({"alpha": 1})]
    size += [Term({f"n_{x}": 1, f"gamma_{x}": -c[f"bits_{x}"]}) for x in OPERANDS]
    data = Term({"B": 1, "beta": -np.log(c["tokens"])})
    return [Bent(Capacity(log_saturation, parts=len(OPERANDS)), size), data, Term({"E": 1})]


def _ptq(c: Columns) -> list[Term]:
    """L = A/N^alpha + B/D^beta + E + C_T D^gamma_D/N^gamma_N exp(-P_post/gamma_post)."""
    log_n, log_d = np.log(c["params"]), np.log(c["tokens"])
    penalty = Term({"C_T": 1, "gamma_D": log_d, "gamma_N": -log_n, "gamma_post": -c["bits_post"]})
    return [*_chinchilla(c), penalty]


def _qat(c: Columns) -> list[Term]:
    """L = A/N^alpha + B/D^beta + E + k D^gamma_D (log2 G)^gamma_G / N^gamma_N.

    G values share a scale; G = 1 is the unquantized run, whose last term is exactly zero.
    """
    log_n, log_d = np.log(c["params"]), np.log(c["tokens"])
    quantized = c["block_size"] > 1
    log_log2_group = np.log(np.log2(np.where(quantized, c["block_size"], 2.0)))
    penalty = Term(
        {"k": 1, "gamma_D": log_d, "gamma_G": log_log2_group, "gamma_N": -log_n},
        offset=np.where(quantized, 0.0, -np.inf),
    )
    return [*_chinchilla(c), penalty]


def _compressed(c: Columns) -> list[Term | Bent]:
    """L = A/(N rho)^alpha + B/D^beta + E, rho = L tanh(F log_{1/4} GMSE)^C.

    GMSE is the relative squared error of the representation on Gaussian data, so that its
    logarithm to base 1/4 counts bits; 0 is the uncompressed run, whose capacity rho is one.
    """
    compressed = c["gmse"] > 0
    bits = -np.log(np.where(compressed, c["gmse"], 0.25)) / np.log(4)
    size = Term({"A": 1, "alpha": -np.log(c["params"]), "L": -compressed.astype(np.float64)})
    # log tanh of an infinite number of bits is zero, whatever F.
    argument = Term({"F": 1}, offset=np.where(compressed, np.log(bits), np.inf))
    capacity = Bent(Capacity(log_tanh, parts=1), [size, Term({"C": 1}), argument])
    return [capacity, Term({"B": 1, "beta": -np.log(c["tokens"])}), Term({"E": 1})]


def _unified(c: Columns) -> list[Term | Bent]:
    """L = (A/(N rho)^alpha + B/D^beta)^gamma + E, rho = 1/(prod_x (1 + c_x s_x) + sum_y c_y s_y).

    s = e/(1 - e), e the relative squared error of an operand: its noise over what is kept of the
    signal; 0 where it is not quantized.  x are weight and input of the forward pass, with one c for
    both unless the table tells them apart (c_input).  y are the operands of dX (c_grad_input) and
    of dW (c_grad_weight), for tables that tell them from the forward pass.
    """
    size = [Term({"A": 1, "alpha": -np.log(c["params"])}), Term({"alpha": 1})]
    data = Term({"B": 1, "beta": -np.log(c["tokens"])})
    weight, input_ = (c[x] / (1 - c[x]) for x in ("err_weight", "err_input"))
    apart = "c_input" in c
    groups = (weight[None], input_[None]) if apart else (np.array([weight, input_]),)
    there = [name for name in BACKWARD_ERRORS if name in c]
    added = [sum(c[x] / (1 - c[x]) for x in BACKWARD_ERRORS[name]) for name in there]
    signal = Signal(groups, np.array(added).reshape(len(there), len(weight)))
    names = ["gamma", "c", *(["c_input"] if apart else []), *there]
    forms = [*size, data, *(Term({name: 1}) for name in names)]
    return [Bent(PowerOfCapacity(signal), forms), Term({"E": 1})]


def _qat_switch(c: Columns) -> list[Term]:
    """F = exp(-a / ln S), S = D/(N P/8): the best share of quantized tokens, in place of a loss."""
    log = np.log(tokens_per_byte(c["params"], c["tokens"], c["bits"]))
    some = log > 0
    return [Term({"a": -1 / np.where(some, log, 1.0)}, offset=np.where(some, 0.0, -np.inf))]


def _fixed_ratio(c: Columns) -> list[Term]:
    """L = A/(N rho)^alpha + E: runs of one optimizer at one ratio of tokens to parameters.

    One rho for each scheme, such as an optimizer's training in four bits.
    """
    schemes = {name: -rows for name, rows in c.items() if name.startswith("rho[")}
    return [Term({"A": 1, "alpha": -np.log(c["params"]), **schemes}), Term({"E": 1})]


_CHINCHILLA = {
    "A": COEFFICIENT,
    "alpha": EXPONENT,
    "B": COEFFICIENT,
    "beta": EXPONENT,
    "E": COEFFICIENT,
}
_POWER = Parameter("factor", bounds=(0.02, 5.0), start=(0.15, 1.0))
_UNDER_POWER = Parameter("coefficient", COEFFICIENT.bounds, COEFFICIENT.start, parent="gamma")
_EXPONENT_UNDER_POWER = Parameter("exponent", bounds=(1e-4, 5.0), start=(0.05, 0.4), parent="gamma")
_NOISE_FACTOR = Parameter("factor", bounds=(0.1, 1000.0), start=(3.0, 100.0))
_BITS_SCALE = Parameter("rate", bounds=(1e-3, 10.0), start=(0.3, 1.2))
"""The inverse of the number of bits that divide the loss of capacity by e."""


def _arxiv(number: str) -> tuple[str, str]:
    """How a paper is cited, and where it is."""
    return f"arXiv:{number}", f"https://arxiv.org/abs/{number}"


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "chinchilla",
            "Hoffmann et al. 2203.15556, Eq. 2; refitted by Besiroglu et al. 2404.10102",
            _chinchilla,
            columns={"params": POSITIVE, "tokens": POSITIVE},
            parameters=_CHINCHILLA,
            conclusions=(COMPUTE_OPTIMAL_EXPONENT,),
            published=Published(BESIROGLU_2024, *_arxiv("2404.10102")),
        ),
        Law(
            "floating_point",
            "Sun et al. 2501.02423, Eq. 1",
            _floating_point,
            columns={
                "params": POSITIVE,
                "tokens": POSITIVE,
                "exponent": 0.0,
                "mantissa": 0.0,
                "block_size": 1.0,
            },
            unquantized={"block_size": 1.0},
            parameters={
                "n": COEFFICIENT,
                "alpha": EXPONENT,
                "d": COEFFICIENT,
                "beta": EXPONENT,
                "epsilon": COEFFICIENT,
                "gamma": PENALTY_COEFFICIENT,
                "delta": FORMAT_EXPONENT,
                "nu": FORMAT_EXPONENT,
            },
            conclusions=(
                LAYOUTS,
                HOLDS_FOR,
                COST_OF_BITS,
                COST_OF_PRECISION,
                CRITICAL_TOKENS,
                OPTIMAL_PRECISION,
                COST_K,
                EQUIVALENT_BLOCKS,
            ),
            published=Published(SUN_2025, *_arxiv("2501.02423"), "Table 2"),
        ),
        Law(
            "unified",
            "this project: quartet's law, with the efficiency of a format computed from its error",
            _unified,
            columns={"params": POSITIVE, "tokens": POSITIVE} | dict.fromkeys(FORWARD_ERRORS, 0.0),
            parameters={
                "A": _UNDER_POWER,
                "alpha": _EXPONENT_UNDER_POWER,
                "B": _UNDER_POWER,
                "beta": _EXPONENT_UNDER_POWER,
                "E": COEFFICIENT,
                "gamma": _POWER,
                "c": _NOISE_FACTOR,
            },
            below=dict.fromkeys(ERRORS, 1.0),
            extras={"c_input": (("err_input",), _NOISE_FACTOR)}
            | {
                name: (columns, Parameter("factor", bounds=(1e-4, 1000.0), start=(0.3, 30.0)))
                for name, columns in BACKWARD_ERRORS.items()
            },
            unquantized=dict.fromkeys(FORWARD_ERRORS, 0.0),
            conclusions=UNIFIED_CONCLUSIONS,
        ),
        Law(
            "quartet",
            "Castro et al. 2505.14669",
            _quartet,
            columns={"params": POSITIVE, "tokens": POSITIVE},
            parameters={
                "A": _UNDER_POWER,
                "alpha": _EXPONENT_UNDER_POWER,
                "B": _UNDER_POWER,
                "beta": _EXPONENT_UNDER_POWER,
                "E": COEFFICIENT,
                "gamma": _POWER,
            },
            # Bounds of what the efficiency does to its term of the loss, eff^(alpha gamma).
            schemes={
                "forward": ("eff_N", Parameter("factor", (0.05, 2.0), (0.8, 1.0), "alpha")),
                "backward": ("eff_D", Parameter("factor", (0.05, 2.0), (0.8, 1.0), "beta")),
            },
            conclusions=(EFFICIENCIES, *PRECISION_MAP),
            published=Published(QUARTET_2025, *_arxiv("2505.14669")),
        ),
        Law(
            "precision",
            "Kumar et al. 2411.04330, with the offsets of its Appendix K",
            _precision,
            columns={"params": POSITIVE, "tokens": POSITIVE} | {f"bits_{x}": 1.0 for x in OPERANDS},
            parameters=_CHINCHILLA
            | {f"gamma_{x}": _BITS_SCALE for x in OPERANDS}
            | {f"n_{x}": Parameter("shift", (-12.0, -1e-6), (-3.0, -0.3)) for x in OPERANDS},
            domain="N_eff must be positive, each P_x above gamma_x n_x",
            conclusions=KUMAR_CONCLUSIONS,
            published=Published(KUMAR_2024, *_arxiv("2411.04330")),
        ),
        Law(
            "ptq",
            "Kumar et al. 2411.04330: training in high precision, weights quantized after it",
            _ptq,
            columns={"params": POSITIVE, "tokens": POSITIVE, "bits_post": 1.0},
            parameters=_CHINCHILLA
            | {
                "C_T": PENALTY_COEFFICIENT,
                "gamma_D": EXPONENT,
                "gamma_N": EXPONENT,
                "gamma_post": _BITS_SCALE,
            },
            conclusions=PTQ_CONCLUSIONS,
            published=Published(KUMAR_2024_PTQ, *_arxiv("2411.04330")),
        ),
        Law(
            "qat",
            "Chen et al. 2505.14302",
            _qat,
            columns={"params": POSITIVE, "tokens": POSITIVE, "block_size": 1.0},
            unquantized={"block_size": 1.0},
            parameters=_CHINCHILLA
            | {
                "k": PENALTY_COEFFICIENT,
                "gamma_N": EXPONENT,
                "gamma_D": EXPONENT,
                "gamma_G": EXPONENT,
            },
            conclusions=QAT_CONCLUSIONS,
        ),
        Law(
            "compressed",
            "Panferov et al. 2506.01863",
            _compressed,
            columns={"params": POSITIVE, "tokens": POSITIVE, "gmse": 0.0},
            parameters=_CHINCHILLA
            | {
                "L": Parameter("factor", (0.05, 1.0), (0.7, 1.0), "alpha"),
                "F": Parameter("factor", (0.01, 10.0), (0.1, 1.0)),
                "C": Parameter("exponent", (1e-4, 5.0), (0.05, 0.8), "alpha"),
            },
            below={"gmse": 1.0},
            unquantized={"gmse": 0.0},
            conclusions=COMPRESSED_CONCLUSIONS,
        ),
        Law(
            "qat_switch",
            "Chen et al. 2509.22935: the best share of quantized tokens, given as the loss",
            _qat_switch,
            columns={"params": POSITIVE, "tokens": POSITIVE, "bits": POSITIVE},
            parameters={"a": Parameter("exponent", bounds=(0.0, 100.0), start=(1.0, 20.0))},
            domain="below one token for each byte of parameters, tokens / (params bits/8), the "
            "best share is zero",
            conclusions=(BEST_SHARES,),
            published=Published(QAT_SWITCH_2025, *_arxiv("2509.22935")),
        ),
        Law(
            "fixed_ratio",
            "2509.23500: one optimizer, runs at one ratio of tokens to parameters",
            _fixed_ratio,
            columns={"params": POSITIVE},
            parameters={"A": COEFFICIENT, "alpha": EXPONENT, "E": COEFFICIENT},
            schemes={"scheme": ("rho", Parameter("factor", (0.05, 2.0), (0.8, 1.0), "alpha"))},
            conclusions=(EFFICIENCIES,),
            published=Published(OPTIMIZERS_2025, *_arxiv("2509.23500"), "four bits, QuEST"),
        ),
        FINE_TUNING,
    )
}


def get(name: str) -> Law:
    """The law of a name, or one of the user's own as `FILE.py:NAME` or `package.module:NAME`.

    Raises:
        FitError: There is no such law.
    """
    if ":" in name:
        law = own_law(name)
        if law.name in LAWS:
            raise FitError(f"law={name}: is called {law.name}, like a law of ours; rename it")
        return law
    if name not in LAWS:
        ours = ", ".join(LAWS)
        raise FitError(f"law={name}: no such law; there are {ours}, or yours: law=FILE.py:NAME")
    return LAWS[name]
