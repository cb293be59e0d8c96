"""The biLM as AllenNLP computes it, operation for operation: what heirloom's speed is measured against.

Every time step multiplies its own inputs; rows are sorted by length and only those alive are computed; the convolutions
run over all C columns of every position of the padded batch, repeated words included. All operations are differentiable.
Unlike AllenNLP nothing is kept between calls. Weights are those of an `ElmoModel`, which are shared, not copied.

Letters: B sentences, T words of the longest, S = T + 2 positions with marks, C characters, P projection, D cells.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


class ElmoStepwise:
    """The twin of an `ElmoModel` that reads characters."""

    def __init__(self, model):
        self.config, self.encoder = model.config, model.token_encoder
        self.directions = model.lstm.forward_layers, model.lstm.backward_layers
        self.marks = model._boundary_ids()[1]  # (2, C)

    def parameters(self) -> list[Tensor]:
        """Weights of the LSTMs, in the order of `ElmoLstm.parameters()`."""
        return [weight for layers in self.directions for weight in layers.parameters()]

    def encoder_parameters(self) -> list[Tensor]:
        """Weights of the character encoder, in the order of `ElmoTokenEncoder.parameters()`."""
        return list(self.encoder.parameters())

    def __call__(self, char_ids: Tensor) -> list[Tensor]:
        """Layers 0..L (B, S, 2 P) of characters (B, T, C); a word of zeros is padding, on the right only."""
        lengths = (char_ids > 0).any(2).sum(1)
        ids = add_marks(char_ids, lengths, *self.marks)
        return self.run(self.encode(ids.flatten(0, 1)).unflatten(0, ids.shape[:2]), lengths + 2)

    def make_table(self, char_ids: Tensor) -> tuple[Tensor, Tensor]:
        """What `look_up` reads: vectors (V, P) of a vocabulary's words (V, C), and those of the marks (2, P)."""
        with torch.no_grad():
            return torch.cat([self.encode(part) for part in char_ids.split(256)]), self.encode(self.marks)

    def look_up(self, word_ids: Tensor, table: Tensor, marks: Tensor) -> list[Tensor]:
        """The same from a cached vocabulary: words (B, T), 0 for padding, vectors (V, P), those of the marks (2, P)."""
        lengths = (word_ids > 0).sum(1)
        return self.run(add_marks(F.embedding(word_ids, table), lengths, *marks), lengths + 2)

    def run(self, vectors: Tensor, lengths: Tensor) -> list[Tensor]:
        """Layers 0..L (B, S, 2 P) of token vectors (B, S, P) that have their marks, in sentences of `lengths` (B,)."""
        mask = torch.arange(vectors.shape[1]) < lengths[:, None]
        return [torch.cat([vectors, vectors], 2) * mask.unsqueeze(2), *self.stacks(vectors, lengths)]

    def encode(self, char_ids: Tensor) -> Tensor:
        """Vectors (N, P) of words (N, C)."""
        encoder = self.encoder
        chars = F.embedding(char_ids, encoder.char_embeddings.weight).transpose(1, 2)  # (N, E, C)
        features = []
        for convolution in encoder.convolutions:
            windows = F.conv1d(chars, convolution.weight, convolution.bias)
            features.append(encoder.activation(torch.max(windows, 2)[0]))
        features = torch.cat(features, 1)
        for highway in encoder.highways:
            new = F.linear(features, highway.transform.weight, highway.transform.bias)
            gate = torch.sigmoid(F.linear(features, highway.gate.weight, highway.gate.bias))
            features = gate * torch.relu(new) + (1 - gate) * features
        if encoder.projection is None:
            return features
        return F.linear(features, encoder.projection.weight, encoder.projection.bias)

    def stacks(self, vectors: Tensor, lengths: Tensor) -> list[Tensor]:
        """LSTM layers 1..L (B, S, 2 P) of token vectors (B, S, P)."""
        sorted_lengths, order = lengths.sort(descending=True)
        restore = order.argsort()
        steps = torch.arange(vectors.shape[1])
        alive = (sorted_lengths > steps[:, None]).sum(1).tolist()  # rows at each step
        forward = backward = vectors.index_select(0, order)
        layers = []
        for number, cells in enumerate(zip(*self.directions, strict=True)):
            new_forward = self.cell_loop(cells[0], forward, alive, False)
            new_backward = self.cell_loop(cells[1], backward, alive, True)
            if number and self.config.use_skip_connections:
                new_forward, new_backward = new_forward + forward, new_backward + backward
            forward, backward = new_forward, new_backward
            layers.append(torch.cat([forward, backward], 2))
        return [layer.index_select(0, restore) for layer in layers]

    def cell_loop(self, cell, inputs: Tensor, alive: list[int], reverse: bool) -> Tensor:
        """One direction of one layer: (B, S, P) from inputs (B, S, P), of which `alive[step]` rows count."""
        rows, steps, size = inputs.shape
        cells = cell.weight_hh.shape[0] // 4
        forget = inputs.new_zeros(4 * cells)
        forget[cells : 2 * cells] = cell.forget_bias
        bias = cell.bias + forget
        outputs = inputs.new_zeros(rows, steps, size)
        all_h, all_c = inputs.new_zeros(rows, size), inputs.new_zeros(rows, cells)
        for step in reversed(range(steps)) if reverse else range(steps):
            n = alive[step]
            h, c = self.cell_step(cell, bias, inputs[:n, step], all_h[:n].clone(), all_c[:n].clone())
            all_h, all_c = all_h.clone(), all_c.clone()
            all_c[:n] = c
            all_h[:n] = h
            outputs[:n, step] = h
        return outputs

    def cell_step(self, cell, bias: Tensor, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next h (n, P) and c (n, D) of the rows alive."""
        from_input = F.linear(x, cell.weight_ih)
        from_state = F.linear(h, cell.weight_hh, bias)
        gates = zip(from_input.chunk(4, 1), from_state.chunk(4, 1), strict=True)
        i, f, g, o = (one + other for one, other in gates)
        c = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * c
        if cell.cell_clip is not None:
            c = torch.clamp(c, -cell.cell_clip, cell.cell_clip)
        h = torch.sigmoid(o) * torch.tanh(c)
        if cell.weight_proj is not None:
            h = F.linear(h, cell.weight_proj)
            if cell.proj_clip is not None:
                h = torch.clamp(h, -cell.proj_clip, cell.proj_clip)
        return h, c


def add_marks(values: Tensor, lengths: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Put a mark (H,) before and one behind each sentence: (B, T, H) to (B, T + 2, H)."""
    result = values.new_zeros(values.shape[0], values.shape[1] + 2, values.shape[2])
    result[:, 1:-1] = values
    for row, length in enumerate(lengths.tolist()):
        result[row, 0], result[row, length + 1] = first, last
    return result
