"""benchmarks/elmo.py on a tiny size: the step-by-step twin is our model, every system has its rows, and wrong ones are refused."""

import json
import sys
from pathlib import Path

import pytest
import torch

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.lstmp_paths import lstmp_path, lstmp_paths
from heirloom.modeling.modeling_elmo import ElmoModel

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {
    "projection_size": 16,
    "cell_size": 32,
    "num_highway_layers": 1,
    "char_filters": [(1, 8), (3, 16)],
    "char_embedding_size": 4,
    "max_characters_per_token": 20,
}
OPEN = [name for name, reason in lstmp_paths().items() if not reason]


@pytest.fixture(scope="module")
def modules():
    """The benchmark and its parts as modules; their folder is on the path only while they are imported."""
    sys.path.insert(0, str(FOLDER))
    import elmo
    import elmo_setup
    import elmo_systems
    import timing

    sys.path.remove(str(FOLDER))
    return elmo, elmo_setup, elmo_systems, timing


@pytest.fixture
def tiny(modules, monkeypatch):
    """The modules with a size "tiny", little text before the measurement, and ceilings that are found at once."""
    _, setup, _, timing = modules
    monkeypatch.setitem(setup.SIZES, "tiny", {"config": TINY, "sentences": 4, "batches": 2})
    monkeypatch.setattr(setup, "FILL", 20)
    monkeypatch.setattr(timing, "PRODUCT", (8, 16, 16))
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    return modules


def natural_batch(setup, config):
    """Sentences of 1, 9, 4 and 9 words, some of them repeated."""
    words = ["a", "bc", "def", "ghij", "klmno", "pqrstu", "the", "the", "longest-of-all-words"]
    (batch,), _ = setup.make_batches([[words[:1], words, words[3:7], words]], config)
    return batch


@pytest.mark.parametrize("way", OPEN)
@pytest.mark.parametrize(
    "changes", [{}, {"use_skip_connections": False, "num_highway_layers": 2}], ids=["", "plain"]
)
def test_twin_is_our_model(tiny, monkeypatch, way, changes):
    from reference.elmo_stepwise import ElmoStepwise

    _, setup, systems, _ = tiny
    monkeypatch.setitem(
        setup.SIZES, "tiny", {"config": TINY | changes | {"proj_clip": 0.8}, "sentences": 4, "batches": 2}
    )
    model = setup.make_model("tiny", 0)
    batch, twin = natural_batch(setup, model.config), ElmoStepwise(model)
    counting = systems.CountingTwin(model)
    wanted = counting(batch.char_ids)
    assert systems.CLIPPED < counting.clipped / counting.cells < 0.5
    assert (wanted[1] == 0.8).any()
    with lstmp_path(way):
        output = model(char_ids=batch.char_ids, output_hidden_states=True, keep_boundaries=True)
    for one, other in zip(output.hidden_states, twin(batch.char_ids), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    weights = torch.randn(output.last_hidden_state.shape)
    ours = torch.autograd.grad((output.last_hidden_state * weights).sum(), list(model.parameters()))
    found = twin(batch.char_ids)[-1]
    order = [*twin.encoder_parameters(), *twin.parameters()]
    theirs = torch.autograd.grad((found * weights).sum(), order)
    assert [id(one) for one in order] == [id(one) for one in model.parameters()]
    systems.compare_gradients(way, theirs, ours)


def test_twin_looks_words_up(tiny):
    _, setup, systems, _ = tiny
    bench = systems.Bench("tiny", "stepwise", 0)
    sentences = [["a", "word", "and", "a", "word"], ["b"]]
    (batch,), tokenizer = setup.make_batches([sentences], bench.config)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    table = bench.peer.make_table(setup.word_char_ids(words, bench.config))
    assert batch.distinct == 6  # four words and two marks
    assert batch.positions == 10
    with torch.no_grad():
        pairs = zip(bench.peer.look_up(batch.word_ids, *table), bench.peer(batch.char_ids), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_every_system_has_its_rows(tiny, monkeypatch, capsys, tmp_path):
    elmo, setup, systems, _ = tiny
    monkeypatch.setattr(setup, "TEXT", tmp_path / "none")
    file = tmp_path / "numbers.json"
    arguments = [
        "--sizes",
        "tiny",
        "--batches",
        "1",
        "3",
        "--threads",
        "1",
        "--repeats",
        "2",
        "--training-batches",
        "3",
    ]
    elmo.main([*arguments, "--only", "inference", "training", "--json", str(file)])
    printed, numbers = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    names = [name for name, (way, _) in systems.SYSTEMS.items() if way in OPEN]
    full = [record for record in numbers["inference"] if record["part"] == elmo.CHARACTERS]
    cell = [(record["system"], record["cache"]) for record in full[: 2 + 2 * len(names)]]
    assert cell[:2] == [(systems.PEER, "cold"), (systems.CACHED_PEER, "warm")]
    assert cell[2:] == [(name, cache) for name in names for cache in ("cold", "warm")]
    assert len(full) == 4 * len(cell)
    assert len(numbers["inference"]) == len(full) + 4 * (1 + len(names))
    for record in numbers["inference"] + numbers["training"]:
        assert record["median"] >= record["min"] > 0
        assert record["samples"] == record["used"] == 2
        assert record["clock"] == "CPU"
        assert record["ratio"] > 0
        assert ("ratio_cached" in record) == (record["cache"] == "warm")
    parts = [record["part"] for record in numbers["training"]]
    assert parts == [*["LSTM alone"] * len(set(OPEN) | {"peer"}), *["characters and LSTM"] * (1 + len(OPEN))]
    for record in full:
        assert record["floor"] > 0
        if record["cache"] == "warm" and record["system"] != systems.CACHED_PEER:
            assert 0.1 < record["hit_rate"] < 1
    assert "drawn words" in printed
    assert "| native bf16 | 2 |" in printed or "native" not in OPEN
    assert numbers["sizes"][0]["clipped"] > systems.CLIPPED


def test_hit_rate_is_that_of_the_cache(tiny):
    from heirloom.modeling.word_cache import word_cache

    elmo, _, systems, _ = tiny
    bench = systems.Bench("tiny", "stepwise", 1)
    bench.fill_caches()
    options = elmo.parse(["--repeats", "2"])
    elmo.inference_cell(bench, options, 3, False, 1)
    for model in bench.warm.values():
        assert len(word_cache(model.token_encoder, systems.CAPACITY)) == len(bench.seen) + 2  # and the marks


def test_differences_end_the_program(tiny):
    _, _, systems, _ = tiny
    layer = torch.ones(3, 4)
    with pytest.raises(SystemExit, match="packed differs from the peer by 1.0e-03, expected at most 2e-05"):
        systems.compare("packed", [layer, layer], [layer, layer + 1e-3], False)
    with pytest.raises(SystemExit, match="packed differs from the peer by nan"):
        systems.compare("packed", [layer], [layer * torch.nan], False)
    found = systems.compare("packed bf16", [layer], [layer * 1.5], True)
    assert found["layers"][0]["relative_rms"] == pytest.approx(0.5)
    assert found["layers"][0]["worst_cosine"] == pytest.approx(1)
    with pytest.raises(SystemExit, match="gradients of native differ from the peer's by 1.0e-01"):
        systems.compare_gradients("native", [layer], [layer * 1.1])
    bench = systems.Bench("tiny", "stepwise", 0)
    with torch.no_grad():
        for one in bench.model.lstm.parameters():
            one.mul_(0.1)
    with pytest.raises(SystemExit, match="only 0.000% of the cells are clipped"):
        bench.clipped()


def test_samples_count_where_nobody_else_was_busy(modules):
    timing = modules[3]
    samples = [
        timing.Sample(seconds, quiet) for seconds, quiet in [(1, True), (9, False), (3, True), (2, True)]
    ]
    found = timing.summary(samples, threads=2, parts=2)
    assert (found["median"], found["min"], found["used"], found["quiet"]) == (1.0, 0.5, 3, 3)
    assert timing.summary(samples[:3], threads=2)["median"] == 3  # too few quiet ones: all count
    assert timing.summary(samples, threads=1)["used"] == 4


def test_systems_run_in_turn(modules):
    timing, calls = modules[3], []
    works = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    samples = timing.in_turn(works, 2, threads=1)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: len(found) for name, found in samples.items()} == {"a": 2, "b": 2}


def test_floor_is_that_of_the_counted_work(modules):
    """The original size against the table of counted FLOPs: 53.3 M a word, 67.2 M input products, 83.9 M in the steps."""
    _, setup, _, _ = modules
    config = ElmoConfig()
    assert setup.encoder_flops(config, 50) == pytest.approx(53.3e6, rel=2e-3)
    words = [[f"w{number}" for number in range(25)]] * 8
    (batch,), _ = setup.make_batches([words], config)
    slow_reads = {"fp32": 1e12, "fp32 weights": 40 * 2**20, "bf16": 2e12, "bf16 weights": 1e30}
    seconds = setup.floor(config, batch, slow_reads, 216, 216, 50, False)
    assert seconds == pytest.approx(4 * 27 + 216 * (53.3e6 + 67.2e6) / 1e12, rel=1e-4)
    half = setup.floor(config, batch, slow_reads, 0, 216, 50, True)
    assert half == pytest.approx(216 * (67.2e6 + 83.9e6) / 2e12, rel=2e-3)


def test_memory_is_that_of_a_process_of_its_own(tiny):
    elmo, _, systems, _ = tiny
    records = elmo.run_memory(elmo.parse(["--sizes", "tiny", "--batches", "2", "--threads", "1"]))
    assert [record["system"] for record in records] == [systems.PEER, *systems.SYSTEMS]
    for record in records:
        assert "not_run" in record or record["peak"] >= record["extra"] >= 0
    assert sum("peak" in record for record in records) >= 2
    model = ElmoModel(ElmoConfig(**TINY))
    assert model.token_encoder.cached_words  # what the benchmark turns off stays on elsewhere


def test_the_page_shows_the_results_that_are_kept(modules, capsys):
    modules[0].main(["--show", *map(str, sorted(FOLDER.glob("results/elmo/*_*.json")))])
    page = (FOLDER.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.split("<!--tables-->\n")[1].split("<!--end of tables-->")[0] == capsys.readouterr().out


def test_a_sample_has_enough_sentences_and_batches(modules):
    setup = modules[1]
    assert [setup.batches_of_sample("small", rows) for rows in (1, 8, 32)] == [32, 4, 4]
    assert [setup.batches_of_sample("original", rows) for rows in (1, 8, 32)] == [4, 1, 1]
