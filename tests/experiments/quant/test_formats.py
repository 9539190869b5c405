"""Formats: every derived property against ml_dtypes, gfloat and the papers' printed grids."""

import gfloat.formats
import ml_dtypes
import pytest

from experiments.quant.formats import (
    PRECISIONS,
    FloatFormat,
    FormatError,
    IntFormat,
    Precision,
    ScaleFormat,
    parse_element,
)

ML_DTYPES = {
    "E2M1": ml_dtypes.float4_e2m1fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E4M3-ocp": ml_dtypes.float8_e4m3fn,
    "E5M2-ocp": ml_dtypes.float8_e5m2,
    "E4M3-ieee": ml_dtypes.float8_e4m3,
    "E3M4-ieee": ml_dtypes.float8_e3m4,
    "E8M7-ieee": ml_dtypes.bfloat16,
}
GFLOAT = {
    "E2M1": gfloat.formats.format_info_ocp_e2m1,
    "E2M3": gfloat.formats.format_info_ocp_e2m3,
    "E3M2": gfloat.formats.format_info_ocp_e3m2,
    "E4M3-ocp": gfloat.formats.format_info_ocp_e4m3,
    "E5M2-ocp": gfloat.formats.format_info_ocp_e5m2,
    "E5M10-ieee": gfloat.formats.format_info_binary16,
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_facts_agree_with_ml_dtypes(name: str) -> None:
    info, ours = ml_dtypes.finfo(ML_DTYPES[name]), FloatFormat.parse(name)
    assert ours.max == float(info.max)
    assert ours.step == float(info.smallest_subnormal)
    assert 2.0**ours.emin == float(info.smallest_normal)
    assert ours.bits == info.bits


@pytest.mark.parametrize("name", GFLOAT)
def test_grid_agrees_with_gfloat_code_for_code(name: str) -> None:
    info, ours = GFLOAT[name], FloatFormat.parse(name)
    codes = (gfloat.decode_float(info, code) for code in range(1 << (info.bits - 1)))
    assert ours.grid() == [value.fval for value in codes if abs(value.fval) <= info.max]


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("E2M1", [0, 0.5, 1, 1.5, 2, 3, 4, 6]),
        ("E1M1", [0, 1, 2, 3]),
        ("E1M2", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
        ("E1M0", [0, 2]),
        ("E2M0", [0, 1, 2, 4]),
        ("E0M3", [k / 8 for k in range(8)]),
    ],
)
def test_small_grids_are_the_papers(name: str, grid: list[float]) -> None:
    """Sun et al. 2501.02423 on QPyTorch's semantics."""
    assert FloatFormat.parse(name).grid() == grid


def test_largest_numbers_follow_the_specials_policy() -> None:
    expected = {
        "E4M3": 480.0,
        "E4M3-ocp": 448.0,
        "E4M3-ieee": 240.0,
        "E5M2": 114688.0,
        "E5M2-ocp": 57344.0,
        "E3M2": 28.0,
        "E2M3": 7.5,
    }
    assert {name: FloatFormat.parse(name).max for name in expected} == expected


@pytest.mark.parametrize("exponent", range(9))
@pytest.mark.parametrize("mantissa", range(4))
def test_emax_is_the_binade_of_max(exponent: int, mantissa: int) -> None:
    if exponent + mantissa == 0:
        return
    element = FloatFormat(exponent, mantissa)
    if mantissa == 0 and exponent == 0:
        return
    assert 2.0**element.emax <= element.max < 2.0 ** (element.emax + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 0), "exponent=9: must be 0..8"),
        ((2, 11), "mantissa=11: must be 0..10"),
        ((0, 0), "E0M0"),
        ((4, 3, "fnuz"), "specials='fnuz': must be one of none, ocp, ieee"),
        ((1, 1, "ieee"), "needs exponent>=2, got exponent=1"),
    ],
)
def test_impossible_formats_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        FloatFormat(*arguments)


def test_names_are_read_back_and_others_refused() -> None:
    for name in ("E4M3", "E4M3-ocp", "E8M10", "E0M7"):
        assert str(FloatFormat.parse(name.lower())) == name
    with pytest.raises(FormatError, match="format 'fp8': write it as E4M3"):
        FloatFormat.parse("fp8")


def test_bits_per_element_count_the_scales() -> None:
    """OCP MX v1.0: MXFP4 4.25, MXFP8 8.25; a tensor-wise FP32 scale costs 32 / numel."""
    fp4, fp8 = FloatFormat(2, 1), FloatFormat(4, 3, "ocp")
    assert Precision(fp4, "block", 32, ScaleFormat.E8M0).bits_per_element(64, 64) == 4.25
    assert Precision(fp8, "block", 32, ScaleFormat.E8M0).bits_per_element(8, 32) == 8.25
    assert Precision(fp8, "tensor").bits_per_element(64, 64) == 8 + 32 / 4096
    assert Precision(fp8, "row").bits_per_element(64, 128) == 8.25


@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("E4M3", FloatFormat(4, 3)),
        ("fp8_e4m3", FloatFormat(4, 3, "ocp")),
        ("fp8_e5m2", FloatFormat(5, 2, "ocp")),
        ("fp6_e3m2", FloatFormat(3, 2)),
        ("fp6_e2m3", FloatFormat(2, 3)),
        ("FP4_E2M1", FloatFormat(2, 1)),
        ("bf16", FloatFormat(8, 7, "ieee")),
        ("fp16", FloatFormat(5, 10, "ieee")),
        ("INT2", IntFormat(2)),
        ("int8-asymmetric", IntFormat(8, symmetric=False)),
    ],
)
def test_element_names_parse(name: str, element: FloatFormat | IntFormat) -> None:
    assert parse_element(name) == element
    assert parse_element(str(element)) == element


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_twos_complement_with_or_without_the_lowest(bits: int) -> None:
    symmetric, full = IntFormat(bits), IntFormat(bits, symmetric=False)
    assert (symmetric.lowest, symmetric.max) == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    assert (full.lowest, full.max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert symmetric.grid() == list(range(2 ** (bits - 1)))
    assert (symmetric.exponent, symmetric.mantissa) == (0, bits - 1)


@pytest.mark.parametrize(
    ("name", "element", "scale", "size", "bits"),
    [
        ("mxfp8_e4m3", "E4M3-ocp", "e8m0", 32, 8.25),
        ("mxfp6_e2m3", "E2M3", "e8m0", 32, 6.25),
        ("mxfp4", "E2M1", "e8m0", 32, 4.25),
        ("nvfp4", "E2M1", "e4m3", 16, 4.5 + 32 / 2**20),
        ("nvfp4_tile", "E2M1", "e4m3", 16, 4 + 8 / 256 + 32 / 2**20),
        ("mxint8", "INT8", "e8m0_ceil", 32, 8.25),
        ("nvint4", "INT4", "e4m3", 16, 4.5 + 32 / 2**20),
        ("int4-block128", "INT4", "fp32", 128, 4.25),
    ],
)
def test_published_precisions_have_their_published_parts(
    name: str, element: str, scale: str, size: int, bits: float
) -> None:
    """OCP MX v1.0, 2509.25149, 2510.25602; exact, for an operand of 1024 x 1024."""
    precision = Precision.parse(name)
    assert (str(precision.element), precision.scale, precision.block_size) == (element, scale, size)
    assert precision.bits_per_element(1024, 1024) == bits


def test_spelt_out_precisions_read_back() -> None:
    for name, precision in PRECISIONS.items():
        assert Precision.parse(str(precision)) == precision, name
        assert Precision.parse(name.upper()) == precision
    for scale in ScaleFormat:
        for share in ("block16", "tile128", "row", "tensor"):
            name = f"E2M1-{share}-{scale}"
            assert str(Precision.parse(name)) == name
    assert Precision.parse("int8_row") == Precision(IntFormat(8), "row")
    assert Precision.parse("e2m1") == Precision(FloatFormat(2, 1), "block", 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp5", "precision 'fp5': format 'fp5': write it as E4M3, E4M3-ocp, INT8"),
        ("mxfp5", "did you mean mxfp4?"),
        ("INT9-row", "precision 'INT9-row': int bits=9: must be 2..8"),
        ("E2M1-block0", "block_size=0: must be 1 or more"),
        ("E4M3-block16-e4m3_4_6", "scale=e4m3_4_6: is defined for E2M1, not E4M3"),
        ("", "precision ''"),
    ],
)
def test_unknown_precisions_are_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        Precision.parse(name)
    assert "\n" not in str(error.value)
