"""The readable twin of `heirloom.modeling.lstmp`: row by row and step by step, derivatives by autograd.

Sak et al. 2014, section 2, with bilm-tf's clips. Rows carry their own number of steps; nothing is packed.
"""

import torch
from torch import Tensor


def lstmp_step(
    x, h, c, weight_ih, weight_hh, bias, weight_proj, cell_clip, proj_clip
) -> tuple[Tensor, Tensor]:
    """One step of one row: the next h (P,) and c (D,)."""
    i, f, g, o = (weight_ih @ x + weight_hh @ h + bias).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    if cell_clip is not None:
        c = c.clamp(-cell_clip, cell_clip)
    h = o.sigmoid() * c.tanh()
    if weight_proj is not None:
        h = weight_proj @ h
        if proj_clip is not None:
            h = h.clamp(-proj_clip, proj_clip)
    return h, c


def lstmp_naive(
    inputs,
    batch_sizes,
    weight_ih,
    weight_hh,
    bias,
    weight_proj=None,
    state=None,
    cell_clip=None,
    proj_clip=None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """As `lstmp`, from the same packed inputs (N, I)."""
    starts = [sum(batch_sizes[:step]) for step in range(len(batch_sizes))]
    outputs, last = [None] * len(inputs), []
    for row in range(batch_sizes[0] if batch_sizes else 0):
        if state is None:
            h, c = inputs.new_zeros(weight_hh.shape[1]), inputs.new_zeros(weight_hh.shape[0] // 4)
        else:
            h, c = state[0][row], state[1][row]
        for step, alive in enumerate(batch_sizes):
            if row < alive:
                place = starts[step] + row
                h, c = lstmp_step(
                    inputs[place], h, c, weight_ih, weight_hh, bias, weight_proj, cell_clip, proj_clip
                )
                outputs[place] = h
        last.append((h, c))
    if not outputs:
        return inputs.new_zeros(0, weight_hh.shape[1]), state
    return torch.stack(outputs), tuple(torch.stack(part) for part in zip(*last, strict=True))
