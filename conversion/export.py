"""ELMo and one step of an LSTM language model as graphs that run without heirloom: torch.export and ONNX.

`ElmoModel` computes each distinct word once and no padding, by shapes that depend on the data; a graph cannot. Here every
position is computed: a padded position leaves its row's state as it was, so that `</S>` may stand behind all padding and the
backward stack reads the same positions in reverse. The loop over time is one scan a layer, for any length. Dropout,
`precision` and the cache of words are no part of a graph.

Weights lie in one safetensors file that all graphs of a folder share, under the names of the checkpoint.

Letters: B sentences, T words, S = T + 2 positions, C characters a word, P projection, D cells, L layers, V words.
"""

import contextlib
import copy
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..training.checkpoints import load_whole
from .checkpoints import load_model
from .saving import new_folder

if TYPE_CHECKING:
    from ..modeling.layers_elmo import ElmoTokenEncoder, LstmpLayer
    from ..modeling.modeling_elmo import ElmoPreTrainedModel
    from ..modeling.modeling_lstm_lm import LstmLMForCausalLM

FORMATS = {"torch": "model.pt2", "onnx": "model.onnx"}
ONNX_PACKAGES = "onnx", "onnxscript", "onnxruntime"
WEIGHTS = "model.safetensors"
LONGEST = 2**30  # of batch and length; torch 2.6 wants a number
TOLERANCE = 1e-4  # largest difference between a graph and the model


class Exported(NamedTuple):
    """How far one output of a written graph is from the model's.

    Args:
        file: of the graph.
        output: its name.
        shape: of the output on the random batch.
        difference: the largest absolute one.
    """

    file: str
    output: str
    shape: tuple[int, ...]
    difference: float


class ElmoGraph(nn.Module):
    """`ElmoModel.forward` with padding, and all layers returned.

    Args:
        model: an `ElmoModel`, whose weights it uses.
    """

    outputs = "hidden_states", "h_after", "c_after"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.elmo = model

    def forward(
        self,
        attention_mask: Tensor,
        h: Tensor,
        c: Tensor,
        input_ids: Tensor | None = None,
        char_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read sentences; `<S>` and `</S>` are put around each.

        Args:
            attention_mask: (B, T), 1 at words and 0 at padding, which may stand anywhere.
            h: (L, B, 2 P) to start from, zeros for a new text.
            c: (L, B, 2 D) likewise.
            input_ids: (B, T) word ids, for models with a word table.
            char_ids: (B, T, C) character ids, for models with characters.

        Returns:
            All layers (L + 1, B, T, 2 P), zeros at padding; h and c after the batch.
        """
        model, mask = self.elmo, attention_mask.bool()
        ids = [None if one is None else one.flatten(0, 1) for one in (input_ids, char_ids)]
        words = encode(model.token_encoder, *ids).unflatten(0, mask.shape)  # (B, T, P)
        bos, eos = encode(model.token_encoder, *model._boundary_ids())[:, None, None].expand(
            2, mask.shape[0], 1, -1
        )
        vectors = torch.cat([bos, words, eos], 1).transpose(0, 1)  # (S, B, P)
        alive = F.pad(mask, (1, 1), value=True).t().unsqueeze(2)  # (S, B, 1)
        stacks = model.lstm.forward_layers, model.lstm.backward_layers
        halves, states = [], []
        for layers, h_half, c_half, reverse in zip(
            stacks, h.chunk(2, 2), c.chunk(2, 2), (False, True), strict=True
        ):
            hidden, found, last = vectors, [vectors], []
            for number, layer in enumerate(layers):
                output, state = read(layer, hidden, alive, (h_half[number], c_half[number]), reverse)
                hidden = output + hidden if number and model.lstm.use_skip_connections else output
                found.append(hidden)
                last.append(state)
            halves.append(torch.stack(found))
            states.append([torch.stack(parts) for parts in zip(*last, strict=True)])
        inner = torch.cat(halves, 3)[:, 1:-1].transpose(1, 2)  # (L + 1, B, T, 2 P)
        h, c = (torch.cat(parts, 2) for parts in zip(*states, strict=True))
        return inner * mask[:, :, None].to(inner.dtype), h, c


class LstmLMStep(nn.Module):
    """One token of `LstmLMForCausalLM`.

    Args:
        model: a language model, whose weights it uses.
    """

    outputs = "logits", "h_after", "c_after"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.lm = model

    def forward(self, input_ids: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read one token a row.

        Args:
            input_ids: (B,) token ids.
            h: (L, B, P) to start from, zeros for a new text.
            c: (L, B, D) likewise.

        Returns:
            Logits of the next token (B, V), of an adaptive softmax log probabilities; h and c after the token.
        """
        hidden, last = self.lm.model.embed_tokens(input_ids), []
        for layer, before, cells in zip(self.lm.model.layers, h, c, strict=True):
            gates = F.linear(hidden, layer.weight_ih_l0, layer.bias_ih_l0)
            gates = gates + F.linear(before, layer.weight_hh_l0, layer.bias_hh_l0)
            cells, hidden = cell(gates, cells)
            if layer.proj_size:
                hidden = F.linear(hidden, layer.weight_hr_l0)
            last.append((hidden, cells))
        softmax = self.lm.lm_head
        logits = softmax(hidden) if isinstance(softmax, nn.Linear) else softmax.log_prob(hidden)
        return logits, *(torch.stack(parts) for parts in zip(*last, strict=True))


def encode(encoder: "ElmoTokenEncoder", input_ids: Tensor | None, char_ids: Tensor | None) -> Tensor:
    """`ElmoTokenEncoder.forward` word for word, repeated words and padding too: (N, P)."""
    features = []
    if encoder.word_embeddings is not None:
        features.append(encoder.word_embeddings(input_ids))
    if encoder.char_embeddings is not None:
        chars = encoder.char_embeddings(char_ids).transpose(1, 2)  # (N, E, C)
        chars = torch.cat([encoder.activation(part(chars).amax(2)) for part in encoder.convolutions], 1)
        for highway in encoder.highways:
            gate = highway.gate(chars).sigmoid()
            chars = gate * highway.transform(chars).relu() + (1 - gate) * chars
        features.append(chars)
    vectors = torch.cat(features, 1)
    return vectors if encoder.projection is None else encoder.projection(vectors)


def cell(gates: Tensor, c: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor]:
    """The new c (B, D) and o tanh(c) (B, D), from gates (B, 4 D) in torch's order."""
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    if clip is not None:
        c = c.clamp(-clip, clip)
    return c, o.sigmoid() * c.tanh()


def read(
    layer: "LstmpLayer", inputs: Tensor, alive: Tensor, state: tuple[Tensor, Tensor], reverse: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one layer over positions (S, B, P), from the last one if `reverse`; `alive` (S, B, 1) is false at padding.

    Returns:
        Outputs (S, B, P), and h (B, P) and c (B, D) after the last step.
    """
    from torch._higher_order_ops.scan import scan

    input_bias, forget, candidate, output = layer.bias.chunk(4)
    bias = torch.cat([input_bias, forget + layer.forget_bias, candidate, output])
    gates = F.linear(inputs, layer.weight_ih, bias)  # (S, B, 4 D)

    def step(state, position):
        h, c = state
        gates, alive = position
        c_new, h_new = cell(gates + F.linear(h, layer.weight_hh), c, layer.cell_clip)
        if layer.weight_proj is not None:
            h_new = F.linear(h_new, layer.weight_proj)
            if layer.proj_clip is not None:
                h_new = h_new.clamp(-layer.proj_clip, layer.proj_clip)
        h, c = torch.where(alive, h_new, h), torch.where(alive, c_new, c)
        return (h, c), h.clone()  # a scan's results may not share memory

    state = tuple(
        part.clone(memory_format=torch.contiguous_format) for part in state
    )  # as `step` returns them
    state, outputs = scan(step, state, (gates, alive), reverse=reverse)
    return outputs, state


def export_elmo(
    model: "ElmoPreTrainedModel", folder: str | Path, formats: Sequence[str] = ("torch", "onnx")
) -> list[Exported]:
    """Write the biLM of an ELMo model as graphs for any number and length of sentences, and compare them with it.

    Args:
        model: any ELMo model; heads and softmax are left out.
        folder: a new one.
        formats: "torch" (model.pt2, for `load_exported`) and "onnx" (model.onnx, for ONNX runtimes), which needs the extra
            `export`.

    Returns:
        The differences of each graph's outputs on a random batch.

    Raises:
        FileExistsError: the folder holds something.
        ImportError: a package for ONNX is missing.
        RuntimeError: a torch that cannot trace the graph.
        ValueError: another format, or a graph that differs from the model by more than 1e-4; nothing is kept then.
    """
    check_formats(formats)
    body = model.base_model
    config = body.config
    shape = 3, 5
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    if config.word_embedding_size:
        inputs["input_ids"] = torch.randint(1, config.vocab_size, shape, generator=generator)
    if config.char_embedding_size:
        shape_of_chars = *shape, config.max_characters_per_token
        inputs["char_ids"] = torch.randint(1, config.char_vocab_size, shape_of_chars, generator=generator)
    inputs["attention_mask"] = torch.tensor([[1] * 5, [1] * 2 + [0] * 3, [0] * 4 + [1]])
    sizes = 2 * config.projection_size, 2 * config.cell_size
    for name, size in zip("hc", sizes, strict=True):
        inputs[name] = torch.randn(config.num_hidden_layers, 3, size, generator=generator).clamp(-1, 1)
    free = {name: {0: "batch", 1: "words"} for name in inputs} | {key: {1: "batch"} for key in "hc"}

    def expected(body):
        read = {name: tensor for name, tensor in inputs.items() if name not in "hc"}
        found = body(**read, states=(inputs["h"], inputs["c"]), output_hidden_states=True)
        return torch.stack(found.hidden_states), *found.states

    return _export(ElmoGraph, body, inputs, free, expected, folder, formats)


def export_lstm_lm(
    model: "LstmLMForCausalLM", folder: str | Path, formats: Sequence[str] = ("torch", "onnx")
) -> list[Exported]:
    """Write one step of an LSTM language model as graphs for any number of rows, and compare them with it.

    Args:
        model: the language model.
        folder: as in `export_elmo`.
        formats: likewise.

    Returns:
        As `export_elmo`.

    Raises:
        FileExistsError: as `export_elmo`.
        ImportError: likewise.
        RuntimeError: likewise.
        ValueError: likewise.
    """
    check_formats(formats)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_ids": torch.randint(config.vocab_size, (3,), generator=generator)}
    for name, size in zip("hc", (config.hidden_size, config.cell_size), strict=True):
        inputs[name] = torch.randn(config.num_hidden_layers, 3, size, generator=generator).clamp(-1, 1)
    free = {"input_ids": {0: "batch"}} | {key: {1: "batch"} for key in "hc"}

    def expected(model):
        found = model(input_ids=inputs["input_ids"][:, None], states=(inputs["h"], inputs["c"]))
        return found.logits[:, -1], *found.states

    return _export(LstmLMStep, model, inputs, free, expected, folder, formats)


def export_checkpoint(checkpoint: str | Path, folder: str | Path, formats: Sequence[str]) -> list[Exported]:
    """`export_elmo` or `export_lstm_lm` of a checkpoint.

    Args:
        checkpoint: a folder, or a name on the Hub.
        folder: as in `export_elmo`.
        formats: likewise.

    Returns:
        As `export_elmo`.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: one of another kind, or as `export_elmo`, as are other errors.
    """
    from transformers import AutoConfig

    from ..modeling.modeling_lstm_lm import LstmLMForCausalLM

    check_formats(formats)
    kind = AutoConfig.from_pretrained(checkpoint).model_type
    if kind == "elmo":
        return export_elmo(load_model(checkpoint), folder, formats)
    if kind == "lstm-lm":
        return export_lstm_lm(load_whole(LstmLMForCausalLM, checkpoint), folder, formats)
    raise ValueError(
        f"{checkpoint} is a checkpoint of {kind!r}, expected 'elmo' or 'lstm-lm'. Models of Transformers are exported by "
        "its own tools (Optimum)."
    )


def load_exported(folder: str | Path) -> Callable[..., tuple[Tensor, ...]]:
    """The torch.export graph of a folder with its weights.

    Args:
        folder: of `export_elmo` or `export_lstm_lm`.

    Returns:
        A function of the graph's inputs, given by name; it needs no class of heirloom.

    Raises:
        FileNotFoundError: the folder holds no such graph.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in (FORMATS["torch"], WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f'{folder} holds no {name}; expected a folder that was exported with formats=("torch",).'
            )
    graph = torch.export.load(folder / FORMATS["torch"]).module()
    weights = load_file(folder / WEIGHTS)
    weights = {name: weights[name] for name in sorted(weights)}

    def run(**inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return graph(weights, {name: inputs[name] for name in sorted(inputs)})

    return run


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that there are not, and ONNX without its packages.

    Args:
        formats: as in `export_elmo`.

    Raises:
        ImportError: a package for ONNX is missing.
        ValueError: no format, or another one.
    """
    if isinstance(formats, str) or not formats or set(formats) - set(FORMATS):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, found {formats!r}.")
    if "onnx" in formats:
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"ONNX needs {', '.join(missing)}, which is not installed. pip install 'heirloom-lm[export]', or ask for "
                'formats=("torch",) only.'
            )


class _Weightless(nn.Module):
    """A graph whose weights are its first input, so that no copy of them is kept in a file of its own."""

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.__dict__["graph"] = graph  # no submodule: its parameters would be traced as constants

    def forward(self, weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return functional_call(self.graph, weights, (), inputs)


@torch.no_grad()
def _export(graph_class, model, inputs, sizes, expected, folder, formats) -> list[Exported]:
    """Write and compare; `sizes` names the dimensions of each input that are free."""
    from safetensors.torch import save_file

    model = copy.deepcopy(model).float().cpu().eval()
    if hasattr(model.config, "precision"):
        model.config.precision = "fp32"
    graph = graph_class(model)
    inputs = {name: inputs[name] for name in sorted(inputs)}
    weights = {name: tensor.clone() for name, tensor in sorted(graph.state_dict().items())}
    dims = {name: torch.export.Dim(name, min=1, max=LONGEST) for name in ("batch", "words")}
    free = {name: {axis: dims[dim] for axis, dim in sizes[name].items()} for name in inputs}
    shapes = {"weights": dict.fromkeys(weights), "inputs": free}
    with _clear_errors("torch.export"):
        program = torch.export.export(
            _Weightless(graph), (weights, inputs), dynamic_shapes=shapes, strict=False
        )
    program._example_inputs = None  # else the weights would be saved with them, pickled
    for part in program.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)  # holds paths of this machine
    rows, expected = [], expected(model)
    with new_folder(folder) as place:
        save_file(weights, place / WEIGHTS)
        for kind in dict.fromkeys(formats):
            path = place / FORMATS[kind]
            if kind == "torch":
                torch.export.save(program, path)
                found = load_exported(place)(**inputs)
            else:
                _save_onnx(program, weights, inputs, graph_class.outputs, path)
                found = _run_onnx(path, inputs)
            for name, ours, theirs in zip(graph_class.outputs, found, expected, strict=True):
                difference = float((ours - theirs).abs().max())
                rows.append(Exported(path.name, name, tuple(ours.shape), difference))
        if wrong := [row for row in rows if not row.difference <= TOLERANCE]:
            raise ValueError(
                f"Verification failed: {wrong[0].output} of {wrong[0].file} is {wrong[0].difference:.2g} away from the "
                f"model's, at most {TOLERANCE} was expected. Nothing was kept; that is a bug of heirloom, or the weights "
                "are not finite."
            )
    return rows


def _save_onnx(program, weights, inputs, outputs, path: Path) -> None:
    """An ONNX file whose weights are pieces of the safetensors file beside it."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with _clear_errors("torch.onnx"):
        found = torch.onnx.export(program, (weights, inputs), dynamo=True, optimize=False, verbose=False)
    model, graph = found.model, found.model.graph
    with (path.parent / WEIGHTS).open("rb") as file:
        start = int.from_bytes(file.read(8), "little")  # safetensors: size of the header, header, numbers
        places = json.loads(file.read(start))
    for name, value in zip((*weights, *inputs), list(graph.inputs), strict=True):
        value.name = name
        if name in weights:
            begin, end = places[name]["data_offsets"]
            graph.inputs.remove(value)
            shape, kind = onnx_ir.Shape(places[name]["shape"]), onnx_ir.DataType.FLOAT
            value.const_value = onnx_ir.ExternalTensor(
                WEIGHTS, 8 + start + begin, end - begin, kind, shape=shape, name=name, base_dir=path.parent
            )
            graph.register_initializer(value)
    for name, value in zip(outputs, graph.outputs, strict=True):
        value.name = name
    ClearMetadataAndDocStringPass()(model)
    onnx_ir.save(model, path)


@contextlib.contextmanager
def _clear_errors(part: str) -> Iterator[None]:
    """Old versions of torch stop with errors about their own inside."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"{part} of torch {torch.__version__} cannot trace this graph: {type(error).__name__}: {error!s:.200}. "
            "Expected a newer torch: 2.13 is tested; 2.6 traces an LSTM LM's step, but no ELMo and nothing for ONNX."
        ) from error


def _run_onnx(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(one) for one in session.run(None, {k: v.numpy() for k, v in inputs.items()})]


__all__ = ["Exported", "check_formats", "export_checkpoint", "export_elmo", "export_lstm_lm", "load_exported"]
