"""The way "cuda" of `lstmp`: its loop on CPUs, its kernel in Triton's interpreter, and all of it where there is a GPU."""

import importlib.util
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from gpu import check_interpreted, needs_cuda
from reference.lstmp_naive import lstmp_naive

from heirloom.modeling import lstmp as lstmp_file
from heirloom.modeling import lstmp_cuda, lstmp_paths
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.lstmp import lstmp
from heirloom.modeling.lstmp_cuda import Piece, round_up
from heirloom.modeling.lstmp_paths import choose_path, lstmp_path
from heirloom.modeling.modeling_elmo import ElmoModel

BATCH = [11, 9, 9, 4, 4, *[3] * 61, 1, 1, 0]  # a piece of 64 steps of 16 rows, and one of 8 steps of a row
POSITIONS = sum(BATCH)
SIZES = {"projected": (24, 20), "no projection": (16, None)}  # D, P
CLIPS = {"both clips": (0.2, 0.08), "no clips": (None, None)}
CLOSE = 5e-6  # of values up to about 3


def tensors(sizes, positions=POSITIONS, rows=BATCH[0], inputs=12):
    """inputs, W_ih, W_hh, b, W_p, h0, c0."""
    cells, size = sizes
    generator, width = torch.Generator().manual_seed(0), size or cells
    scale = min(0.15, cells**-0.5)  # larger weights make the recurrence chaotic
    shapes = [(positions, inputs), (4 * cells, inputs), (4 * cells, width), (4 * cells,)]
    shapes += [(width, cells) if size else None, (rows, width), (rows, cells)]
    return [shape and torch.randn(shape, generator=generator) * scale for shape in shapes]


def run(made, clips=(0.2, 0.08), batch_sizes=BATCH, **options):
    outputs, (h, c) = lstmp(made[0], batch_sizes, *made[1:5], tuple(made[5:]), *clips, **options)
    return outputs, h, c


def twin(made, clips=(0.2, 0.08), batch_sizes=BATCH):
    outputs, (h, c) = lstmp_naive(made[0], batch_sizes, *made[1:5], tuple(made[5:]), *clips)
    return outputs, h, c


@pytest.fixture
def taken(monkeypatch) -> Counter:
    """The way is taken on the CPU too; counts the pieces that are made."""
    count = Counter()

    class Counting(Piece):
        def __init__(self, *arguments, **options):
            count["made"] += 1
            super().__init__(*arguments, **options)

    monkeypatch.setattr(lstmp_file, "choose_path", lambda _: "cuda")
    monkeypatch.setattr(lstmp_cuda, "Piece", Counting)
    return count


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_pieces_equal_the_twin(taken, clips, sizes):
    made = tensors(sizes)
    expected = twin(made, clips)
    given = [one if one is None else one.clone() for one in made]
    for _ in range(2):  # the second time on used tensors
        torch.testing.assert_close(run(made, clips), expected, rtol=0, atol=CLOSE)
    assert taken["made"] == 2  # one for 64 steps, one for the rest
    assert all(a is None or torch.equal(a, b) for a, b in zip(made, given, strict=True))
    if clips[0]:
        assert (expected[2].abs() == 0.2).any()
        assert sizes[1] is None or (expected[0].abs() == 0.08).any()


def test_an_index_is_the_same_as_vectors_written_out(taken):
    made, index = tensors((24, 20)), torch.arange(POSITIONS) % 11
    written = [made[0][index], *made[1:]]
    found = run([made[0][:11], *made[1:]], index=index)
    torch.testing.assert_close(found, twin(written), rtol=0, atol=CLOSE)


def test_a_smaller_batch_after_a_larger_one_sees_nothing_of_it(taken):
    made = tensors((24, 20))
    run(made)
    few = [5, 5, 2]
    part = [made[0][:12], *made[1:5], made[5][:5], made[6][:5]]
    torch.testing.assert_close(run(part, batch_sizes=few), twin(part, batch_sizes=few), rtol=0, atol=CLOSE)


def test_a_nan_stays_in_its_row(taken):
    made = tensors((24, 20))
    made[0][0, 0] = torch.nan  # the vector that places without a word point to
    outputs, h, c = run(made)
    expected = twin(made)
    assert expected[1].isnan().any(1).tolist() == [True] + [False] * 10
    torch.testing.assert_close((outputs, h, c), expected, rtol=0, atol=CLOSE, equal_nan=True)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_bf16_is_near_and_follows_changed_weights(taken, sizes):
    made = tensors(sizes)
    for _ in range(2):
        for ours, theirs in zip(run(made, precision="bf16"), twin(made), strict=True):
            assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.02
            assert ours.dtype == torch.float32
        for weight in made[1:5]:
            if weight is not None:
                weight.mul_(-0.7)


def test_inference_mode_before_and_after(taken):
    made = tensors((24, 20))
    with torch.inference_mode():
        found = run(made), run(made)
        weights = [one.clone() for one in made]  # without versions
        loose = run(weights)
        for one in weights[1:5]:
            one.mul_(0.5)
        changed, half = run(weights), twin([made[0], *[one * 0.5 for one in made[1:5]], *made[5:]])
    after = run(made)
    torch.testing.assert_close((*found, loose, after), (twin(made),) * 4, rtol=0, atol=CLOSE)
    torch.testing.assert_close(changed, half, rtol=0, atol=CLOSE)


def elmo() -> tuple[ElmoModel, torch.Tensor]:
    """A small model that clips, and characters (5, 70, 12) of sentences with five lengths."""
    config = ElmoConfig(
        char_embedding_size=4, char_filters=[(1, 8), (2, 8), (3, 16)], num_highway_layers=1, projection_size=16,
        cell_size=48, num_hidden_layers=2, cell_clip=0.3, proj_clip=0.1, max_characters_per_token=12,
    )  # fmt: skip
    char_ids = torch.randint(1, 200, (5, 70, 12))
    for row, length in enumerate((70, 31, 7, 2, 1)):
        char_ids[row, length:] = 0
    return ElmoModel(config).eval(), char_ids


@torch.no_grad()
def test_an_elmo_that_takes_this_way(taken, monkeypatch):
    model, char_ids = elmo()
    found = model(char_ids=char_ids, output_hidden_states=True).hidden_states
    assert taken["made"] == 8  # 72 positions: two pieces in each of four layers
    monkeypatch.setattr(lstmp_file, "choose_path", lambda _: "loop")
    expected = model(char_ids=char_ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


# Shapes and what is kept


@pytest.mark.parametrize(
    ("rows", "steps", "expected"),
    [
        (1, 1, (8, 1)),
        (3, 8, (8, 4)),
        (8, 9, (16, 8)),
        (9, 27, (32, 16)),
        (32, 64, (64, 32)),
        (32, 5000, (64, 32)),
        (33, 64, (48, 40)),
        (128, 27, (16, 128)),
        (250, 7, (8, 256)),
        (1000, 100, (8, 1000)),
    ],
)
def test_the_shape_of_a_piece(rows, steps, expected):
    assert round_up(rows, steps) == expected


def test_pieces_are_kept_for_a_state_of_the_weights(taken):
    made = tensors((24, 20))
    run(made), run(made)
    assert taken["made"] == 2
    run(made, clips=(0.3, 0.08)), run(made, precision="bf16")
    assert taken["made"] == 6
    run(made, precision="bf16")
    assert taken["made"] == 6
    made[2].mul_(0.5)
    run(made)
    assert taken["made"] == 8
    made[4] = made[4].clone()
    run(made)
    assert taken["made"] == 10


def test_what_is_kept_is_bounded_and_dies_with_the_weight(taken):
    made = tensors((24, 20), positions=40, rows=40)
    for rows in (1, 2, 4, 8, 16, 24, 32, 40, 40, 1):
        part = [made[0][:rows], *made[1:5], made[5][:rows], made[6][:rows]]
        run(part, batch_sizes=[rows])
    assert taken["made"] == 8 == lstmp_cuda.GRAPHS
    run(made, batch_sizes=[40], clips=(0.3, None))  # the ninth: one row was used last, two rows go
    kept = lstmp_cuda._pieces(made[2])
    assert [key[1] for key in kept] == [4, 8, 16, 24, 32, 40, 1, 40]
    before = len(lstmp_cuda._pieces._kept)
    del made, part, kept
    assert len(lstmp_cuda._pieces._kept) == before - 1


def test_a_graph_replays_what_was_captured(monkeypatch):
    """With a capture that runs the work once, as the one on CUDA does, and then plays it back."""
    calls = Counter()

    def capture(work):
        work()
        return SimpleNamespace(replay=lambda: (calls.update(["replays"]), work()))

    monkeypatch.setattr(lstmp_cuda, "capture", capture)
    made, sizes = tensors((24, 20)), (4, 3, 1)
    place, lengths = lstmp_cuda.plan(sizes, 4, torch.device("cpu"))
    assert place.tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert lengths.tolist() == [3, 2, 2, 1]
    gates = made[0] @ made[1].t() + made[3]
    arguments = gates, torch.arange(8), place, lengths, made[5][:4], made[6][:4]
    results = [Piece(8, 4, made[2], made[4], (0.2, 0.08), graph).run(*arguments) for graph in (True, False)]
    assert calls["replays"] == 1
    torch.testing.assert_close(*results, rtol=0, atol=0)


# Choosing


def test_only_when_forced_and_only_on_cuda(monkeypatch):
    monkeypatch.setattr(lstmp_paths, "why_not_cuda", lambda: "")
    weights = [
        SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    ]
    cpu = torch.zeros(4 * 32, 16)
    assert [choose_path(one) for one in weights] == ["loop", "loop"]
    expected = choose_path(cpu)
    with lstmp_path("cuda"):
        assert [choose_path(one) for one in (*weights, cpu.to("meta"), cpu)] == [
            "cuda",
            *["loop"] * 2,
            expected,
        ]
        assert not lstmp_paths.packs(torch.zeros(1024, 1024), "cuda")
    assert "untried on hardware" in lstmp_paths.PATHS["cuda"]


def test_why_it_is_closed(monkeypatch):
    why = lstmp_cuda.why_not_cuda.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert why() == "triton is not installed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why() == "there is no CUDA device"
    monkeypatch.setattr(lstmp_paths, "why_not_cuda", why)
    words = "lstmp_path 'cuda' is not open on this machine: there is no CUDA device"
    with pytest.raises(ValueError, match=words), lstmp_path("cuda"):
        pass


# The kernel

INTERPRETED = """
import torch
from heirloom.modeling.lstmp_cells import cells_plain
from heirloom.modeling.lstmp_triton import cells_by_triton

torch.manual_seed(0)
for cells, dtype, clip, close in (
    (300, torch.float32, 0.5, 1e-6), (40, torch.float32, float("inf"), 1e-6), (40, torch.bfloat16, 0.5, 4e-3)
):
    gates, recurrent = 3 * torch.randn(2, 5, 4 * cells)
    gates[2, 1] = torch.nan
    gates[3, :2] = torch.tensor([-1e4, 1e4])
    gates, recurrent, c = gates.to(dtype), recurrent.to(dtype), torch.randn(5, cells)
    lengths = torch.tensor([4, 3, 4, 9, 0], dtype=torch.int32)
    sides = []
    for cells_of in (cells_plain, cells_by_triton):
        side = c.clone(), torch.zeros(5, cells, dtype=dtype)
        cells_of(gates, recurrent, *side, lengths, 3, clip)
        sides.append(side)
    torch.testing.assert_close(sides[1][0], sides[0][0], rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(sides[1][1], sides[0][1], rtol=0, atol=close, equal_nan=True)
    assert torch.equal(sides[1][0][[1, 4]], c[[1, 4]]) and sides[1][0][2, 1].isnan()
print("equal")
"""


@pytest.mark.slow  # another process, with torch and triton
def test_the_kernel_in_tritons_interpreter():
    check_interpreted(INTERPRETED)


# On a GPU


def on_cuda(made):
    return [one if one is None else one.cuda() for one in made]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("sizes", [(24, 20), (16, None), (320, 136)])
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_gpu_equals_the_twin(no_tf32, clips, sizes):
    made = tensors(sizes)
    expected, ours = twin(made, clips), on_cuda(made)
    with lstmp_path("cuda"), torch.no_grad():
        assert choose_path(ours[2]) == "cuda"
        for _ in range(3):
            found = [one.cpu() for one in run(ours, clips)]
            torch.testing.assert_close(found, list(expected), rtol=0, atol=1e-5)
        half = [one.cpu() for one in run(ours, clips, precision="bf16")]
    for near, one in zip(half, expected, strict=True):
        assert 1e-5 < (near - one).norm() / one.norm() < 0.02


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpu_graphs_are_reused_and_follow_changed_weights(no_tf32, monkeypatch, precision):
    captures, capture = [], lstmp_cuda.capture
    monkeypatch.setattr(lstmp_cuda, "capture", lambda work: captures.append(1) or capture(work))
    made = on_cuda(tensors((64, 32)))
    with lstmp_path("cuda"), torch.no_grad():
        for change in (1.0, 0.5, -0.9):
            for weight in made[1:5]:
                weight.mul_(change)
            found = [run(made, precision=precision) for _ in range(2)]
            with lstmp_path("loop"):
                expected = run(made, precision=precision)
            close = 1e-5 if precision == "fp32" else 0.02
            torch.testing.assert_close(found, [expected] * 2, rtol=0, atol=close)
    assert len(captures) == 6  # two pieces for each state of the weights


@pytest.mark.gpu
@needs_cuda
def test_gpu_streams_take_turns(no_tf32):
    made = on_cuda(tensors((320, 136)))
    other = [made[0] * 2, *made[1:]]
    with lstmp_path("loop"), torch.no_grad():
        expected = run(made), run(other)
    with lstmp_path("cuda"), torch.no_grad():
        run(made)
        streams, found = (torch.cuda.Stream(), torch.cuda.Stream()), []
        torch.cuda.synchronize()
        for number in range(10):
            with torch.cuda.stream(streams[number % 2]):
                found.append(run((made, other)[number % 2]))
        torch.cuda.synchronize()
    for number, one in enumerate(found):
        torch.testing.assert_close(one, expected[number % 2], rtol=0, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("path", ["cuda", "loop"])
def test_gpu_gradients_equal_the_cpus(no_tf32, path):
    few = [3, 2, 2]
    made = [one.requires_grad_() for one in tensors((24, 20), positions=7, rows=3)]
    ours = [one.detach().cuda().requires_grad_() for one in made]
    outputs, h, c = twin(made, batch_sizes=few)
    expected = torch.autograd.grad(outputs.square().sum() + h.sum() - c.sum(), made)
    with lstmp_path(path):
        outputs, h, c = run(ours, batch_sizes=few)
    found = torch.autograd.grad(outputs.square().sum() + h.sum() - c.sum(), ours)
    torch.testing.assert_close([one.cpu() for one in found], list(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("path", ["cuda", "loop"])
def test_gpu_elmo_equals_the_cpus(no_tf32, path):
    model, char_ids = elmo()
    with torch.no_grad():
        expected = model(char_ids=char_ids, output_hidden_states=True).hidden_states
        model.cuda()
        with lstmp_path(path):
            found = model(char_ids=char_ids.cuda(), output_hidden_states=True).hidden_states
    torch.testing.assert_close([one.cpu() for one in found], list(expected), rtol=0, atol=1e-5)
