"""The parts of an ELMo biLM: words to vectors by characters, and two stacks of LSTMs with projection.

Peters et al. 2018, section 3; Kim et al. 2016 (character CNN, highway); Jozefowicz et al. 2016. All parts work on *flat*
words: no padding, sentences behind one another, with their number of words in `lengths`.

Letters: N words of a batch, U distinct words, B sentences, C characters a word, E character embedding, F filters,
P projection, D cells, L layers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .lstmp import lstmp
from .lstmp_cuda import in_streams
from .lstmp_paths import choose_path, dense
from .packing import distinct_rows, pack
from .word_cache import parameter_state, word_cache

PART = 256  # distinct words that are encoded at once without gradients


class Highway(nn.Module):
    """x -> g relu(W x + b) + (1 - g) x with g = sigmoid(V x + c): Srivastava et al. 2015, eq. 3.

    bilm-tf's files call the gate "carry", although it multiplies the transformed part.
    """

    def __init__(self, size: int):
        super().__init__()
        self.transform = nn.Linear(size, size)
        self.gate = nn.Linear(size, size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, F) to (N, F)."""
        gate = dense(self.gate, inputs).sigmoid()
        return gate * dense(self.transform, inputs).relu() + (1 - gate) * inputs


class ElmoTokenEncoder(nn.Module):
    """Words to context-free vectors: [word embedding; highway(max over character convolutions)] and a projection.

    In evaluation on a CPU, without gradients, the vectors of the latest `cached_words` words are kept until a parameter
    changes; 0 turns that off.
    """

    cached_words = 20_000  # 98 to 99 % of a text's words at 41 MB for the original size

    def __init__(self, config):
        super().__init__()
        self.pad_char_id = config.pad_char_id
        self.activation = getattr(torch, config.char_activation)
        self.word_embeddings = self.char_embeddings = None
        if config.word_embedding_size:
            self.word_embeddings = nn.Embedding(config.vocab_size, config.word_embedding_size, padding_idx=0)
        if config.char_embedding_size:
            self.char_embeddings = nn.Embedding(
                config.char_vocab_size, config.char_embedding_size, padding_idx=0
            )
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.char_embedding_size, count, width)
            for width, count in (config.char_filters if config.char_embedding_size else ())
        )
        self.highways = nn.ModuleList(
            Highway(config.num_filters) for _ in range(config.num_highway_layers if config.num_filters else 0)
        )
        self.projection = None
        if config.has_token_projection:
            self.projection = nn.Linear(config.num_features, config.projection_size)

    def forward(self, input_ids: Tensor | None, char_ids: Tensor | None) -> Tensor:
        """Vectors (N, P) of words; arguments as in `distinct`."""
        vectors, index = self.distinct(input_ids, char_ids)
        return vectors.index_select(0, index)

    def distinct(self, input_ids: Tensor | None, char_ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode each distinct word once.

        Args:
            input_ids: (N,) word ids, read where the model has a word table.
            char_ids: (N, C) character ids, read where it has characters.

        Returns:
            (U, P) vectors of the distinct words, and (N,) which of them each word is.
        """
        parts = [ids.unsqueeze(1) if ids.dim() == 1 else ids for ids in self._read(input_ids, char_ids)]
        words, index, keys = distinct_rows(torch.cat(parts, 1).long())  # (U, [1 +] C), (N,), (U,)
        encode = self._encode if torch.is_grad_enabled() else self._encode_in_parts
        if state := self._cache_state(words):
            return word_cache(self, self.cached_words)(words, keys, state, encode), index
        return encode(words), index

    def _cache_state(self, words: Tensor) -> tuple | None:
        """The parameters' state, where vectors may be kept."""
        usable = self.cached_words and self.char_embeddings is not None and words.device.type == "cpu"
        busy = torch.is_grad_enabled() or self.training or torch.compiler.is_compiling()
        if not usable or busy or torch.is_autocast_enabled("cpu"):
            return None
        return parameter_state(self)

    def _read(self, input_ids: Tensor | None, char_ids: Tensor | None) -> list[Tensor]:
        """The ids that this model has a table for."""
        pairs = (input_ids, self.word_embeddings), (char_ids, self.char_embeddings)
        return [ids for ids, table in pairs if table is not None]

    def _encode_in_parts(self, words: Tensor) -> Tensor:
        """The same with bounded memory, and short words beside short ones, whose padding is cut off."""
        if self.char_embeddings is None or len(words) <= PART:
            return self._encode(words)
        order = (words != self.pad_char_id).sum(1).argsort()
        vectors = torch.cat([self._encode(words[rows]) for rows in order.split(PART)])
        return vectors.index_select(0, order.argsort())

    def _encode(self, words: Tensor) -> Tensor:
        """Vectors (U, P) of words (U, [1 +] C)."""
        features = []
        if self.word_embeddings is not None:
            features.append(self.word_embeddings(words[:, 0]))
            words = words[:, 1:]
        if self.char_embeddings is not None:
            chars = self._convolve(self._trim(words))  # (U, F)
            for highway in self.highways:
                chars = highway(chars)
            features.append(chars)
        vectors = torch.cat(features, 1)
        return vectors if self.projection is None else dense(self.projection, vectors)

    def _trim(self, char_ids: Tensor) -> Tensor:
        """Cut the padding that no maximum can notice: one window of nothing but padding says what all of them say."""
        if not len(char_ids):
            return char_ids
        widest = max(convolution.kernel_size[0] for convolution in self.convolutions)
        used = (char_ids != self.pad_char_id).any(0).nonzero()  # columns
        longest = int(used.max()) + 1 if len(used) else 0
        return char_ids[:, : longest + widest]

    def _convolve(self, char_ids: Tensor) -> Tensor:
        chars = self.char_embeddings(char_ids).transpose(1, 2)  # (U, E, C)
        return torch.cat([self.activation(convolve(chars).amax(2)) for convolve in self.convolutions], 1)

    def init_weights(self, layer: nn.Module, init) -> None:
        """bilm-tf's initial values for one of this encoder's layers, written through `init` (transformers.initialization).

        Layer by layer, because Transformers never offers a module without parameters of its own, as this one.
        """
        if isinstance(layer, nn.Embedding):
            if layer is self.word_embeddings:
                init.xavier_uniform_(layer.weight)
            else:
                init.uniform_(layer.weight, -1.0, 1.0)
            # A slice does not know that its table was loaded.
            if not getattr(layer.weight, "_is_hf_initialized", False):
                init.zeros_(layer.weight[0])
        elif isinstance(layer, nn.Conv1d):
            if self.activation is torch.relu:
                init.uniform_(layer.weight, -0.05, 0.05)
            else:
                init.normal_(layer.weight, std=1 / math.sqrt(layer.kernel_size[0] * layer.in_channels))
            init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            is_gate = any(layer is highway.gate for highway in self.highways)
            init.constant_(layer.bias, -2.0 if is_gate else 0.0)


class LstmpLayer(GradientCheckpointingLayer):
    """The weights of one LSTM with projection: gates in torch's order, the forget bias kept out of `bias`.

    With `gradient_checkpointing` of TrainingArguments its activations are computed again for the backward pass.
    """

    def __init__(self, config):
        super().__init__()
        size, cells = config.projection_size, config.cell_size
        self.config = config  # `precision` is read at each call
        self.cell_clip, self.proj_clip = config.cell_clip, config.proj_clip
        self.forget_bias = float(config.forget_bias)
        self.weight_ih = nn.Parameter(torch.empty(4 * cells, size))
        self.weight_hh = nn.Parameter(torch.empty(4 * cells, size))
        self.bias = nn.Parameter(torch.empty(4 * cells))
        self.weight_proj = nn.Parameter(torch.empty(size, cells)) if cells != size else None

    def forward(
        self,
        inputs: Tensor,
        batch_sizes: list[int],
        state: tuple[Tensor, Tensor],
        index: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run `lstmp` on packed inputs (N, P), or on those that `index` takes from (U, P); state h (R, P) and c (R, D)."""
        input_bias, forget, candidate, output = self.bias.chunk(4)
        bias = torch.cat([input_bias, forget + self.forget_bias, candidate, output])
        weights = self.weight_ih, self.weight_hh, bias, self.weight_proj
        options = self.cell_clip, self.proj_clip, index, self.config.precision
        return lstmp(inputs, batch_sizes, *weights, state, *options)

    def init_weights(self, init) -> None:
        """Glorot uniform over the joint kernel of inputs and outputs, zero bias."""
        cells, size = self.weight_ih.shape[0] // 4, self.weight_ih.shape[1]
        bound = math.sqrt(6 / (2 * size + 4 * cells))
        init.uniform_(self.weight_ih, -bound, bound)
        init.uniform_(self.weight_hh, -bound, bound)
        init.zeros_(self.bias)
        if self.weight_proj is not None:
            init.xavier_uniform_(self.weight_proj)


class ElmoLstm(nn.Module):
    """Two independent stacks of LSTMs, one reading each sentence forwards, one backwards."""

    def __init__(self, config):
        super().__init__()
        self.use_skip_connections = config.use_skip_connections
        self.dropout = config.dropout
        self.forward_layers = nn.ModuleList(LstmpLayer(config) for _ in range(config.num_hidden_layers))
        self.backward_layers = nn.ModuleList(LstmpLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        vectors: Tensor,
        lengths: Tensor,
        states: tuple[Tensor, Tensor] | None = None,
        index: Tensor | None = None,
        backward_index: Tensor | None = None,
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """Run both stacks over flat sentences, or over two streams of text.

        Args:
            vectors: (U, P) of distinct words.
            lengths: (B,) positions of each sentence; 0 leaves that row's state as it was.
            states: h (L, R, 2 P) and c (L, R, 2 D) for rows 0..R-1; missing rows start from zero.
            index: (N,), which vector stands at each of the sentences' positions, behind one another; by default the
                vectors stand there themselves (U = N).
            backward_index: (N,), another text for the backward stack, which is in reverse order already; by default
                that stack reads the sentences from their ends.

        Returns:
            Each layer's output (N, 2 P), and the states (L, max(R, B), ...) after each row's last position. The
            recurrent h is the clipped projection; the skip connection is added to the output only.
        """
        h, c = self._rows(states, len(lengths))
        order, batch_sizes, places = pack(lengths)
        if index is None:
            index = torch.arange(len(vectors), device=vectors.device)
        texts = index, index
        if backward_index is not None:
            texts, places = (index, backward_index), (places[0], places[0])
        stacks = self.forward_layers, self.backward_layers
        starts = zip(*(state.index_select(1, order).chunk(2, 2) for state in (h, c)), strict=True)
        calls = [
            (layers, vectors, text.index_select(0, place), batch_sizes, start)
            for layers, text, place, start in zip(stacks, texts, places, starts, strict=True)
        ]
        beside = choose_path(self.forward_layers[0].weight_hh) == "cuda"
        found = in_streams(self._read, calls) if beside else (self._read(*call) for call in calls)
        halves, ends, packed = [], [], torch.arange(len(index), device=index.device)
        for (outputs, states), place in zip(found, places, strict=True):
            unpack = torch.empty_like(place).scatter_(0, place, packed)
            halves.append([output.index_select(0, unpack) for output in outputs])
            ends.append(states)
        for state, last in zip((h, c), zip(*ends, strict=True), strict=True):
            state.index_copy_(1, order, torch.cat(last, 2).detach())
        return [torch.cat(pair, 1) for pair in zip(*halves, strict=True)], (h, c)

    def _read(
        self,
        layers: nn.ModuleList,
        hidden: Tensor,
        words: Tensor,
        batch_sizes: list[int],
        states: tuple[Tensor, Tensor],
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """One direction: from vectors (U, P), packed words (N,) and states (L, R, P) and (L, R, D) to packed outputs (N, P)
        of each layer and the last states."""
        if self.training and self.dropout:  # each position loses other features
            hidden, words = hidden.index_select(0, words), None
        outputs, ends = [], []
        for number, (layer, *state) in enumerate(zip(layers, *states, strict=True)):
            if self.training:
                hidden = F.dropout(hidden, self.dropout)
            output, last = layer(hidden, batch_sizes, tuple(state), None if number else words)
            hidden = output + hidden if number and self.use_skip_connections else output
            outputs.append(hidden)
            ends.append(last)
        return outputs, tuple(map(torch.stack, zip(*ends, strict=True)))

    def _rows(self, states, batch: int) -> tuple[Tensor, Tensor]:
        """Copies of the states with at least `batch` rows, or zeros."""
        weight, layers = (
            self.forward_layers[0].weight_hh,
            len(self.forward_layers),
        )  # (4 D, P); autocast keeps its dtype
        if states is None:
            sizes = 2 * weight.shape[1], weight.shape[0] // 2
            return tuple(weight.new_zeros(layers, batch, size) for size in sizes)
        missing = max(0, batch - states[0].shape[1])
        return tuple(F.pad(state.detach().to(weight), (0, 0, 0, missing)).clone() for state in states)


__all__ = ["ElmoLstm", "ElmoTokenEncoder", "Highway", "LstmpLayer"]
