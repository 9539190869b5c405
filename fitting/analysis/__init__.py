"""Conclusions from a fitted law, as numbers with intervals."""

from fitting.analysis.capacity import (
    capacity_after,
    compressed_capacity,
    kumar_capacity,
    kumar_optimal_bits,
    kumar_optimal_bits_for_params,
    ptq_critical_tokens,
    ptq_penalty,
    qat_penalty,
    tokens_for_capacity,
)
from fitting.analysis.chinchilla import compute_optimal_exponent
from fitting.analysis.critical import critical_tokens
from fitting.analysis.efficiency import quartet_loss
from fitting.analysis.granularity import equivalent_blocks
from fitting.analysis.layouts import integer_layout, layout_costs, optimal_layout
from fitting.analysis.precision_map import best_precision, budget_losses, crossover
from fitting.analysis.switching import quantized_share
from fitting.analysis.trades import (
    compute_optimal,
    effective_params,
    effective_params_of_format,
    gamma_d,
    gamma_n,
    gamma_rho,
    gamma_size,
    optimal_bits_for_params,
    optimal_bits_for_tokens,
    optimal_precision_term,
    tokens_for_equal_loss,
)
from fitting.law.speeds import Speeds, training_speedup

__all__ = [
    "Speeds",
    "best_precision",
    "budget_losses",
    "capacity_after",
    "compressed_capacity",
    "compute_optimal",
    "compute_optimal_exponent",
    "critical_tokens",
    "crossover",
    "effective_params",
    "effective_params_of_format",
    "equivalent_blocks",
    "gamma_d",
    "gamma_n",
    "gamma_rho",
    "gamma_size",
    "integer_layout",
    "kumar_capacity",
    "kumar_optimal_bits",
    "kumar_optimal_bits_for_params",
    "layout_costs",
    "optimal_bits_for_params",
    "optimal_bits_for_tokens",
    "optimal_layout",
    "optimal_precision_term",
    "ptq_critical_tokens",
    "ptq_penalty",
    "qat_penalty",
    "quantized_share",
    "quartet_loss",
    "tokens_for_capacity",
    "tokens_for_equal_loss",
    "training_speedup",
]
