"""Training as bilm-tf does it: twelve steps on its streams, with its sampled softmax and Adagrad, and its perplexities.

Reference: shared/oracles/elmo/training, made by bilm-tf's own code; everything to 2e-6, perplexities to 6 digits.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from heirloom.conversion import from_bilm
from heirloom.modeling import vocabulary_softmax
from heirloom.modeling.modeling_elmo import ElmoForPreTraining
from heirloom.modeling.sampled_softmax import expected_counts
from heirloom.objectives.streams import ElmoStreamCollator, Stream
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

pytestmark = pytest.mark.usefixtures("shared")
FOLDER = Path(__file__).resolve().parents[2] / "shared" / "oracles" / "elmo" / "training"
UNROLL, CLIP = 4, 10.0
TOLERANCE = {"rtol": 0, "atol": 2e-6}


def model_of(case: str, file: str) -> ElmoForPreTraining:
    model = from_bilm(FOLDER / case / "options.json", FOLDER / case / file)
    if case == "char_sampled":
        model.config.softmax, model.config.num_sampled = "sampled", 6
    return model


def batch_of(batches, kind: str, number: int) -> dict[str, torch.Tensor]:
    """bilm-tf's ids begin at 0, ours leave 0 to padding."""
    names = {"token_ids": "input_ids", "next_token_id": "labels", "tokens_characters": "char_ids"}
    found = {}
    for theirs, ours in names.items():
        for suffix, prefix in (("", ""), ("_reverse", "backward_")):
            key = f"{kind}/{number}/{theirs}{suffix}"
            if key in batches:
                found[prefix + ours] = torch.tensor(batches[key]).long() + 1
    return found


def arrays(states, layer: int, direction: str) -> dict[str, torch.Tensor]:
    half = {"f": 0, "b": 1}[direction]
    return {kind: state[layer].chunk(2, 1)[half] for kind, state in zip("hc", states, strict=True)}


@pytest.mark.parametrize("case", ["char_full", "char_sampled", "word_full"])
def test_twelve_steps(case, monkeypatch):
    trace, batches = np.load(FOLDER / case / "trace.npz"), np.load(FOLDER / "batches.npz")
    draws = iter(
        (torch.tensor(trace[f"sampled_ids/{step}/{direction}"]), int(trace[f"num_tries/{step}/{direction}"]))
        for step in range(12)
        for direction in "fb"
        if case == "char_sampled"
    )
    monkeypatch.setattr(vocabulary_softmax, "draw_log_uniform", lambda classes, count: next(draws))
    model = model_of(case, "init.hdf5").train()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.2, initial_accumulator_value=1.0, eps=0)
    states = None
    for step in range(12):
        batch = batch_of(batches, "train_word" if case == "word_full" else "train_char", step)
        with torch.no_grad():
            full = model.eval()(**batch, states=states)
        outputs = model.train()(**batch, states=states)
        for prefix, found in (("", outputs), ("full_", full)):
            for name, theirs in (
                ("loss", "loss"),
                ("forward_loss", "loss_fwd"),
                ("backward_loss", "loss_bwd"),
            ):
                torch.testing.assert_close(
                    found[name].item(), float(trace[f"{prefix}{theirs}/{step}"]), **TOLERANCE
                )
        assert (outputs.sampled_loss is not None) == (case == "char_sampled")
        assert full.sampled_loss is None
        optimizer.zero_grad()
        (outputs.loss * UNROLL).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        torch.testing.assert_close(norm.item(), float(trace[f"grad_norm/{step}"]), rtol=2e-6, atol=2e-6)
        optimizer.step()
        states = outputs.states
        for direction in "fb":
            for layer in range(2):
                for kind, found in arrays(states, layer, direction).items():
                    expected = torch.tensor(trace[f"state/{step}/{direction}/layer{layer}/{kind}"])
                    torch.testing.assert_close(found, expected, **TOLERANCE)
    expected = model_of(case, "final.hdf5").state_dict()
    sums = model_of(case, "final_accumulators.hdf5").state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.data, expected[name], **TOLERANCE, msg=name)
        found, wanted = optimizer.state[parameter]["sum"], sums[name]
        if found.shape[0] in (25, 262):  # tables with a row for padding, which files lack
            found, wanted = found[1:], wanted[1:]
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6, msg=f"Adagrad sum of {name}")


def test_the_trace_is_of_another_loss_than_the_perplexity():
    trace = np.load(FOLDER / "char_sampled" / "trace.npz")
    assert trace["loss/11"] < 0.8 * trace["full_loss/11"]


@pytest.mark.parametrize("case", ["char_full", "char_sampled", "word_full"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_perplexity(case, lanes):
    """bilm-tf's `test`: one step at a time, one pass, states carried, the first incomplete batch dropped."""
    words = (FOLDER / "vocab.txt").read_text("utf-8").split()
    tokenizer = ElmoTokenizer(words, max_characters_per_token=12)
    model = model_of(case, "final.hdf5").eval()
    shard = (FOLDER / "corpus.txt").read_text("utf-8").split("\n")[:-1]
    stream = Stream(
        [shard],
        encode=split,
        collate=ElmoStreamCollator(tokenizer),
        batch_size=lanes,
        unroll_steps=1,
        marks=("<S>", "</S>"),
        bidirectional=True,
        shuffle_buffer=0,
        one_pass=True,
        drop_last=True,
    )
    losses, states = [], None
    with torch.no_grad():
        for batch in DataLoader(stream, batch_size=None):
            outputs = model(**batch, states=states)
            states = outputs.states
            losses.append(outputs.loss.item())
    assert len(losses) == {1: 87, 2: 42, 3: 27}[lanes]
    expected = json.loads((FOLDER / "perplexity.json").read_text())[case][str(lanes)]
    assert np.exp(np.mean(losses)) == pytest.approx(expected, rel=5e-7)


def split(rows: list[str]) -> list[list[str]]:
    return [row.split() for row in rows]


def test_expected_counts_are_tensorflows():
    trace = np.load(FOLDER / "char_sampled" / "trace.npz")
    batches = np.load(FOLDER / "batches.npz")
    seen = set()
    for step in range(12):
        for direction, suffix in (("f", ""), ("b", "_reverse")):
            draws = int(trace[f"num_tries/{step}/{direction}"])
            seen.add(draws == 6)
            for ids, theirs in (
                (batches[f"train_char/{step}/next_token_id{suffix}"].reshape(-1, 1), "true_expected"),
                (trace[f"sampled_ids/{step}/{direction}"], "sampled_expected"),
            ):
                found = expected_counts(torch.tensor(ids), 24, 6, draws)
                expected = torch.tensor(trace[f"{theirs}/{step}/{direction}"]).double()
                torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert seen == {True, False}  # with and without rejected draws
