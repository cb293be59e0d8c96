"""Each way of `lstmp` against the readable twin, and how a way is chosen, forced, built and missed."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from reference.lstmp_naive import lstmp_naive
from torch.utils.checkpoint import checkpoint

from heirloom.modeling import lstmp_native, lstmp_paths, packed_linear
from heirloom.modeling.input_products import InputProducts
from heirloom.modeling.lstmp import lstmp
from heirloom.modeling.lstmp_paths import choose_path, describe_paths, lstmp_path
from heirloom.modeling.weight_cache import WeightCache

BATCH = [13, 13, 7, 6, 1]  # panels of one to six rows
SIZES = {"projected": (48, 80), "whole blocks": (64, 64), "no projection": (32, None)}  # D, P
PATHS = [name for name, reason in lstmp_paths.lstmp_paths().items() if not reason and name != "cuda"]
CLOSE = 5e-6  # of values up to about 3
CLIPS = {"both clips": (0.2, 0.08), "no clips": (None, None)}


def tensors(sizes, seed=0, inputs=24):
    """inputs, W_ih, W_hh, b, W_p, h0, c0 in float32, all wanting gradients."""
    cells, size = sizes
    generator = torch.Generator().manual_seed(seed)
    width, rows = size or cells, BATCH[0]
    shapes = [(sum(BATCH), inputs), (4 * cells, inputs), (4 * cells, width), (4 * cells,)]
    shapes += [(width, cells) if size else None, (rows, width), (rows, cells)]
    return [shape and (torch.randn(shape, generator=generator) * 0.15).requires_grad_() for shape in shapes]


def run(path, made, clips, **options):
    with lstmp_path(path):
        outputs, (h, c) = lstmp(made[0], BATCH, *made[1:5], tuple(made[5:]), *clips, **options)
    return outputs, h, c


def test_a_compiler_is_here_so_that_the_kernel_is_tested():
    assert PATHS == ["native", "packed", "loop"]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("clips", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("path", PATHS)
def test_results_without_and_with_gradients_equal_the_twins(path, clips, sizes):
    made = tensors(sizes)
    expected, (h, c) = lstmp_naive(made[0], BATCH, *made[1:5], tuple(made[5:]), *clips)
    with torch.no_grad():
        found = run(path, made, clips)
    torch.testing.assert_close(found, (expected, h, c), rtol=0, atol=CLOSE)
    found = run(path, made, clips)
    torch.testing.assert_close(found, (expected, h, c), rtol=0, atol=CLOSE)
    probe = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    wanted = [one for one in made if one is not None]
    sides = [
        torch.autograd.grad((outputs * probe).sum() + h.sum() - c.sum(), wanted)
        for outputs, h, c in (found, (expected, h, c))
    ]
    for ours, theirs in zip(*sides, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("path", PATHS)
def test_values_at_the_ends_of_the_activations(path):
    made = [one if one is None else one.detach() for one in tensors((32, None))]
    made[0] = made[0] * torch.logspace(-6, 3, len(made[0]))[:, None]  # gates from 1e-6 to some hundreds
    expected, (_, c) = lstmp_naive(
        *[one.double() for one in made[:1]], BATCH, *[one.double() for one in made[1:4]], None,
        tuple(one.double() * 0 for one in made[5:]),
    )  # fmt: skip
    zeros = made[5] * 0, made[6] * 0
    with lstmp_path(path):
        found, states = lstmp(made[0], BATCH, *made[1:4], None, zeros)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(states[1].double(), c, rtol=2e-5, atol=1e-7)


def test_numbers_that_are_none_are_not_hidden():
    made = [one.detach() for one in tensors((48, 80))]
    made[0][0, 0] = torch.nan
    found, _ = lstmp(made[0], BATCH, *made[1:5])
    assert found[0].isnan().all()
    assert not found[1].isnan().any()  # another row of step 0


@pytest.mark.parametrize("path", PATHS)
def test_an_index_is_the_same_as_vectors_written_out(path):
    made = tensors((48, 80))
    index = torch.arange(sum(BATCH)) % 11
    few = made[0][:11].detach().requires_grad_()
    written = few.detach()[index].requires_grad_()
    results = []
    for inputs, options in ((few, {"index": index}), (written, {})):
        with torch.no_grad():
            calm = run(path, [inputs, *made[1:]], (0.4, 0.15), **options)
        outputs, h, c = run(path, [inputs, *made[1:]], (0.4, 0.15), **options)
        gradients = torch.autograd.grad(outputs.square().sum() + h.sum(), [inputs, *made[1:5]])
        results.append((calm, (outputs, h, c), gradients))
    (calm, found, gradients), (calm_too, expected, wanted) = results
    torch.testing.assert_close((calm, found), (calm_too, expected), rtol=0, atol=CLOSE)
    summed = torch.zeros_like(few).index_add_(0, index, wanted[0])
    torch.testing.assert_close(gradients, (summed, *wanted[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_bf16_is_near_and_only_without_gradients(path, sizes):
    made, clips = tensors(sizes), CLIPS["both clips"]
    exact = run(path, made, clips)
    assert all(
        torch.equal(a, b) for a, b in zip(exact, run(path, made, clips, precision="bf16"), strict=True)
    )
    with torch.no_grad():
        half = run(path, made, clips, precision="bf16")
    for ours, theirs in zip(half, exact, strict=True):
        assert 1e-5 < (ours - theirs).norm() / theirs.norm() < 0.02
        assert ours.dtype == torch.float32


def test_another_precision():
    made = tensors((48, 80))
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'int8'"):
        lstmp(made[0], BATCH, *made[1:5], precision="int8")


def test_changed_weights_are_packed_again():
    made = [one.detach() for one in tensors((64, 64))]
    for path in PATHS:
        one_number = lambda w: w[1, 1].add_(1.0)  # noqa: E731  # the sample of `state_of` has it not
        for change in (lambda w: w.mul_(0.5), one_number, lambda w: w.data.mul_(1.1)):
            for weight in (made[2], made[4]):
                change(weight)
                expected = lstmp_naive(made[0], BATCH, *made[1:5])[0]
                with lstmp_path(path):
                    found = lstmp(made[0], BATCH, *made[1:5])[0]
                torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


def test_checkpoints_pack_each_weight_once(monkeypatch):
    """What is computed again for the way back comes with new objects for the same weights."""
    packed, pack = [], packed_linear._pack
    count = lambda weight: packed.append(tuple(weight.shape)) or pack(weight)  # noqa: E731
    monkeypatch.setattr(packed_linear, "_transposed", WeightCache(lambda weight: count(weight.t())))
    made = tensors((48, 80))
    with lstmp_path("packed"):
        for _ in range(3):
            outputs = checkpoint(lambda x: lstmp(x, BATCH, *made[1:5])[0], made[0], use_reentrant=False)
            outputs.sum().backward()
    assert sorted(packed) == [(48, 80), (80, 192)]


def test_a_projection_of_more_cells_than_a_chunk():
    made = [one.detach() * 0.3 for one in tensors((1024 + 32, 16))]
    expected, _ = lstmp_naive(made[0], BATCH, *made[1:5], None, None, 0.05)
    with lstmp_path("native"):
        found, _ = lstmp(made[0], BATCH, *made[1:5], None, None, 0.05)
    assert 0.05 < (expected.abs() == 0.05).float().mean() < 0.95
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


def as_products(gates):
    """Numbers that are products already."""
    return InputProducts(gates, None, lambda x: x, gates[0].nbytes)


def test_bf16_rounds_to_the_nearest():
    """One step from zeros without projection: nothing is multiplied, so that outputs are rounded numbers."""
    gates = torch.randn(40, 4 * 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    i, _, g, o = gates.float().chunk(4, 1)
    expected = (o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()).bfloat16()
    weight, zeros = torch.zeros(4 * 64, 64), torch.zeros(40, 64)
    found, _ = lstmp_native.run_steps(
        as_products(gates), [40], weight, None, (zeros, zeros), None, None, True
    )
    assert (found.bfloat16() == found).all()
    assert (found == expected).float().mean() > 0.999


def test_levels_below_the_machines_give_the_same(tmp_path):
    made = [one.detach() for one in tensors((48, 80))]
    gates = torch.addmm(made[3], made[0], made[1].t())
    expected, (_, c) = lstmp_naive(made[0], BATCH, *made[1:5], tuple(made[5:]), 0.4, 0.15)
    for level in ("any", "avx2")[: 2 if lstmp_native.machine_level() != "any" else 1]:
        file = tmp_path / f"{level}.so"
        assert lstmp_native._compile("cc", level, file) == ""
        library = lstmp_native._load(file)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lstmp_native, "library", lambda library=library: (library, ""))
            options = BATCH, made[2], made[4], made[5:], 0.4, 0.15
            found = lstmp_native.run_steps(as_products(gates), *options)
            half = lstmp_native.run_steps(as_products(gates.bfloat16()), *options, half=True)
        torch.testing.assert_close(found, (expected, c), rtol=0, atol=CLOSE)
        assert (half[0] - expected).norm() < 0.02 * expected.norm()


# Choosing


def test_what_is_chosen():
    fits, odd = torch.zeros(4 * 32, 16), torch.zeros(4 * 20, 16)
    assert choose_path(fits) == "native"
    assert choose_path(odd) == "packed"
    assert (
        choose_path(fits.double()) == choose_path(fits.bfloat16()) == choose_path(fits.to("meta")) == "loop"
    )
    with lstmp_path("packed"):
        assert choose_path(fits) == "packed"
    with lstmp_path("loop"):
        assert choose_path(fits) == "loop"
    assert choose_path(fits) == "native"


def test_the_environment_forces_a_way(monkeypatch):
    weight = torch.zeros(4 * 32, 16)
    monkeypatch.setenv("HEIRLOOM_LSTMP", "loop")
    assert choose_path(weight) == "loop"
    with lstmp_path("native"):
        assert choose_path(weight) == "native"
    monkeypatch.setenv("HEIRLOOM_LSTMP", "fastest")
    with pytest.raises(
        ValueError, match="HEIRLOOM_LSTMP must be one of auto, native, packed, loop, cuda, got 'fastest'"
    ):
        choose_path(weight)
    with pytest.raises(ValueError, match="lstmp_path must be one of"), lstmp_path("gpu"):
        pass


def test_a_way_that_is_closed_cannot_be_forced_and_is_named_once(monkeypatch, caplog):
    monkeypatch.setattr(lstmp_paths, "library", lambda: (None, "no C compiler was found"))
    words = "lstmp_path 'native' is not open on this machine: no C compiler was found"
    with pytest.raises(ValueError, match=words), lstmp_path("native"):
        pass
    said = []
    monkeypatch.setattr(lstmp_paths.logger, "warning_once", said.append)
    assert choose_path(torch.zeros(4 * 32, 16)) == "packed"
    assert said == ["ELMo runs without its C kernel, at about half its speed: no C compiler was found."]
    assert describe_paths() == "packed; not native: no C compiler was found"


def test_the_description_names_instructions():
    assert describe_paths() == f"native ({lstmp_native.machine_level()})"


def test_the_description_says_what_is_forced(monkeypatch):
    monkeypatch.setenv("HEIRLOOM_LSTMP", "packed")
    assert describe_paths() == "packed; forced"
    with lstmp_path("native"):
        assert describe_paths() == f"native ({lstmp_native.machine_level()}); forced"
    monkeypatch.setenv("HEIRLOOM_LSTMP", "fastest")
    assert describe_paths().startswith("none: HEIRLOOM_LSTMP must be one of auto, native, packed")


# Building

compile_in_earnest = lstmp_native._compile


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing built, an empty cache, and a compiler that is done at once: it copies what was compiled before."""
    made = Path(lstmp_native.library()[0]._name)
    compiled = []

    def copy(compiler, level, file):
        compiled.append(level)
        shutil.copy(made, file)
        return ""

    monkeypatch.setattr(lstmp_native, "_compile", copy)
    monkeypatch.setattr(lstmp_native, "compiled", compiled, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lstmp_native._build.cache_clear()
    yield tmp_path / "heirloom"
    lstmp_native._build.cache_clear()


def test_a_build_is_kept_and_used_again(fresh):
    assert lstmp_native.library()[1] == ""
    (file,) = fresh.iterdir()
    lstmp_native._build.cache_clear()
    assert lstmp_native.library()[1] == ""
    assert [file] == list(fresh.iterdir())
    assert lstmp_native.compiled == [lstmp_native.machine_level()]


def test_a_file_that_was_cut_short_is_not_loaded_but_made_again(fresh):
    assert lstmp_native.library()[1] == ""
    (file,) = fresh.iterdir()
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:1000])
    lstmp_native._build.cache_clear()
    assert lstmp_native.library()[1] == ""
    assert len(lstmp_native.compiled) == 2
    assert file.read_bytes() == whole


def test_no_compiler(fresh, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert lstmp_native.library() == (
        None,
        "no C compiler was found; install one (cc, gcc or clang) or name it in CC",
    )


def test_a_compiler_that_fails(fresh, monkeypatch):
    monkeypatch.setattr(lstmp_native, "_compile", compile_in_earnest)
    monkeypatch.setenv("CC", "false")
    library, reason = lstmp_native.library()
    assert library is None
    assert reason == "false cannot compile lstmp_native.c: no message"
    assert list(fresh.iterdir()) == []
    lstmp_native._build.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert lstmp_native.library()[1].startswith("the C compiler cannot be run: ")


def test_no_c_file_beside_the_code(fresh, monkeypatch):
    monkeypatch.setattr(lstmp_native, "SOURCE", Path("lstmp_native.c").absolute())
    assert lstmp_native.library()[1] == (
        "lstmp_native.c is not beside lstmp_native.py; install heirloom to have it"
    )


def test_a_cache_that_cannot_be_written(fresh, monkeypatch):
    fresh.parent.joinpath("heirloom").write_text("a file where the folder should be")
    assert lstmp_native.library()[1] == ""
    assert fresh.read_text() == "a file where the folder should be"


def test_processes_that_build_at_once(fresh):
    """Two processes with two threads each end with one whole library."""
    code = "from heirloom.modeling.lstmp_native import library; import threading\n"
    code += "found = []\nrun = lambda: found.append(library()[1])\n"
    code += "both = [threading.Thread(target=run) for _ in range(2)]\n"
    code += "[one.start() for one in both]; [one.join() for one in both]; print(found)"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["['', '']"] * 2
    assert len(list(fresh.iterdir())) == 1


def test_threads_share_packed_weights():
    made = [one.detach() for one in tensors((64, 64))]
    expected = lstmp_naive(made[0], BATCH, *made[1:5])[0]
    results = []
    run_once = lambda: results.append(lstmp(made[0], BATCH, *made[1:5])[0])  # noqa: E731
    threads = [threading.Thread(target=run_once) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for found in results:
        torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)
    assert len(results) == 4
