"""Constants that papers published for their laws, by the papers' letters."""

from __future__ import annotations

SUN_2025: dict[str, float] = {
    "n": 69.2343,
    "alpha": 0.2368,
    "d": 68973.0621,
    "beta": 0.5162,
    "epsilon": 1.9061,
    "gamma": 11334.5197,
    "delta": 3.1926,
    "nu": 2.9543,
}
"""Constants of `floating_point`: Sun et al. 2501.02423, Table 2."""


BESIROGLU_2024: dict[str, float] = {
    "A": 482.01,
    "alpha": 0.3478,
    "B": 2085.43,
    "beta": 0.3658,
    "E": 1.8172,
}
"""Constants of `chinchilla`: Besiroglu et al. 2404.10102, the replication of Hoffmann et al."""


QUARTET_2025: dict[str, float] = {
    "A": 1.52e5,
    "alpha": 0.589,
    "B": 5.25e5,
    "beta": 0.544,
    "E": 1.35,
    "gamma": 0.274,
    "eff_N[Quartet]": 0.65,
    "eff_D[Quartet]": 0.95,
}
"""Constants of `quartet`: Castro et al. 2505.14669; the efficiencies are those of Table 3."""


KUMAR_2024: dict[str, float] = {
    "A": 4.299e3,
    "alpha": 0.4965,
    "B": 1.806e4,
    "beta": 0.4965,
    "E": 2.7648,
    "gamma_w": 2.6745,
    "gamma_a": 2.2102,
    "gamma_kv": 0.9578,
    "n_w": 0.3037,
    "n_a": 1.4072,
    "n_kv": 2.4185,
}
"""Constants of `precision`: Kumar et al. 2411.04330, Appendix K; alpha and beta were tied."""


KUMAR_2024_PTQ: dict[str, float] = {
    **{name: KUMAR_2024[name] for name in ("A", "alpha", "B", "beta", "E")},
    "C_T": 0.0598,
    "gamma_D": 0.5068,
    "gamma_N": 0.3439,
    "gamma_post": 0.5907,
}
"""Constants of `ptq`, from the same place.

Its offset b_post = 1.1277 multiplies C_T by e^1.1277; no data could separate the two.
"""


QAT_SWITCH_2025: dict[str, float] = {"a": 6.7297}
"""Constant of `qat_switch`: Chen et al. 2509.22935; its shares err by .091 on average."""


OPTIMIZERS_2025: dict[str, float] = {
    "rho[Shampoo]": 0.879,
    "rho[AdamW]": 0.863,
    "rho[Scion]": 0.856,
    "rho[Muon]": 0.852,
    "rho[PSGD]": 0.739,
}
"""Efficiencies in `fixed_ratio` of training in four bits (QuEST), by optimizer: 2509.23500.

50 million to 1.5 billion parameters, 20 tokens a parameter; A, alpha and E are not known.
"""


_QAT_BASE = {"A": 237.7042, "alpha": 0.3022, "B": 596.2490, "beta": 0.3022, "E": 1.9279}


QAT_2025: dict[str, dict[str, float]] = {
    setting: _QAT_BASE | dict(zip(("k", "gamma_N", "gamma_D", "gamma_G"), values, strict=True))
    for setting, values in {
        "W4A4": (0.1582, 0.2186, 0.0745, 0.7779),
        "W4A16": (0.2522, 0.3589, 0.1610, 0.3533),
        "W16A4": (0.1004, 0.1816, 0.0331, 0.9812),
    }.items()
}
"""Constants of `qat` by the bits of weights and activations: Chen et al. 2505.14302."""
