"""Which values share a scale, by shapes alone."""

import math

import pytest
import torch

from experiments.quant.formats import Precision
from experiments.quant.layout import check_axes, from_blocks, lying_as, to_blocks, turned

PRECISIONS = [Precision.parse(f"E2M1-{who}") for who in ("block16", "tile16", "row", "tensor")]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("shape", [(32, 48), (2, 3, 32, 48)])
def test_blocks_hold_what_shares_a_scale_and_go_back(
    precision: Precision, shape: tuple[int, ...]
) -> None:
    x = torch.arange(math.prod(shape)).reshape(shape).float()
    blocks = to_blocks(x, precision)
    assert blocks.shape[-1] == precision.sharing(math.prod(shape[:-1]), shape[-1])
    assert torch.equal(from_blocks(blocks, x.shape, precision), x)


def test_a_tile_is_of_rows_and_columns() -> None:
    x = torch.arange(32 * 48).reshape(32, 48)
    first = to_blocks(x, Precision.parse("E2M1-tile16"))[0, 0]
    assert torch.equal(first, x[:16, :16].flatten())


def test_block_sizes_divide_the_axes_that_they_cut() -> None:
    refused = {
        str(precision): [
            shape
            for shape in ((16, 16), (8, 16), (16, 8))
            if shape[-1] % precision.divisor or (precision.tile and shape[0] % precision.tile)
        ]
        for precision in PRECISIONS
    }
    assert [*refused.values()] == [[(16, 8)], [(8, 16), (16, 8)], [], []]
    for precision in PRECISIONS:
        for shape in ((16, 16), (8, 16), (16, 8)):
            if shape in refused[str(precision)]:
                with pytest.raises(ValueError, match=r"block_size=16: the .* must be a multiple"):
                    check_axes(torch.Size(shape), precision)
            else:
                check_axes(torch.Size(shape), precision)


def test_a_result_lies_as_what_it_is_of() -> None:
    x = torch.ones(4, 6)
    assert [turned(each) for each in (x, x.t(), x[:, :3], x[:1].t())] == [False, True, False, False]
    assert turned(lying_as(x.t(), torch.ones(6, 4)))
    assert lying_as(x, torch.ones(6, 4).t()).is_contiguous()
