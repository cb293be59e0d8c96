"""The softmax loss in blocks of positions and in blocks of the vocabulary, against torch's own, for any size of block."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from heirloom.modeling import softmax_loss as module
from heirloom.modeling.softmax_loss import softmax_loss

CLASSES, SIZE = 7, 5


WAYS = {"positions": "_ByPosition", "vocabulary": "_ByVocabulary"}


def made(positions, dtype=torch.float64, spread=1.0, classes=CLASSES):
    generator = torch.Generator().manual_seed(0)
    shapes = (positions, SIZE), (classes, SIZE), (classes,)
    tensors = [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    targets = torch.randint(0, classes, (positions,), generator=generator)
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], targets


def force(monkeypatch, way: str, positions: int, classes=CLASSES, columns=2) -> None:
    """This way whatever the sizes, with two positions or `columns` of the vocabulary a block."""
    buffer = 2 * classes if way == "positions" else 4 * columns * max(1, positions)
    monkeypatch.setattr(module, "BUFFER", buffer)
    for name in WAYS.values():
        monkeypatch.setattr(module, name, getattr(module, WAYS[way]))


def plain(hidden, weight, bias, targets):
    return F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")


@pytest.mark.parametrize("rows", [1, 2, 3, 11, 12], ids=lambda rows: f"{rows} rows a slice")
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_blocks_of_positions_equal_torch(rows, spread, monkeypatch):
    force(monkeypatch, "positions", 11)
    monkeypatch.setattr(module, "BUFFER", rows * CLASSES)
    equal_torch(*made(11, spread=spread))


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 7, 8], ids=lambda columns: f"{columns} columns a block")
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_blocks_of_the_vocabulary_equal_torch(columns, spread, monkeypatch):
    force(monkeypatch, "vocabulary", 11, columns=columns)
    tensors, _ = made(11, spread=spread)
    equal_torch(tensors, 3 * torch.arange(11) % CLASSES)  # targets in every block, in no order


@pytest.mark.parametrize("target", [0, 1, 2, 3, 5, 6])
def test_targets_in_one_block_only(target, monkeypatch):
    force(monkeypatch, "vocabulary", 5, columns=3)
    tensors, _ = made(5)
    equal_torch(tensors, torch.full((5,), target))


def equal_torch(tensors, targets) -> None:
    found, expected = softmax_loss(*tensors, targets), plain(*tensors, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(0.3 * loss, tensors) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("positions", "classes", "buffer", "way"),
    [
        (200, 1000, 64_000, "positions"),
        (200, 1000, 63_999, "vocabulary"),  # 63 positions a block are thin
        (63, 1000, 63_000, "positions"),  # not where there are no more
        (63, 1000, 62_999, "vocabulary"),
        (3, 1000, 1, "vocabulary"),
        (0, 1000, 1, "positions"),
    ],
)
def test_thin_blocks_of_positions_are_left_for_blocks_of_the_vocabulary(
    positions, classes, buffer, way, monkeypatch
):
    other = next(name for name in WAYS.values() if name != WAYS[way])
    monkeypatch.setattr(module, other, None)
    monkeypatch.setattr(module, "BUFFER", buffer)
    tensors, targets = made(positions, classes=classes)
    torch.testing.assert_close(softmax_loss(*tensors, targets), plain(*tensors, targets))


@pytest.mark.parametrize("way", WAYS)
def test_numerical_derivatives(way, monkeypatch):
    force(monkeypatch, way, 5)
    tensors, targets = made(5)
    assert torch.autograd.gradcheck(lambda *given: softmax_loss(*given, targets), tensors)


@pytest.mark.parametrize("way", WAYS)
def test_the_largest_tensor_is_far_below_positions_times_vocabulary(way, monkeypatch):
    positions, classes = 300, 2000
    force(monkeypatch, way, positions, classes, columns=20)
    largest = Largest()
    tensors, targets = made(positions, torch.float32, classes=classes)
    with largest:
        softmax_loss(*tensors, targets).backward()
    allowed = max(tensor.numel() for tensor in tensors)  # gradients
    assert largest.elements <= max(allowed, module.BUFFER)
    assert allowed < positions * classes / 50
    assert largest.elements >= (
        20 * positions if way == "vocabulary" else 2 * classes
    )  # it has seen the blocks
    with largest:
        plain(*tensors, targets).backward()
    assert largest.elements == positions * classes


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation has made, autograd's included."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        tensors = made if isinstance(made, tuple | list) else [made]
        sizes = [tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return made


@pytest.mark.parametrize("way", WAYS)
def test_no_positions(way, monkeypatch):
    force(monkeypatch, way, 0)
    tensors, targets = made(0)
    loss = softmax_loss(*tensors, targets)
    loss.backward()
    assert loss == 0
    assert all((tensor.grad == 0).all() for tensor in tensors)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wanted", range(3))
def test_gradients_only_where_they_are_wanted(wanted, way, monkeypatch):
    force(monkeypatch, way, 4)
    tensors, targets = made(4)
    tensors = [tensor.detach().requires_grad_(number == wanted) for number, tensor in enumerate(tensors)]
    softmax_loss(*tensors, targets).backward()
    assert [tensor.grad is not None for tensor in tensors] == [number == wanted for number in range(3)]
    (expected,) = torch.autograd.grad(plain(*tensors, targets), tensors[wanted])
    torch.testing.assert_close(tensors[wanted].grad, expected)


@pytest.mark.parametrize("way", WAYS)
def test_without_a_graph(way, monkeypatch):
    force(monkeypatch, way, 4)
    tensors, targets = made(4)
    with torch.no_grad():
        loss = softmax_loss(*tensors, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(*tensors, targets).detach())


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_is_summed_in_float32(way, monkeypatch):
    force(monkeypatch, way, 11)
    tensors, targets = made(11, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = softmax_loss(*tensors, targets)
    expected = plain(*[tensor.float() for tensor in tensors], targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(tensor.grad.dtype == torch.bfloat16 for tensor in tensors)


@pytest.mark.parametrize("way", WAYS)
def test_no_second_derivative(way, monkeypatch):
    force(monkeypatch, way, 3)
    tensors, targets = made(3)
    (gradient,) = torch.autograd.grad(softmax_loss(*tensors, targets).square(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
