"""ScalarMix: a learned weighted sum of a model's layers (Peters et al. 2018, eq. 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ScalarMix(nn.Module):
    """gamma * sum_k softmax(w)_k layer_k.

    Unlike AllenNLP, the weights w are one vector, not L scalars. Works on the hidden states of any model.

    Args:
        num_layers: how many layers there are, the token layer included.
        do_layer_norm: normalise each layer first, by one mean and variance over all its unmasked positions and
            features, without learned scale. AllenNLP counts the boundary tokens into these statistics, bilm-tf does not:
            pass hidden states with (`keep_boundaries=True`) or without them to follow either.
        num_mixes: number of independent mixes; None means one, without a leading axis.
        layers: mix only these layers; None means all.
        initial_scalar_parameters: w before the softmax; zeros (a plain mean) by default. (num_layers,)
        trainable: False freezes w and gamma.

    Raises:
        ValueError: layers or weights that do not belong to `num_layers` layers.
    """

    def __init__(
        self,
        num_layers: int,
        do_layer_norm: bool = False,
        num_mixes: int | None = None,
        layers: Sequence[int] | None = None,
        initial_scalar_parameters: Sequence[float] | None = None,
        trainable: bool = True,
    ):
        super().__init__()
        self.num_layers, self.do_layer_norm = num_layers, do_layer_norm
        self.layers = list(range(num_layers)) if layers is None else sorted(set(layers))
        if not self.layers or not all(0 <= layer < num_layers for layer in self.layers):
            raise ValueError(f"layers must name some of 0..{num_layers - 1}, found {layers}.")
        weights = torch.zeros(num_layers)
        if initial_scalar_parameters is not None:
            if len(initial_scalar_parameters) != num_layers:
                raise ValueError(
                    f"initial_scalar_parameters must hold one number for each of {num_layers} layers, found "
                    f"{len(initial_scalar_parameters)}."
                )
            weights = torch.tensor(initial_scalar_parameters, dtype=torch.float)
        leading = () if num_mixes is None else (num_mixes,)
        self.scalar_parameters = nn.Parameter(
            weights.expand(*leading, num_layers).clone(), requires_grad=trainable
        )
        self.gamma = nn.Parameter(torch.ones(leading), requires_grad=trainable)

    def weights(self) -> Tensor:
        """The layers' shares, summing to 1 over the mixed layers: ([num_mixes,] num_layers)."""
        kept = torch.full_like(self.scalar_parameters, float("-inf"))
        kept[..., self.layers] = self.scalar_parameters[..., self.layers]
        return kept.softmax(-1)

    def l2(self) -> Tensor:
        """Sum of squared w, the term that pulls the mix towards a plain mean (lambda in section 3.3 of the paper)."""
        return self.scalar_parameters[..., self.layers].square().sum()

    def forward(self, hidden_states: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """Mix the layers.

        Args:
            hidden_states: num_layers tensors (B, T, H).
            mask: (B, T), true at words; read by the layer norm only. None means all positions.

        Returns:
            ([num_mixes,] B, T, H). As in AllenNLP, normalised padding is not zero: -mean / deviation.

        Raises:
            ValueError: another number of layers, or layers of different shapes.
        """
        if len(hidden_states) != self.num_layers:
            raise ValueError(
                f"ScalarMix was made for {self.num_layers} layers but got {len(hidden_states)}. Pass all hidden states "
                "of the model, the token layer included."
            )
        if shapes := {tuple(layer.shape) for layer in hidden_states} - {tuple(hidden_states[0].shape)}:
            raise ValueError(
                f"ScalarMix needs layers of one shape, found {tuple(hidden_states[0].shape)} and {shapes}."
            )
        if self.do_layer_norm:
            hidden_states = [self._normalise(layer, mask) for layer in hidden_states]
        shares = self.weights()
        mixed = torch.tensordot(
            shares[..., self.layers], torch.stack([hidden_states[k] for k in self.layers]), dims=1
        )
        return self.gamma.view(*self.gamma.shape, *[1] * hidden_states[0].dim()) * mixed

    @staticmethod
    def _normalise(layer: Tensor, mask: Tensor | None) -> Tensor:
        eps = 1e-4 if layer.dtype == torch.float16 else 1e-13  # AllenNLP's
        kind = layer.dtype
        layer = layer.to(torch.promote_types(kind, torch.float32))  # float16 cannot count beyond 65,504
        mask = layer.new_ones(layer.shape[:-1]) if mask is None else mask.to(layer.dtype)
        mask = mask.unsqueeze(-1)
        count = (mask.sum() * layer.shape[-1]).clamp(min=1)
        mean = (layer * mask).sum() / count
        variance = ((layer * mask - mean) * mask).square().sum() / count
        return ((layer - mean) / (variance + eps).sqrt()).to(kind)


__all__ = ["ScalarMix"]
