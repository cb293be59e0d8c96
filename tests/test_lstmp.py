"""The packed LSTM with projection against its readable twin, torch.nn.LSTM and numerical derivatives."""

import itertools

import pytest
import torch
from reference.lstmp_naive import lstmp_naive
from torch import nn
from torch.autograd import gradcheck

from heirloom.modeling.lstmp import lstmp

INPUTS, SIZE, CELLS = 5, 4, 7
NAMES = ["inputs", "weight_ih", "weight_hh", "bias", "weight_proj", "h0", "c0"]
BATCHES = {"several": [4, 3, 3, 1], "one row": [1] * 5, "one step": [3], "equal": [2, 2, 2]}
CLIPS = list(itertools.product((None, 0.2), (None, 0.1)))  # small enough to cut many values


def tensors(batch_sizes, projected=True, dtype=torch.float64, seed=0):
    """Inputs, weights and first states as in `NAMES`, all wanting gradients; without projection P = D."""
    generator = torch.Generator().manual_seed(seed)
    size, rows = SIZE if projected else CELLS, batch_sizes[0] if batch_sizes else 0
    shapes = [(sum(batch_sizes), INPUTS), (4 * CELLS, INPUTS), (4 * CELLS, size), (4 * CELLS,), (size, CELLS)]
    shapes += [(rows, size), (rows, CELLS)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) * 0.6 for shape in shapes]
    made = [tensor.to(dtype).requires_grad_() for tensor in made]
    return made if projected else [*made[:4], None, *made[5:]]


def run(function, batch_sizes, made, cell_clip, proj_clip):
    """Outputs, h, c and the gradients of a random projection of all three."""
    inputs, *weights, h0, c0 = made
    outputs, (h, c) = function(inputs, batch_sizes, *weights, (h0, c0), cell_clip, proj_clip)
    results = [outputs, h, c]
    generator = torch.Generator().manual_seed(9)
    probes = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    wanted = [tensor for tensor in made if tensor is not None]
    total = sum((result * probe).sum() for result, probe in zip(results, probes, strict=True))
    return results, torch.autograd.grad(total, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("clips", CLIPS, ids=str)
@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_results_and_all_gradients_equal_the_twins(batch, projected, clips, dtype):
    made = tensors(BATCHES[batch], projected, dtype)
    results, gradients = run(lstmp, BATCHES[batch], made, *clips)
    expected, expected_gradients = run(lstmp_naive, BATCHES[batch], made, *clips)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(results, expected, rtol=0, atol=tolerance)
    names = [name for name, tensor in zip(NAMES, made, strict=True) if tensor is not None]
    for name, found, wanted in zip(names, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(
            found, wanted, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert wanted.abs().max() > 1e-4, name


def test_the_clips_of_these_tests_are_at_work():
    made = tensors([4, 3, 3, 1])
    (outputs, _, c), _ = run(lstmp, [4, 3, 3, 1], made, 0.2, 0.1)
    for clipped, limit in ((c, 0.2), (outputs, 0.1)):
        share = (clipped.abs() == limit).double().mean()
        assert 0.2 < share < 1
        assert clipped.abs().max() == limit


def test_without_projection_proj_clip_does_nothing():
    made = tensors([3, 2], projected=False)
    with_clip, _ = run(lstmp, [3, 2], made, None, 0.1)
    without, _ = run(lstmp, [3, 2], made, None, None)
    torch.testing.assert_close(with_clip, without, rtol=0, atol=0)


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("clips", [(None, None), (0.2, 0.1)], ids=str)
def test_numerical_derivatives(projected, clips):
    made = tensors([3, 2, 2, 1], projected)
    present = [tensor for tensor in made if tensor is not None]

    def function(*given):
        given = list(given) if projected else [*given[:4], None, *given[4:]]
        outputs, (h, c) = lstmp(given[0], [3, 2, 2, 1], *given[1:5], tuple(given[5:]), *clips)
        return outputs, h, c

    assert gradcheck(function, present, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("projected", [True, False])
def test_equals_torch_lstm_where_it_has_no_clips(projected):
    batch_sizes = [4, 3, 3, 1]
    inputs, weight_ih, weight_hh, bias, weight_proj, h0, c0 = tensors(batch_sizes, projected)
    size = SIZE if projected else 0
    peer = nn.LSTM(INPUTS, CELLS, proj_size=size, dtype=torch.float64)
    with torch.no_grad():
        peer.weight_ih_l0.copy_(weight_ih), peer.weight_hh_l0.copy_(weight_hh)
        peer.bias_ih_l0.copy_(bias), peer.bias_hh_l0.zero_()
        if projected:
            peer.weight_hr_l0.copy_(weight_proj)
    packed = nn.utils.rnn.PackedSequence(inputs, torch.tensor(batch_sizes))
    expected, (h, c) = peer(packed, (h0[None], c0[None]))
    outputs, states = lstmp(inputs, batch_sizes, weight_ih, weight_hh, bias, weight_proj, (h0, c0))
    torch.testing.assert_close((outputs, states), (expected.data, (h[0], c[0])), rtol=0, atol=1e-12)
    (expected.data.sum() + h.sum()).backward()
    found = torch.autograd.grad(outputs.sum() + states[0].sum(), [weight_ih, weight_hh, bias])
    wanted = peer.weight_ih_l0.grad, peer.weight_hh_l0.grad, peer.bias_ih_l0.grad
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_no_state_means_zeros():
    made = tensors([3, 1])
    zeros = torch.zeros_like(made[5]), torch.zeros_like(made[6])
    torch.testing.assert_close(
        lstmp(made[0], [3, 1], *made[1:5]), lstmp(made[0], [3, 1], *made[1:5], zeros), rtol=0, atol=0
    )


def test_empty_batch():
    made = tensors([])
    outputs, (h, c) = lstmp(made[0], [], *made[1:5])
    assert (outputs.shape, h.shape, c.shape) == ((0, SIZE), (0, SIZE), (0, CELLS))
    (outputs.sum() + h.sum() + c.sum()).backward()
    assert made[1].grad.abs().max() == 0


def test_gradients_only_where_they_are_wanted():
    for wanted in range(len(NAMES)):
        made = [tensor.detach() for tensor in tensors([3, 2, 1])]
        made[wanted].requires_grad_()
        outputs, (h, _) = lstmp(made[0], [3, 2, 1], *made[1:5], tuple(made[5:]), 0.5, 0.5)
        (outputs.sum() + h.sum()).backward()
        assert [tensor.grad is not None for tensor in made] == [n == wanted for n in range(len(NAMES))]


def test_inputs_are_not_changed_and_states_do_not_share_memory():
    made = tensors([3, 2])
    before = [tensor.detach().clone() for tensor in made]
    outputs, (h, c) = lstmp(made[0], [3, 2], *made[1:5], tuple(made[5:]), 0.5, 0.5)
    torch.testing.assert_close([tensor.detach() for tensor in made], before, rtol=0, atol=0)
    pointers = {tensor.data_ptr() for tensor in (*made, outputs, h, c)}
    assert len(pointers) == len(made) + 3


def test_no_second_derivative():
    made = tensors([2, 1])
    outputs, _ = lstmp(made[0], [2, 1], *made[1:5])
    (gradient,) = torch.autograd.grad(outputs.square().sum(), made[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_keeps_the_recurrence_in_the_weights_precision():
    made = tensors([4, 3, 1], dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, (h, c) = lstmp(made[0].bfloat16(), [4, 3, 1], *made[1:5], tuple(made[5:]), 0.5, 0.5)
    rounded = made[0].bfloat16().float()
    expected, (h_expected, c_expected) = lstmp(rounded, [4, 3, 1], *made[1:5], tuple(made[5:]), 0.5, 0.5)
    torch.testing.assert_close((outputs, h, c), (expected, h_expected, c_expected), rtol=0, atol=0)
    found = torch.autograd.grad(outputs.sum(), made[1:])
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), made[1:]), rtol=0, atol=0)


def test_bfloat16():
    made = tensors([4, 3, 1], dtype=torch.bfloat16)
    results, gradients = run(lstmp, [4, 3, 1], made, 0.5, 0.5)
    expected, _ = run(lstmp, [4, 3, 1], [tensor.float() for tensor in made], 0.5, 0.5)
    assert {tensor.dtype for tensor in (*results, *gradients)} == {torch.bfloat16}
    torch.testing.assert_close([r.float() for r in results], expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("place", "shape", "words"),
    [
        (0, (5, INPUTS), r"inputs has shape \(5, 5\), expected \(6, 5\)"),
        (1, (4 * CELLS + 4, INPUTS), r"weight_ih has shape \(32, 5\), expected \(28, 5\)"),
        (3, (4 * CELLS - 1,), r"bias has shape \(27,\), expected \(28,\)"),
        (4, (CELLS, SIZE), r"weight_proj has shape \(7, 4\), expected \(4, 7\)"),
        (5, (2, SIZE), r"state h has shape \(2, 4\), expected \(3, 4\)"),
        (6, (3, SIZE), r"state c has shape \(3, 4\), expected \(3, 7\)"),
    ],
)
def test_shapes_that_do_not_belong_together(place, shape, words):
    made = tensors([3, 2, 1])
    made[place] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=words):
        lstmp(made[0], [3, 2, 1], *made[1:5], tuple(made[5:]))


def test_a_projection_is_missing():
    made = tensors([3, 2, 1])
    with pytest.raises(ValueError, match=r"weight_hh has shape \(28, 4\), expected \(28, 7\)"):
        lstmp(made[0], [3, 2, 1], *made[1:4])


def test_rows_must_be_sorted():
    made = tensors([2, 3, 1])
    with pytest.raises(ValueError, match="batch_sizes must not rise; sort the rows by falling length"):
        lstmp(made[0], [2, 3, 1], *made[1:5])
