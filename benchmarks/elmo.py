"""Speed of ELMo in inference and training, side by side with the step-by-step computation of AllenNLP.

    python benchmarks/elmo.py [--only inference training memory] [--sizes original small] [--batches 1 8 32]
        [--threads 1 2] [--repeats 7] [--peer allennlp] [--json OUT] [--show OUT ...]

A cell of the tables: how many times faster than the peer (in parentheses: than the peer that knows all words), words a
second, and the share of the floor. All numbers, with samples and ceilings, are in the JSON.

The systems are the ways of `lstmp` (loop, packed, native) and its precisions. The peer is tests/reference/elmo_stepwise.py,
AllenNLP's operations one for one, or with `--peer allennlp` its own classes, where the package is (`pip install --no-deps
allennlp==2.10.1`). All have the same random weights, and outputs or gradients are compared before anything is timed: float32
within 2e-5 at every layer and position, gradients within 1e-4 of their norm (cells at their clip: `elmo_systems.py`); of bf16 the error is printed. More than 0.1 %
of the cells must run into their clip.

Cold is without word cache. Warm has one that was filled with other text of the corpus, and each batch is timed once, so
that its hit rate is one of new text; its yardsticks are the peer and the peer with a cached vocabulary, which knows all
words. Ours encodes distinct words only, and multiplies them once in the first layer; "LSTM alone" starts at their vectors.

How times are taken: timing.py. The floor: the work that a system cannot avoid at the peak of a large matrix product, and
weights read at the bandwidth of a set of one direction and layer, both measured beside each cell. Memory is the peak of a
process of its own that runs one batch of natural lengths, and what of it came on top of libraries and weights.

Letters: B sentences, S positions of the longest with marks, N positions, U distinct words, P projection.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import elmo_setup as setup
import timing
import torch
import transformers
from elmo_systems import CACHED_PEER, PEER, SYSTEMS, Bench, compare, compare_gradients
from tokenizer_speed import processor

from heirloom.modeling.lstmp_native import machine_level

TRAINING_BATCHES = {"original": (8, 32), "small": (8, 32, 128)}
CHARACTERS, LSTM = "characters to all layers", "LSTM alone"
PARTS = ("inference", "training", "memory")


def inference_cell(bench: Bench, options: argparse.Namespace, rows: int, equal: bool, threads: int) -> list:
    """A record for each system, from characters to all layers; every batch is new to the caches."""
    torch.set_num_threads(threads)
    parts = setup.batches_of_sample(bench.size, rows)
    texts = [bench.corpus.take(rows, equal) for _ in range(1 + options.repeats * parts)]
    (first, *timed), tokenizer = setup.make_batches(texts, bench.config)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    table, marks = bench.peer.make_table(setup.word_char_ids(words, bench.config))
    works = {
        (PEER, "cold"): torch.no_grad()(lambda batch: bench.peer(batch.char_ids)),
        (CACHED_PEER, "warm"): torch.no_grad()(
            lambda batch: bench.peer.look_up(batch.word_ids, table, marks)
        ),
    }
    for name in bench.systems:
        works[name, "cold"] = lambda batch, name=name: bench.run(name, batch)
        works[name, "warm"] = lambda batch, name=name: bench.run(name, batch, warm=True)
    outputs = {key: [layer[first.mask] for layer in work(first)] for key, work in works.items()}
    bench.seen |= set(first.words)
    encoded = {key: [] for key in works}  # words of each batch whose vectors are made
    hits = []
    for batch in timed:
        new = set(batch.words) - bench.seen
        hits.append(sum(word not in new for word in batch.words) / len(batch.words))
        bench.seen |= new
        for name, cache in works:
            cold = batch.positions if name == PEER else batch.distinct
            warm = 0 if name == CACHED_PEER else len(new)
            encoded[name, cache].append(cold if cache == "cold" else warm)
    facts = {"size": bench.size, "part": CHARACTERS, "lengths": "equal" if equal else "natural"}
    facts |= {"batch": rows, "threads": threads}
    found = measure(bench, options, facts, works, timed, parts)
    for record, (name, cache) in zip(found, works, strict=True):
        record["cache"] = cache
        if cache == "warm":
            record["hit_rate"] = 1.0 if name == CACHED_PEER else sum(hits) / len(hits)
    return complete(bench, found, timed, outputs, encoded)


def lstm_cell(bench: Bench, options: argparse.Namespace, rows: int, equal: bool, threads: int) -> list:
    """A record for each system, from the words' vectors to all layers."""
    torch.set_num_threads(threads)
    parts = setup.batches_of_sample(bench.size, rows)
    texts = [bench.corpus.take(rows, equal) for _ in range(1 + options.repeats * parts)]
    batches, _ = setup.make_batches(texts, bench.config)
    inputs = {id(batch): bench.vectors(batch) for batch in batches}

    @torch.no_grad()
    def peer(batch: setup.Batch) -> list:
        return bench.peer.stacks(inputs[id(batch)][1], batch.lengths)

    @torch.no_grad()
    def ours(name: str, batch: setup.Batch) -> list:
        with bench.choose(name):
            return bench.model.lstm(inputs[id(batch)][0], batch.lengths, None, batch.index)[0]

    first, *timed = batches
    works = {(PEER, ""): peer}
    works |= {(name, ""): lambda batch, name=name: ours(name, batch) for name in bench.systems}
    outputs = {key: work(first) for key, work in works.items()}
    outputs[PEER, ""] = [layer[first.mask] for layer in outputs[PEER, ""]]
    facts = {"size": bench.size, "part": LSTM, "lengths": "equal" if equal else "natural"}
    facts |= {"batch": rows, "threads": threads}
    found = measure(bench, options, facts, works, timed, parts)
    return complete(bench, found, timed, outputs, {key: [0] * len(timed) for key in works})


def training_cell(bench: Bench, options: argparse.Namespace, rows: int, whole: bool, threads: int) -> list:
    """A record for each float32 system: forward and backward of the top layer, from vectors or from characters."""
    torch.set_num_threads(threads)
    (batch,), _ = setup.make_batches([bench.corpus.take(rows, equal=True)], bench.config)
    vectors, padded = (one.requires_grad_() for one in bench.vectors(batch))
    weights = torch.randn(batch.positions, 2 * bench.config.projection_size)  # of the outputs in the loss
    lstm, encoder = list(bench.model.lstm.parameters()), list(bench.model.token_encoder.parameters())
    wanted = [*lstm, *(encoder if whole else [vectors])]
    peer_wanted = [*bench.peer.parameters(), *(bench.peer.encoder_parameters() if whole else [padded])]

    def peer(_: setup.Batch) -> tuple:
        top = bench.peer(batch.char_ids)[-1] if whole else bench.peer.stacks(padded, batch.lengths)[-1]
        return torch.autograd.grad((top[batch.mask] * weights).sum(), peer_wanted)

    def ours(name: str) -> tuple:
        with bench.choose(name):
            if whole:
                output = bench.model(char_ids=batch.char_ids, keep_boundaries=True)
                top = output.last_hidden_state[batch.mask]
            else:
                top = bench.model.lstm(vectors, batch.lengths, None, batch.index)[0][-1]
            return torch.autograd.grad((top * weights).sum(), wanted)

    works = {(PEER, ""): peer}
    for name in bench.systems:
        if not bench.is_half(name):
            works[name, ""] = lambda _, name=name: ours(name)
    gradients = {key: work(batch) for key, work in works.items()}
    if whole:
        expected = gradients[PEER, ""]
    else:
        *of_weights, of_padded = gradients[PEER, ""]
        of_vectors = torch.zeros_like(vectors).index_add_(0, batch.index, of_padded[batch.mask])
        expected = [*of_weights, of_vectors]
    facts = {"size": bench.size, "part": "characters and LSTM" if whole else LSTM, "lengths": "equal"}
    facts |= {"batch": rows, "threads": threads}
    found = measure(bench, options, facts, works, [batch] * options.repeats, 1)
    for record, key in zip(found, works, strict=True):
        if key[0] != PEER:
            record["difference"] = {"largest": compare_gradients(key[0], expected, gradients[key])}
        record["words_per_second"] = len(batch.words) / record["median"]
    return with_ratios(found)


def measure(bench: Bench, options, facts: dict, works: dict, batches: list, parts: int) -> list[dict]:
    """Time works that take one of the batches, `parts` of them a sample: one record for each work."""

    def repeat(work: Callable, number: int) -> None:
        for batch in batches[number * parts : (number + 1) * parts]:
            work(batch)

    threads, ceilings = facts["threads"], bench.ceilings(facts["threads"])
    turns = {key: lambda number, work=work: repeat(work, number) for key, work in works.items()}
    samples = timing.in_turn(turns, options.repeats, threads)
    seconds = sum(one.seconds for found in samples.values() for one in found)
    print(f"{seconds:6.1f} s: {', '.join(str(fact) for fact in facts.values())}", file=sys.stderr, flush=True)
    return [
        facts | {"system": key[0], "cache": "", "ceilings": ceilings} | timing.summary(found, threads, parts)
        for key, found in samples.items()
    ]


def complete(bench: Bench, records: list, batches: list, outputs: dict, encoded: dict) -> list[dict]:
    """Add to the records of inference what was compared, speeds, and the floor for so many words encoded in each batch."""
    wanted = next(iter(outputs.values()))  # the peer's
    for record, (key, found) in zip(records, outputs.items(), strict=True):
        if found is not wanted:
            record["difference"] = compare(key[0], wanted, found, bench.is_half(key[0]))
        floors = [
            bench.floor(key[0], batch, record["ceilings"], words)
            for batch, words in zip(batches, encoded[key], strict=True)
        ]
        positions = sum(batch.positions for batch in batches)
        record["floor"] = sum(floors) / len(floors)
        record["share"] = record["floor"] / record["median"]
        record["distinct_share"] = sum(batch.distinct for batch in batches) / positions
        words = sum(len(batch.words) for batch in batches)
        record["words_per_second"] = words / len(batches) / record["median"]
    return with_ratios(records)


def with_ratios(records: list[dict]) -> list[dict]:
    """Add how many times faster than the peer each is, and warm ones than the peer with a cached vocabulary."""
    medians = {(record["system"], record["cache"]): record["median"] for record in records}
    for record in records:
        record["ratio"] = records[0]["median"] / record["median"]
        if record["cache"] == "warm":
            record["ratio_cached"] = medians[CACHED_PEER, "warm"] / record["median"]
    return records


def memory_of(size: str, options: argparse.Namespace, name: str) -> dict:
    """Peak memory of this process after one batch by a system, and what came on top of the weights; bytes."""
    torch.set_num_threads(max(options.threads))
    bench = Bench(size, options.peer, options.seed)
    if name in bench.closed:
        return {"not_run": bench.closed[name]}
    (batch,), _ = setup.make_batches([bench.corpus.take(max(options.batches))], bench.config)
    before = timing.peak_memory()
    if name == PEER:
        with torch.no_grad():
            bench.peer(batch.char_ids)
    else:
        bench.run(name, batch)
    return {"peak": timing.peak_memory(), "extra": timing.peak_memory() - before}


def run_memory(options: argparse.Namespace) -> list[dict]:
    """A record for each size and system, each from a process of its own."""
    records = []
    for size in options.sizes:
        for name in (PEER, *SYSTEMS):
            found = timing.apart(memory_of, size, options, name)
            print(f"memory: {size}, {name}: {found}", file=sys.stderr, flush=True)
            records.append({"size": size, "batch": max(options.batches), "system": name} | found)
    return records


def run_all(options: argparse.Namespace) -> dict[str, list]:
    """The records of all parts. Memory comes first: processes must be forked before threads have worked here."""
    found = {
        "memory": run_memory(options) if "memory" in options.only else [],
        "inference": [],
        "training": [],
    }
    found["sizes"] = []
    for size in options.sizes if set(options.only) - {"memory"} else ():
        bench = Bench(size, options.peer, options.seed)
        facts = {
            "size": size,
            "clipped": bench.clipped(),
            "text": bench.corpus.origin,
            "closed": bench.closed,
        }
        found["sizes"].append(facts)
        cells = [
            (n, rows, equal) for n in options.threads for equal in (True, False) for rows in options.batches
        ]
        if "inference" in options.only:
            bench.fill_caches()
            for threads, rows, equal in cells:
                found["inference"] += inference_cell(bench, options, rows, equal, threads)
            for threads, rows, equal in cells if size != "original" else ():
                found["inference"] += lstm_cell(bench, options, rows, equal, threads)
        if "training" in options.only:
            for threads in options.threads:
                for rows in options.training_batches or TRAINING_BATCHES.get(size, options.batches):
                    for whole in (False, True) if options.peer == "stepwise" else (False,):
                        found["training"] += training_cell(bench, options, rows, whole, threads)
    return found


def markdown(names: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(names) + " |", "|" + "|".join("---:" for _ in names) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def speed_table(records: list[dict]) -> str:
    """Speeds of one size and part: a line for each system, a column for each batch."""
    batches = sorted({record["batch"] for record in records})
    lines: dict[tuple, dict[int, str]] = {}
    for record in records:
        line = str(record["threads"]), record["lengths"], record["system"], record["cache"] or ""
        lines.setdefault(line, {})[record["batch"]] = speed(record)
    rows = [[*line, *(cells.get(batch, "") for batch in batches)] for line, cells in lines.items()]
    return markdown(["threads", "lengths", "system", "cache", *(f"batch {batch}" for batch in batches)], rows)


def speed(record: dict) -> str:
    """Times the peer (times the peer that knows all words), words a second, share of the floor."""
    parts = [f"**{record['ratio']:.2f}**"]
    if record.get("ratio_cached"):
        parts[0] += f" ({record['ratio_cached']:.2f})"
    parts.append(f"{record['words_per_second']:,.0f} w/s")
    if record.get("share"):
        parts.append(f"{record['share']:.0%}")
    return ", ".join(parts)


def accuracy_table(records: list[dict]) -> str:
    """Errors of bfloat16 to the peer, layer by layer, at the largest batch of natural lengths."""
    rows, largest = [], max(record["batch"] for record in records)
    for record in records:
        case = record["part"], record["cache"], record["lengths"], record["batch"], record["threads"]
        wanted = CHARACTERS, "cold", "natural", largest, records[0]["threads"]
        if case != wanted or not record["system"].endswith("bf16"):
            continue
        for number, layer in enumerate(record["difference"]["layers"]):
            cosines = f"{layer['mean_cosine']:.6f}", f"{layer['worst_cosine']:.6f}"
            rows.append([record["system"], str(number), f"{layer['relative_rms']:.1e}", *cosines])
    return markdown(["system", "layer", "relative RMS", "mean cosine", "worst cosine"], rows)


def ceilings_table(records: list[dict]) -> str:
    """The least and the most that was measured of each ceiling."""
    rows = []
    for threads in dict.fromkeys(record["threads"] for record in records):
        found = [record["ceilings"] for record in records if record["threads"] == threads]
        ranges = [
            f"{min(one[name] for one in found) / 1e9:.0f}-{max(one[name] for one in found) / 1e9:.0f}"
            for name in found[0]
        ]
        rows.append([str(threads), *ranges])
    names = ["fp32, GFLOP/s", "fp32 weights, GB/s", "bf16, GFLOP/s", "bf16 weights, GB/s"]
    return markdown(["threads", *names], rows)


def memory_table(records: list[dict]) -> str:
    """Peak memory."""
    rows = []
    for record in records:
        sizes = [f"{record[name] / 1e6:,.0f}" if name in record else "" for name in ("peak", "extra")]
        name = (
            f"{record['system']}, not run: {record['not_run']}" if "not_run" in record else record["system"]
        )
        rows.append([record["size"], str(record["batch"]), name, *sizes])
    return markdown(["size", "batch", "system", "peak, MB", "on top of libraries and weights, MB"], rows)


def report(found: dict) -> str:
    """How it was measured, and all tables."""
    parts = [
        "`python benchmarks/elmo.py {command}`:\n\n{date}, {processor}, {instructions}, torch {torch}, seed {seed}, {repeats} "
        "repeats, peer {peer}; load {load[0]} at the start, {load[1]} at the end".format(**found)
    ]
    for facts in found["sizes"]:
        parts.append(
            f"### {facts['size']}\n\n{facts['text']}; {facts['clipped']:.2%} of the cells are clipped."
        )
        parts += [f"{name} was not run: {reason}." for name, reason in facts["closed"].items()]
        for group in ("inference", "training"):
            records = [record for record in found[group] if record["size"] == facts["size"]]
            for part in dict.fromkeys(record["part"] for record in records):
                same = [record for record in records if record["part"] == part]
                parts += [f"#### {group}: {part}", speed_table(same)]
            if records:
                parts += [f"Ceilings during {group}:", ceilings_table(records)]
            if rates := [record["hit_rate"] for record in records if "hit_rate" in record]:
                parts.append(
                    f"Warm caches knew {min(rates):.0%} to {max(rates):.0%} of the positions' words."
                )
            if records and group == "inference":
                parts += ["Error of bf16:", accuracy_table(records)]
    if found["memory"]:
        parts += ["### memory", memory_table(found["memory"])]
    return "\n\n".join(parts)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="+", choices=list(setup.SIZES), default=list(setup.SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="sentences, in inference")
    parser.add_argument(
        "--training-batches", type=int, nargs="+", help="default: 8 32, and 128 of the small size"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, everything}))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer", choices=["stepwise", "allennlp"], default="stepwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="JSON", help="print the tables of earlier runs"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, and write the numbers as JSON if asked."""
    options = parse(arguments)
    if options.show:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.show]
        print("\n\n".join(map(report, runs)))
        return
    load = os.getloadavg()[0]
    facts = {
        "command": " ".join(sys.argv[1:] if arguments is None else arguments),
        "date": date.today().isoformat(),
        "processor": processor(),
        "instructions": machine_level(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": options.seed,
        "repeats": options.repeats,
        "peer": options.peer,
    }
    found = facts | run_all(options)
    found["load"] = [round(load, 2), round(os.getloadavg()[0], 2)]
    print(report(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
