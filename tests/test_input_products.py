"""Input products in blocks: the same numbers, whatever the size of a block."""

import pytest
import torch
from reference.lstmp_naive import lstmp_naive
from test_lstmp_paths import BATCH, CLIPS, CLOSE, PATHS, SIZES, run, tensors

from heirloom.modeling import input_products
from heirloom.modeling.input_products import InputProducts
from heirloom.modeling.lstmp import lstmp

ROW = 8  # bytes of a product in the tests of the class


def made_of(rows, index, monkeypatch):
    """Products of 10 inputs with their doubles, in blocks of so many rows, and the sizes that were multiplied."""
    monkeypatch.setattr(input_products, "ROWS", rows)
    calls, inputs = [], torch.arange(20.0).view(10, 2)

    def multiply(x):
        calls.append(len(x))
        return 2 * x

    return InputProducts(inputs, index, multiply, ROW), calls, 2 * inputs


@pytest.mark.parametrize(
    ("rows", "pieces"),
    [
        (1, [(0, [3]), (3, [3]), (6, [2]), (8, [1]), (9, [1])]),
        (5, [(0, [3]), (3, [3, 2]), (8, [1, 1])]),
        (6, [(0, [3, 3]), (6, [2, 1, 1])]),
        (99, [(0, [3, 3, 2, 1, 1])]),
    ],
)
def test_pieces_are_whole_steps_that_fill_a_block(rows, pieces, monkeypatch):
    products, _, _ = made_of(rows, None, monkeypatch)
    assert list(products.pieces([3, 3, 2, 1, 1])) == pieces
    assert list(products.pieces([])) == []


@pytest.mark.parametrize(("row", "rows"), [(16384, 512), (65536, 256), (2**25, 1)])
def test_blocks_are_small_enough_to_be_used_again(row, rows):
    assert InputProducts(torch.zeros(1, 2), None, torch.clone, row).rows == rows


@pytest.mark.parametrize("rows", [1, 3, 10])
@pytest.mark.parametrize("index", [None, [9, 0, 9, 3, 4, 4, 8, 1, 2, 7, 5, 0]])
def test_gates_are_the_products_of_their_positions(rows, index, monkeypatch):
    index = None if index is None else torch.tensor(index)
    products, calls, expected = made_of(rows, index, monkeypatch)
    expected = expected if index is None else expected[index]
    gates = [products.gates(start, start + 2) for start in range(0, len(expected), 2)]
    assert torch.equal(torch.cat(gates), expected)
    gates[0].zero_()  # a step adds to its gates: that must not reach what another piece takes
    assert torch.equal(products.gates(0, 3), expected[:3])
    assert max(calls) <= rows


@pytest.mark.parametrize("path", [path for path in PATHS if path != "loop"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rows", [1, 7, 20, 30])  # of 40 positions, 13 at the first steps
def test_lstmp_by_pieces_equals_the_twin(path, sizes, rows, monkeypatch):
    monkeypatch.setattr(input_products, "ROWS", rows)
    made = [one if one is None else one.detach() for one in tensors(sizes)]
    index = torch.arange(sum(BATCH)) * 5 % 23
    for inputs, options in ((made[0], {}), (made[0][:23], {"index": index})):
        written = made[0] if not options else inputs[index]
        outputs, (h, c) = lstmp_naive(written, BATCH, *made[1:5], tuple(made[5:]), *CLIPS["both clips"])
        given = [one if one is None else one.clone() for one in made[1:]]
        found = run(path, [inputs, *given], CLIPS["both clips"], **options)
        torch.testing.assert_close(found, (outputs, h, c), rtol=0, atol=CLOSE)
        assert all(one is None or torch.equal(one, two) for one, two in zip(given, made[1:], strict=True))
        half = run(path, [inputs, *given], CLIPS["both clips"], precision="bf16", **options)
        assert 1e-5 < (half[0] - outputs).norm() / outputs.norm() < 0.02


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_index_to_no_input(wrong):
    made = [one.detach() for one in tensors((48, 80))]
    index = torch.zeros(sum(BATCH), dtype=torch.long)
    index[3] = wrong
    with pytest.raises(
        ValueError, match=rf"index goes from {min(wrong, 0)} to {max(wrong, 0)}, expected 0 to 4"
    ):
        lstmp(made[0][:5], BATCH, *made[1:5], index=index)
