"""The sliced softmax loss against torch's own, for any size of slice."""

import pytest
import torch
from torch.nn import functional as F

from heirloom.modeling import softmax_loss as module
from heirloom.modeling.softmax_loss import softmax_loss

CLASSES, SIZE = 7, 5


def made(positions, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    shapes = (positions, SIZE), (CLASSES, SIZE), (CLASSES,)
    tensors = [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    targets = torch.randint(0, CLASSES, (positions,), generator=generator)
    return [tensor.to(dtype).requires_grad_() for tensor in tensors], targets


@pytest.mark.parametrize("rows", [1, 2, 3, 11, 12], ids=lambda rows: f"{rows} rows a slice")
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_equals_torch(rows, spread, monkeypatch):
    monkeypatch.setattr(module, "BUFFER", rows * CLASSES)
    (hidden, weight, bias), targets = made(11, spread=spread)
    found = softmax_loss(hidden, weight, bias, targets)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    tensors = [hidden, weight, bias]
    gradients = torch.autograd.grad(0.3 * found, tensors), torch.autograd.grad(0.3 * expected, tensors)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_numerical_derivatives(monkeypatch):
    monkeypatch.setattr(module, "BUFFER", 2 * CLASSES)
    tensors, targets = made(5)
    assert torch.autograd.gradcheck(lambda *given: softmax_loss(*given, targets), tensors)


def test_a_vocabulary_larger_than_the_buffer(monkeypatch):
    monkeypatch.setattr(module, "BUFFER", 1)
    (hidden, weight, bias), targets = made(3)
    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    torch.testing.assert_close(softmax_loss(hidden, weight, bias, targets), expected)


def test_no_positions():
    tensors, targets = made(0)
    loss = softmax_loss(*tensors, targets)
    loss.backward()
    assert loss == 0
    assert all((tensor.grad == 0).all() for tensor in tensors)


@pytest.mark.parametrize("wanted", range(3))
def test_gradients_only_where_they_are_wanted(wanted):
    tensors, targets = made(4)
    tensors = [tensor.detach().requires_grad_(number == wanted) for number, tensor in enumerate(tensors)]
    softmax_loss(*tensors, targets).backward()
    assert [tensor.grad is not None for tensor in tensors] == [number == wanted for number in range(3)]


def test_without_a_graph():
    tensors, targets = made(4)
    with torch.no_grad():
        assert not softmax_loss(*tensors, targets).requires_grad


def test_half_precision_is_summed_in_float32():
    tensors, targets = made(11, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = softmax_loss(*tensors, targets)
    expected = F.cross_entropy(F.linear(*[tensor.float() for tensor in tensors]), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(tensor.grad.dtype == torch.bfloat16 for tensor in tensors)


def test_no_second_derivative():
    tensors, targets = made(3)
    (gradient,) = torch.autograd.grad(softmax_loss(*tensors, targets).square(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
