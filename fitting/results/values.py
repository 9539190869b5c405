"""The values of a run record: types, ranges, and defaults for what older records lack."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fitting.files.own_json import Json, ResultsError

SCHEMA_VERSION = 1

_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "JsonObject": (dict,),
}
_AT_LEAST_ONE = ("bits", "block_size", "schema_version")
_ANY_SIGN = ("loss", "train_loss", "bits_per_byte")


def check(name: str, kind: str, value: Json) -> None:
    """Refuse a value of a type other than the key's, or out of its range."""
    if isinstance(value, bool) or not isinstance(value, _TYPES[kind]):
        raise ResultsError(f"{name}={short(value)}: must be {kind}")
    if name == "run_id" and not value:
        raise ResultsError("run_id is empty")
    if name == "ptq" and isinstance(value, dict):
        for form, scored in value.items():
            if not isinstance(scored, dict) or not {"loss", "bits", "operands"} <= set(scored):
                raise ResultsError(f"ptq.{form}: must hold loss, bits and operands")
            check(f"ptq.{form}.loss", "float | None", scored["loss"])
            check(f"ptq.{form}.bits", "float", scored["bits"])
            check(f"ptq.{form}.operands", "str", scored["operands"])
            _check_metrics(f"ptq.{form}.metrics", scored.get("metrics", {}))
    if name == "metrics":
        _check_metrics(name, value)
    if not isinstance(value, (int, float)):
        return
    if not abs(value) < 1e300:  # no table holds more, nor NaN
        raise ResultsError(f"{name}={short(value)}: must be finite")
    least = 1 if name in _AT_LEAST_ONE else 0
    if value < least and name not in _ANY_SIGN and not name.startswith("ptq."):
        raise ResultsError(f"{name}={short(value)}: must be at least {least}")
    if name == "schema_version" and value > SCHEMA_VERSION:
        raise ResultsError(
            f"schema_version={short(value)}: written by a newer version, this one reads "
            f"{SCHEMA_VERSION}"
        )


def _check_metrics(name: str, value: Json) -> None:
    """Refuse measures that are not numbers by name; they may have any sign."""
    if not isinstance(value, dict):
        raise ResultsError(f"{name}={short(value)}: must be numbers by name")
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ResultsError(f"{name}.{key}={short(number)}: must be a number")
        if not abs(number) < 1e300:
            raise ResultsError(f"{name}.{key}={short(number)}: must be finite")


def short(value: Json) -> str:
    text = "a very long number" if isinstance(value, int) and value > 10**100 else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_POWERS_OF_TWO = ("e8m0", "e8m0_log2", "e8m0_ceil", "e8m0_nearest", "quest", "quest_floor")
"""Scales that bfloat16 holds together with any element of at most 7 mantissa bits."""


def operand_values(data: Mapping[str, Json]) -> str:
    """The column for a record that is older than it: bfloat16 then rounded what it cannot hold."""
    config = data.get("config") or {}
    dtype = config.get("compute_dtype") or (data.get("provenance") or {}).get("compute_dtype")
    if dtype != "bfloat16" or not data.get("operands"):
        return "exact"
    recipe = config.get("recipe") or {}
    gemms = [recipe.get(name) or {} for name in ("output", "grad_input", "grad_weight")]
    slots = [slot for gemm in gemms for slot in gemm.values() if isinstance(slot, dict)]
    own = [str(slot["precision"]).lower() for slot in slots if slot.get("precision")]
    held = data["scale"] in _POWERS_OF_TWO and data["mantissa"] <= 7
    return "exact" if held and all(map(_held_by_bfloat16, own)) else "rounded"


def _held_by_bfloat16(name: str) -> bool:
    """Whether bfloat16 holds a format's values, by its name: mxfp4, E2M1-block32-e8m0, ..."""
    mantissa = re.match(r"e\d+m(\d+)", name)
    microscaling = name.startswith("mx") and not name.endswith("4_3")
    return (microscaling or re.split("[-_](?=e8m0|quest)", name)[-1] in _POWERS_OF_TWO) and not (
        mantissa and int(mantissa[1]) > 7
    )
