from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.nn.kernels.tiles import Tiles, power_of_two, rows_of


@given(rows=st.integers(0, 10**6), width=st.integers(1, 8192))
def test_tiles_cover_all_rows_and_none_is_idle(rows: int, width: int) -> None:
    tiles = Tiles.of(rows, width)
    assert (tiles.count - 1) * tiles.height < rows <= tiles.count * tiles.height or rows == tiles.count == 0
    assert width <= tiles.width < 2 * width
    for number in (tiles.width, tiles.height, tiles.warps):
        assert number.bit_count() == 1
    assert tiles.height * tiles.width <= max(2048, tiles.width)
    assert tiles.programs(torch.device("cpu")) <= tiles.count


def test_powers_of_two() -> None:
    assert [power_of_two(number) for number in (1, 2, 3, 4, 5, 1023, 1024, 1025)] == [1, 2, 4, 4, 8, 1024, 1024, 2048]


def test_rows_are_copied_only_where_they_must_be() -> None:
    x = torch.arange(120.0).reshape(4, 5, 6)
    for view in (x, x[..., 1:4], x[:, 0], x[1:2].expand(1, 5, 6)):
        assert rows_of(view).data_ptr() == view.data_ptr()
    for view in (x[..., ::2], x.transpose(0, 1), x.mT):
        matrix = rows_of(view)
        assert matrix.stride(-1) == 1
        assert torch.equal(matrix, view.reshape(-1, view.shape[-1]))
