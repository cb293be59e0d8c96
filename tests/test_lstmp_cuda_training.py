"""Training on the way "cuda" of `lstmp`: its loops on CPUs, its kernels in Triton's interpreter, and all of it where there is a GPU.

No GPU has run the tests marked `gpu` so far.
"""

import contextlib
import gc
from collections import Counter, OrderedDict
from types import SimpleNamespace

import pytest
import torch
from gpu import check_interpreted, needs_cuda
from reference.lstmp_naive import lstmp_naive
from torch.autograd import gradcheck

from heirloom.modeling import lstmp as lstmp_file
from heirloom.modeling import lstmp_cuda, lstmp_cuda_training
from heirloom.modeling.lstmp import lstmp
from heirloom.modeling.lstmp_cuda_training import TrainingPiece, cut
from heirloom.modeling.lstmp_paths import lstmp_path

NAMES = ["inputs", "weight_ih", "weight_hh", "bias", "weight_proj", "h0", "c0"]
SIZES = {"projected": (24, 20), "no projection": (16, None)}  # D, P
CLIPS = {"both clips": (0.2, 0.08), "cell clip": (0.2, None), "no clips": (None, None)}
RAGGED = [
    11,
    11,
    9,
    9,
    9,
    4,
    4,
    *[3] * 14,
    *[2] * 5,
    1,
]  # pieces of 16 steps of 16 rows, of 8 of 4 and of 4 of 2
BATCHES = {"ragged": RAGGED, "one row": [1] * 5, "one step": [3], "equal": [5] * 20}


def tensors(sizes=(24, 20), batch_sizes=RAGGED, vectors=None, dtype=torch.float64, seed=0):
    """As in `NAMES`, all wanting gradients."""
    cells, size = sizes
    generator, width = torch.Generator().manual_seed(seed), size or cells
    shapes = [(vectors or sum(batch_sizes), 12), (4 * cells, 12), (4 * cells, width), (4 * cells,)]
    shapes += [(width, cells) if size else None, (batch_sizes[0], width), (batch_sizes[0], cells)]
    scale = min(0.15, cells**-0.5)  # larger weights make the recurrence chaotic
    made = [
        shape and torch.randn(shape, generator=generator, dtype=torch.float64) * scale for shape in shapes
    ]
    return [one if one is None else one.to(dtype).requires_grad_() for one in made]


def run(made, clips=(0.2, 0.08), batch_sizes=RAGGED, function=lstmp, **options):
    outputs, (h, c) = function(made[0], batch_sizes, *made[1:5], tuple(made[5:]), *clips, **options)
    return outputs, h, c


def total(results):
    """A random projection of the results."""
    generator = torch.Generator().manual_seed(9)
    probes = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one) for one in results]
    return sum((one * probe).sum() for one, probe in zip(results, probes, strict=True))


def both(made, *arguments, **options):
    """Results and gradients."""
    results = run(made, *arguments, **options)
    return [*results, *torch.autograd.grad(total(results), [one for one in made if one is not None])]


@pytest.fixture
def taken(monkeypatch) -> Counter:
    """The way is taken on the CPU and in double precision too; counts the pieces that are made."""
    count = Counter()

    class Counting(TrainingPiece):
        def __init__(self, *arguments, **options):
            count["made"] += 1
            super().__init__(*arguments, **options)

    monkeypatch.setattr(lstmp_file, "choose_path", lambda _: "cuda")
    monkeypatch.setattr(lstmp_cuda_training, "TrainingPiece", Counting)
    return count


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_results_and_gradients_equal_the_twins(taken, clips, sizes, batch):
    sizes_of = BATCHES[batch]
    made = tensors(sizes, sizes_of)
    expected = both(made, clips, sizes_of, function=lstmp_naive)
    before = [one if one is None else one.detach().clone() for one in made]
    names = ["outputs", "h", "c", *[name for name, one in zip(NAMES, made, strict=True) if one is not None]]
    for _ in range(2):  # the second time on used tensors
        for name, found, wanted in zip(names, both(made, clips, sizes_of), expected, strict=True):
            assert wanted.abs().max() > 1e-4, name
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")  # fmt: skip
    assert taken["made"] == len({piece[1:] for piece in cut(sizes_of)})
    assert all(a is None or torch.equal(a, b) for a, b in zip(made, before, strict=True))
    singles = [one if one is None else one.detach().float().requires_grad_() for one in made]
    for name, found, wanted in zip(names, both(singles, clips, sizes_of), expected, strict=True):
        assert (found - wanted).norm() / wanted.norm() < 1e-6, name
        assert found.dtype == torch.float32


def test_the_clips_of_these_tests_are_at_work(taken):
    outputs, _, c = run(tensors())
    for clipped, limit in ((c, 0.2), (outputs, 0.08)):
        assert 0.02 < (clipped.abs() == limit).double().mean() < 0.9


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("clips", [(None, None), (0.2, 0.1)], ids=str)
def test_numerical_derivatives(taken, projected, clips):
    few = [3, 2, 2, 1, 1]
    present = [one for one in tensors((7, 4 if projected else None), few) if one is not None]

    def function(inputs, w_ih, w_hh, bias, *others):
        return run([inputs, w_ih, w_hh, bias, *(others if projected else (None, *others))], clips, few)

    assert gradcheck(function, present, fast_mode=True)


def test_an_index_and_few_wanted_gradients(taken):
    made, index = tensors(vectors=13), torch.arange(sum(RAGGED)) % 11  # two vectors stand nowhere
    written = run([made[0][index], *made[1:]], function=lstmp_naive)
    expected = [*written, *torch.autograd.grad(total(written), made)]
    torch.testing.assert_close(both(made, index=index), expected, rtol=0, atol=1e-12)
    assert not expected[3][11:].any()
    for wanted in range(7):
        one = [tensor.detach().requires_grad_(number == wanted) for number, tensor in enumerate(made)]
        found = torch.autograd.grad(total(run(one, index=index)), one[wanted])[0]
        torch.testing.assert_close(found, expected[3 + wanted], rtol=0, atol=1e-12)


def test_several_forward_passes_before_the_way_back(taken):
    made, weights = zip(tensors(seed=1), tensors(seed=2), strict=True), tensors()[1:5]
    batches = [[one[0], *weights, *one[5:]] for one in zip(*made, strict=True)]
    expected = [both(one, function=lstmp_naive) for one in batches]
    results = [run(one) for one in batches]
    found = [  # each twice: the second time with what the first has kept
        torch.autograd.grad(total(results[number]), batches[number], retain_graph=True)
        for number in (0, 1, 0, 1)
    ]
    for number, gradients in enumerate(found):
        both_of = [*results[number % 2], *gradients]
        torch.testing.assert_close(both_of, expected[number % 2], rtol=0, atol=1e-12)
    assert taken["made"] == 3
    for one in batches:
        total(run(one)).backward()
    torch.testing.assert_close(weights[1].grad, expected[0][5] + expected[1][5], rtol=0, atol=1e-12)


def test_gradients_of_one_result_in_any_layout(taken):
    made = tensors()
    for pick in (
        lambda r: r[0].sum(),
        lambda r: r[1].sum(),
        lambda r: r[2].sum(),
        lambda r: r[0].t().mm(r[0]).sum(),
    ):
        sides = [torch.autograd.grad(pick(run(made, function=one)), made, allow_unused=True, materialize_grads=True)
                 for one in (lstmp, lstmp_naive)]  # fmt: skip
        torch.testing.assert_close(*sides, rtol=0, atol=1e-11)


def test_after_inference_mode_and_with_a_weight_that_changed(taken):
    made = tensors()
    lstmp_cuda.plan.cache_clear()
    with torch.inference_mode():  # plans and a piece that begin there
        for step, steps, rows in cut(RAGGED):
            lstmp_cuda.plan(
                tuple(RAGGED[step : step + steps]), rows, made[0].device, lstmp_cuda.settings(made[0].device)
            )
        run(made)
    assert taken["made"] == 0
    torch.testing.assert_close(both(made), both(made, function=lstmp_naive), rtol=0, atol=1e-12)
    hits = lstmp_cuda.plan.cache_info().hits
    with torch.no_grad():
        made[2].mul_(0.5)
    torch.testing.assert_close(both(made), both(made, function=lstmp_naive), rtol=0, atol=1e-12)
    assert hits >= 3
    assert taken["made"] == 3
    results = run(made)
    with torch.no_grad():
        made[2].mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(total(results), made)


def test_steps_of_an_optimizer_and_a_parameter_that_moved(taken):
    made = tensors()
    kept = len(lstmp_cuda_training._pieces)
    for change in (1.0, -0.7, 0.9):
        with torch.no_grad():
            for one in made[1:5]:
                one.mul_(change)
        torch.testing.assert_close(both(made), both(made, function=lstmp_naive), rtol=0, atol=1e-12)
    assert taken["made"] == 3
    for number, pieces in ((2, 6), (4, 9)):  # recurrent weight, projection
        made[number].data = made[number].data * 0.8
        torch.testing.assert_close(both(made), both(made, function=lstmp_naive), rtol=0, atol=1e-12)
        assert taken["made"] == pieces
    assert len(lstmp_cuda_training._pieces) == kept + 1
    both(made, (0.3, 0.08))
    assert taken["made"] == 12
    del made
    gc.collect()
    assert len(lstmp_cuda_training._pieces) == kept


def test_a_piece_belongs_to_a_stream_and_a_precision(taken, monkeypatch):
    made = tensors()
    both(made)
    monkeypatch.setattr(lstmp_cuda_training, "settings", lambda _: ("tf32", 7))
    both(made), both(made)
    assert taken["made"] == 6
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    cpu, cuda = (lstmp_cuda.settings(torch.device(name)) for name in ("cpu", "cuda"))
    assert cpu == (cuda[0], None)
    assert cuda[1] == 7


def test_a_nan_is_seen_and_stays_in_its_row(taken):
    made = tensors()
    with torch.no_grad():
        made[0][0, 0] = torch.nan  # row 0, and the vector that places without a word point to
        made[6][5, 3] = torch.nan  # c0 of row 5
    found, expected = both(made), both(made, function=lstmp_naive)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one[~one.isnan()], wanted[~one.isnan()], rtol=0, atol=1e-12)
        assert not (wanted.isnan() & ~one.isnan()).any()
    for one in (1, 2, 8, 9):  # h, c and gradients at h0, c0
        assert found[one].isnan().any(1).nonzero().flatten().tolist() == [0, 5]
    fresh = tensors(seed=3)
    used = [fresh[0], *made[1:5], *fresh[5:]]  # the same pieces, with NaNs in their used tensors
    torch.testing.assert_close(both(used), both(used, function=lstmp_naive), rtol=0, atol=1e-12)
    assert taken["made"] == 3


@pytest.mark.parametrize("end", ["d_outputs", "d_h", "d_c"])
def test_a_nan_among_gradients_is_seen(taken, end):
    made = tensors()
    results = run(made)
    grads = [torch.zeros_like(one) for one in results]
    grads[["d_outputs", "d_h", "d_c"].index(end)][2, 4] = torch.nan
    found = torch.autograd.grad(results, made, grads)
    assert all(one.isnan().any() for one in found)
    assert found[6].isnan().any(1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("batch_sizes", "expected"),
    [
        ([128] * 20, [(0, 16, 128), (16, 4, 128)]),
        ([128] * 27, [(0, 16, 128), (16, 8, 128), (24, 4, 128)]),
        ([250] * 9, [(0, 8, 256), (8, 4, 256)]),
        ([1000] * 5, [(0, 4, 1000), (4, 4, 1000)]),
        ([3], [(0, 4, 4)]),
        ([20] * 16 + [12] * 8 + [6] * 4 + [1], [(0, 16, 24), (16, 8, 12), (24, 4, 6), (28, 4, 1)]),
        (RAGGED, [(0, 16, 16), (16, 8, 4), (24, 4, 2)]),
    ],
)
def test_the_shapes_of_pieces(batch_sizes, expected):
    assert list(cut(batch_sizes)) == expected


def test_graphs_replay_what_was_captured(taken, monkeypatch):
    """With captures that run the work once, as those on CUDA do, and then play it back."""
    calls = Counter()

    def capture(work):
        work()
        calls[work.__name__] += 1
        return SimpleNamespace(replay=lambda: (calls.update(["replays"]), work()))

    monkeypatch.setattr(lstmp_cuda_training, "capture", capture)
    sides, few = [], RAGGED[:16]
    for graphs in (True, False):
        made = tensors(batch_sizes=few)
        piece = TrainingPiece(16, 16, made[2], made[4], (0.2, 0.08), graphs)
        monkeypatch.setattr(lstmp_cuda_training, "keep", lambda *_, piece=piece: piece)
        sides.append(both(made, batch_sizes=few))
    torch.testing.assert_close(*sides, rtol=0, atol=0)
    assert calls == {"forward_steps": 1, "back_steps": 1, "replays": 2}


def test_a_graph_is_made_in_the_stream_it_runs_in(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def graph(made, stream, capture_error_mode):
        seen.append((made, stream, capture_error_mode))
        yield

    current = SimpleNamespace(now="side")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current.now)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: "default")
    assert lstmp_cuda.capture(lambda: seen.append("work")) == "graph"
    current.now = "default"
    lstmp_cuda.capture(lambda: seen.append("work"))
    captured = [("graph", stream, "thread_local") for stream in ("side", None)]
    assert seen == ["work", captured[0], "work", "work", captured[1], "work"]


def test_what_is_kept_is_bounded_and_waited_for():
    ends, kept = [], OrderedDict()
    make = lambda name: SimpleNamespace(done=SimpleNamespace(synchronize=lambda: ends.append(name)))  # noqa: E731
    for name in "abacda":
        lstmp_cuda.keep(kept, (name,), lambda name=name: make(name), 3)
    assert [key for (key,) in kept] == ["c", "d", "a"]
    assert ends == ["b"]


# The kernels

INTERPRETED = """
import torch
from heirloom.modeling.lstmp_cells import activate_plain, derive_plain
from heirloom.modeling.lstmp_triton import activate_by_triton, derive_by_triton

torch.manual_seed(0)
for cells, clip in ((300, 0.5), (40, float("inf"))):
    gates, before, dm, dc = 3 * torch.randn(6, 4 * cells), *torch.randn(3, 6, cells)
    gates[2, 1], before[3, 2], dm[3, 4], dc[3, 5] = [torch.nan] * 4
    gates[4, :2] = torch.tensor([-1e4, 1e4])
    lengths = torch.tensor([4, 3, 4, 9, 5, 0], dtype=torch.int32)
    sides = []
    for activate, derive in ((activate_plain, derive_plain), (activate_by_triton, derive_by_triton)):
        acts, c, m = gates.clone(), torch.zeros(6, cells), torch.zeros(6, cells)
        activate(acts, before, c, m, clip)
        there = acts.clone(), c.clone(), m
        grads, d_c = acts.clone(), dc.clone()
        derive(grads, before, c, dm, d_c, lengths, 3, clip)
        sides.append([*there, grads, d_c, c])
    torch.testing.assert_close(*sides, rtol=1e-6, atol=2e-6, equal_nan=True)
    acts, c, m, grads, d_c, again = sides[1]
    torch.testing.assert_close(again, m, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(d_c[[1, 5]], dc[[1, 5]]) and not grads[[1, 5]].any()
    assert c[2, 1].isnan() and c[3, 2].isnan() and grads[3, [2, 4, 5]].isnan().all() and d_c[2, 1].isnan()
    hit = (c.abs() == clip) & (lengths > 3)[:, None]
    assert not hit.any() if clip > 1 else hit.sum() > 300
    hit[3, 4:6] = False
    assert not d_c[hit].any() and not grads[:, : 3 * cells].unflatten(1, (3, cells)).transpose(1, 2)[hit].any()
print("equal")
"""


@pytest.mark.slow  # another process, with torch and triton
def test_the_kernels_in_tritons_interpreter():
    check_interpreted(INTERPRETED)


# On a GPU


def on_cuda(made):
    return [one if one is None else one.detach().cuda().requires_grad_() for one in made]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("sizes", [(24, 20), (16, None), (320, 136)])
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
def test_gpu_graphs_equal_the_plain_loops(no_tf32, monkeypatch, clips, sizes):
    """Also where weights change in place, where one moves, and in a stream of its own."""
    captures, capture = [], lstmp_cuda.capture
    monkeypatch.setattr(lstmp_cuda_training, "capture", lambda work: captures.append(1) or capture(work))
    made = tensors(sizes, dtype=torch.float32)
    ours = on_cuda(made)
    for change in ("nothing", "in place", "moved", "stream"):
        with torch.no_grad():
            for one in (*made[1:5], *ours[1:5]) if change == "in place" else ():
                one if one is None else one.mul_(-0.8)
        if change == "moved":
            ours[2].data = ours[2].data.clone()
        with lstmp_path("cuda"), torch.cuda.stream(torch.cuda.Stream() if change == "stream" else None):
            if change == "stream":
                torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            found = [[one.cpu() for one in both(ours, clips)] for _ in range(3)]
        expected = both([one if one is None else one.detach().double().requires_grad_() for one in made], clips,
                        function=lstmp_naive)  # fmt: skip
        for side in found:
            for near, one in zip(side, expected, strict=True):
                assert (near - one).norm() / one.norm() < 1e-5
    assert len(captures) == 3 * 2 * 3  # pieces, there and back; at first, moved, in a stream
