"""ScalarMix: shares, several and selected layers, both layer norms, the L2 term, errors."""

import numpy as np
import pytest
import torch
from reference.bilm_naive import scalar_mix

from heirloom.modeling.scalar_mix import ScalarMix

WEIGHTS, GAMMA = [0.25, -1.25, 0.75], 1.625
LENGTHS = [4, 2, 6, 3]  # with sentence marks


def layers(dtype=torch.float64):
    """Three layers (B, T + 2, H) of different mean and spread, zeros at padding; the mask (B, T + 2)."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    planes = [torch.randn(4, 6, 8, generator=generator, dtype=torch.float64) * (k + 1) + k for k in range(3)]
    return [(plane * mask[..., None]).to(dtype) for plane in planes], mask


def naive(planes, norm):
    """The twin's mix of each sentence (n, H)."""
    sentences = [[plane[row, :length].numpy() for plane in planes] for row, length in enumerate(LENGTHS)]
    return scalar_mix(sentences, np.array(WEIGHTS), GAMMA, norm)


def mix_of(do_layer_norm=False, **choices):
    mix = ScalarMix(3, do_layer_norm, initial_scalar_parameters=WEIGHTS, **choices).double()
    torch.nn.init.constant_(mix.gamma, GAMMA)
    return mix


def test_at_first_it_is_the_plain_mean():
    planes, _ = layers()
    torch.testing.assert_close(ScalarMix(3).double()(planes), sum(planes) / 3)


@pytest.mark.parametrize("norm", [None, "allennlp", "bilm-tf"])
def test_equals_the_twin(norm):
    planes, mask = layers()
    if norm == "bilm-tf":  # statistics without the sentence marks
        mask = torch.arange(4) < torch.tensor(LENGTHS)[:, None] - 2
        words = [plane[:, 1:-1] * mask[..., None] for plane in planes]
        mixed = mix_of(True)(words, mask)
    else:
        mixed = mix_of(norm == "allennlp")(planes, mask)[:, 1:-1]
    for row, expected in enumerate(naive(planes, norm)):
        np.testing.assert_allclose(mixed[row, : len(expected)].detach(), expected, rtol=0, atol=1e-12)


def test_the_two_layer_norms_differ():
    planes, _ = layers()
    pairs = zip(naive(planes, "allennlp"), naive(planes, "bilm-tf"), strict=True)
    assert max(np.abs(one - other).max(initial=0) for one, other in pairs) > 1e-2


def test_layer_norm_does_not_see_the_padding():
    planes, mask = layers()
    wild = [plane.masked_fill(~mask[..., None], 1e3) for plane in planes]
    mix = mix_of(True)
    torch.testing.assert_close(mix(planes, mask)[mask], mix(wild, mask)[mask])
    assert (mix(planes, mask)[mask] - mix(planes)[mask]).abs().max() > 1e-2  # no mask: padding counts


def test_normalised_padding_is_minus_mean_over_deviation():
    planes, mask = layers()
    kept = [plane[mask] for plane in planes]
    shares = torch.tensor(WEIGHTS, dtype=torch.float64).softmax(0)
    pairs = zip(shares, kept, strict=True)
    expected = -GAMMA * sum(share * plane.mean() / plane.std(correction=0) for share, plane in pairs)
    padding = mix_of(True)(planes, mask)[~mask]
    torch.testing.assert_close(padding, expected.expand_as(padding))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    planes, mask = layers(dtype)
    mixed = mix_of(True).to(dtype)(planes, mask)
    expected = mix_of(True)([plane.double() for plane in planes], mask)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_counts_far_enough(dtype):
    """More values than float16 can count, and a layer without any deviation."""
    plane = torch.randn(4, 200, 128, generator=torch.Generator().manual_seed(0)).to(dtype) + 2
    mask = torch.ones(4, 200, dtype=torch.bool)
    mixed, expected = ScalarMix(1, True).to(dtype)([plane], mask), ScalarMix(1, True)([plane.float()], mask)
    torch.testing.assert_close(mixed.float(), expected, rtol=0, atol=0.03)
    assert ScalarMix(1, True).to(dtype)([torch.ones_like(plane)], mask).isfinite().all()


def test_layer_norm_of_float16_has_allennlps_epsilon():
    plane = torch.tensor([[[0.01, -0.01]]])
    found = [
        ScalarMix(1, True).to(dtype)([plane.to(dtype)]).flatten().tolist()
        for dtype in (torch.float16, torch.float)
    ]
    assert found[0] == pytest.approx([0.01 / (2 * 1e-4) ** 0.5, -0.01 / (2 * 1e-4) ** 0.5], rel=0.01)
    assert found[1] == pytest.approx([1, -1])


def test_several_mixes():
    planes, mask = layers()
    mix = mix_of(True, num_mixes=2)
    with torch.no_grad():
        mix.scalar_parameters[1] = torch.tensor([0.0, 5.0, -1.0])
        mix.gamma[1] = -2.0
    alone = ScalarMix(3, True, initial_scalar_parameters=[0.0, 5.0, -1.0]).double()
    torch.nn.init.constant_(alone.gamma, -2.0)
    both = mix(planes, mask)
    assert both.shape == (2, 4, 6, 8)
    torch.testing.assert_close(both[0], mix_of(True)(planes, mask))
    torch.testing.assert_close(both[1], alone(planes, mask))


def test_selected_layers():
    planes, _ = layers()
    mix = mix_of(layers=[2, 0, 2])
    shares = torch.tensor([WEIGHTS[0], WEIGHTS[2]], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(mix(planes), GAMMA * (shares[0] * planes[0] + shares[1] * planes[2]))
    torch.testing.assert_close(mix.weights().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert mix.weights()[1] == 0
    mix(planes).sum().backward()
    assert mix.scalar_parameters.grad[1] == 0
    torch.testing.assert_close(ScalarMix(3, layers=[1]).double()(planes), planes[1])
    planes[1] = planes[1] * float("nan")  # a layer left out is not even read
    assert mix(planes).isfinite().all()


def test_one_layer_by_weights_as_allennlp_users_write_it():
    planes, _ = layers()
    mix = ScalarMix(3, initial_scalar_parameters=[-9e10, 1, -9e10], trainable=False).double()
    torch.testing.assert_close(mix(planes), planes[1])


def test_frozen():
    mix = ScalarMix(3, trainable=False)
    assert not any(parameter.requires_grad for parameter in mix.parameters())
    assert not mix(layers(torch.float32)[0]).requires_grad


def test_l2_counts_the_mixed_layers():
    assert mix_of().l2().item() == pytest.approx(sum(w * w for w in WEIGHTS))
    assert mix_of(layers=[0, 2]).l2().item() == pytest.approx(0.25**2 + 0.75**2)
    assert mix_of(num_mixes=2).l2().item() == pytest.approx(2 * sum(w * w for w in WEIGHTS))
    assert ScalarMix(3).l2() == 0


@pytest.mark.parametrize("do_layer_norm", [False, True])
def test_derivatives(do_layer_norm):
    planes, mask = layers()
    mix = mix_of(do_layer_norm, layers=[0, 2], num_mixes=2)
    names = [name for name, _ in mix.named_parameters()]

    def function(first, last, *values):
        inputs = [first, planes[1][:, :, :2], last]
        return torch.func.functional_call(mix, dict(zip(names, values, strict=True)), (inputs, mask))

    inputs = [planes[k][:, :, :2].clone().requires_grad_() for k in (0, 2)]
    assert torch.autograd.gradcheck(function, [*inputs, *mix.parameters()])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": [3]}, r"layers must name some of 0\.\.2, found \[3\]"),
        ({"layers": [-1]}, r"layers must name some of 0\.\.2"),
        ({"layers": []}, r"layers must name some of 0\.\.2"),
        ({"initial_scalar_parameters": [1.0]}, "one number for each of 3 layers, found 1"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        ScalarMix(3, **arguments)


def test_bad_layers():
    planes, _ = layers(torch.float32)
    with pytest.raises(ValueError, match="made for 3 layers but got 2. Pass all hidden states"):
        ScalarMix(3)(planes[:2])
    with pytest.raises(ValueError, match=r"layers of one shape, found \(4, 6, 8\) and"):
        ScalarMix(3)([*planes[:2], planes[2][:, 1:]])
