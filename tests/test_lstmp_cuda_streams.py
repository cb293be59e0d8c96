"""Both directions of an ELMo in training, beside each other in CUDA streams: on CPUs with streams that only take notes.

No GPU has run the tests marked `gpu` so far.
"""

import contextlib
import itertools

import pytest
import torch
from gpu import needs_cuda

from heirloom.modeling import layers_elmo, lstmp_cuda, lstmp_cuda_training
from heirloom.modeling import lstmp as lstmp_file
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.lstmp_cuda import in_streams
from heirloom.modeling.lstmp_cuda_training import TrainingPiece
from heirloom.modeling.lstmp_paths import lstmp_path
from heirloom.modeling.modeling_elmo import ElmoModel


class Far(torch.Tensor):
    """A tensor that says it lies on a GPU, and tells which streams it was recorded for."""

    log = None
    device = torch.device("cuda", 0)

    def record_stream(self, stream):
        self.log.append(("record", self.label, stream.name))


def far(name, log):
    tensor = torch.zeros(1).as_subclass(Far)
    tensor.label, tensor.log = name, log
    return tensor


@pytest.mark.parametrize("nested", [lambda x: x, lambda x: ([x], 3, None)], ids=["flat", "nested"])
def test_streams_wait_for_each_other(monkeypatch, nested):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(("wait", self.name, other.name))

    @contextlib.contextmanager
    def stream(one):
        log.append(("enter", one.name))
        yield
        log.append(("leave", one.name))

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(
        lstmp_cuda, "_side_streams", lambda _, count: [Stream(f"side {k}") for k in range(count)]
    )

    def work(number, given):
        log.append(("work", number))
        return nested(far(f"result {number}", log))

    found = in_streams(work, [(k, nested(far(f"given {k}", log))) for k in range(2)])
    assert len(found) == 2
    begin = [[("wait", f"side {k}", "main"), ("record", f"given {k}", f"side {k}"), ("enter", f"side {k}"),
              ("work", k), ("leave", f"side {k}")] for k in range(2)]  # fmt: skip
    end = [[("wait", "main", f"side {k}"), ("record", f"result {k}", "main")] for k in range(2)]
    assert log == list(itertools.chain(*begin, *end))


def test_elsewhere_one_after_another():
    calls = []
    work = lambda number, _: (calls.append(number), number * 10)[1]  # noqa: E731
    assert in_streams(work, [(3, torch.ones(2)), (1, None), (2, None)]) == [30, 10, 20]
    assert calls == [3, 1, 2]
    assert in_streams(lambda: 5, [()]) == [5]


def elmo(**options) -> tuple[ElmoModel, torch.Tensor]:
    """A small model that clips, and characters (4, 30, 12) of sentences with four lengths."""
    torch.manual_seed(0)
    config = ElmoConfig(
        char_embedding_size=4, char_filters=[(1, 8), (2, 8)], num_highway_layers=1, projection_size=16, cell_size=24,
        num_hidden_layers=2, cell_clip=0.3, proj_clip=0.1, max_characters_per_token=12, **options,
    )  # fmt: skip
    char_ids = torch.randint(1, 200, (4, 30, 12))
    for row, length in enumerate((30, 11, 7, 1)):
        char_ids[row, length:] = 0
    return ElmoModel(config), char_ids


def step(model, char_ids):
    """Layers, and gradients of all parameters by random projections."""
    torch.manual_seed(1)  # the same dropout
    layers = model(char_ids=char_ids, output_hidden_states=True).hidden_states
    probes = torch.randn(len(layers), *layers[0].shape, generator=torch.Generator().manual_seed(2)).to(
        layers[0]
    )
    model.zero_grad()
    sum((one * probe).sum() for one, probe in zip(layers, probes, strict=True)).backward()
    return [*layers, *[one.grad for one in model.parameters()]]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_elmo_in_training(monkeypatch, dropout, checkpointing):
    model, char_ids = elmo(dropout=dropout)
    model.double().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    streams, made = [], []

    class Counting(TrainingPiece):
        def __init__(self, *arguments, **options):
            made.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(lstmp_cuda_training, "TrainingPiece", Counting)
    monkeypatch.setattr(
        layers_elmo, "in_streams", lambda *given: streams.append(len(given[1])) or in_streams(*given)
    )
    for module in (lstmp_file, layers_elmo):
        monkeypatch.setattr(module, "choose_path", lambda _: "cuda")
    found = step(model, char_ids)
    assert streams == [2]
    assert len(made) == 4 * 2  # of each layer: 16 steps of 4 rows and 16 of one
    for module in (lstmp_file, layers_elmo):
        monkeypatch.setattr(module, "choose_path", lambda _: "loop")
    torch.testing.assert_close(found, step(model, char_ids), rtol=0, atol=1e-11)
    assert streams == [2]


# On a GPU


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gpu_two_streams_equal_one(no_tf32, monkeypatch, checkpointing):
    model, char_ids = elmo(dropout=0.3)
    model, char_ids = model.train().cuda(), char_ids.cuda()
    if checkpointing:
        model.gradient_checkpointing_enable()
    with lstmp_path("loop"):
        expected = step(model, char_ids)
    with lstmp_path("cuda"):
        found = [step(model, char_ids) for _ in range(10)]
        monkeypatch.setattr(layers_elmo, "in_streams", lambda work, calls: [work(*one) for one in calls])
        found.append(step(model, char_ids))
    for side in found:
        torch.testing.assert_close(side, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
def test_gpu_training_follows_the_loop(no_tf32):
    """Twenty steps of an optimizer on batches of changing shapes, in two streams, nothing waited for in between."""
    sides = []
    for path in ("cuda", "loop"):
        model, char_ids = elmo()
        model, losses = model.train().cuda(), []
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with lstmp_path(path):
            for number in range(20):
                ids = char_ids.cuda()[: 1 + number % 4, : 30 - number]
                loss = model(char_ids=ids).last_hidden_state.square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        sides.append(torch.stack(losses).cpu())
    torch.testing.assert_close(*sides, rtol=1e-3, atol=1e-5)
