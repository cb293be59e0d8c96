"""Permutation language modelling on the stock XLNet: who really depends on whom, and the counts of the original."""

import numpy as np
import pytest
import torch
from reference import permutation_naive as naive
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForPermutationLanguageModeling as StockCollator,
)
from transformers import PreTrainedTokenizerFast, XLNetConfig, XLNetLMHeadModel

from heirloom.objectives.permutation import (
    DataCollatorForPermutationLanguageModeling,
    PermutationTargets,
    walk,
)
from heirloom.objectives.token_batch import TokenBatch, generator
from heirloom.objectives.word_runs import WordRuns

ROLES = {
    "unk_token": "<unk>",
    "sep_token": "<sep>",
    "cls_token": "<cls>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
IDS = {word: number for number, word in enumerate([*ROLES.values(), *(f"w{n}" for n in range(295))])}
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(IDS, unk_token="<unk>")), **ROLES
)
SEP, CLS, SIZE = 1, 2, 300
TOKENS = PermutationTargets(unit="token")


def rows_of(lengths, new_word: float = 0.7, seed: int = 0) -> list[dict]:
    """Rows `.. <sep> .. <sep> <cls>` with words."""
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        ids = rng.integers(5, SIZE, length)
        words = np.cumsum(rng.random(length) < new_word)
        for place, token in ((length // 2, SEP), (length - 2, SEP), (length - 1, CLS)):
            ids[place], words[place] = token, -1
        rows.append({"input_ids": ids, "word_ids": words})
    return rows


def batch_of(lengths, **options) -> TokenBatch:
    return TokenBatch.from_rows(
        rows_of(lengths, **options), DataCollatorForPermutationLanguageModeling(TOKENIZER).vocabulary
    )


def model_of(layers: int = 3) -> XLNetLMHeadModel:
    config = XLNetConfig(
        vocab_size=SIZE,
        d_model=16,
        n_layer=layers,
        n_head=2,
        d_inner=16,
        dropout=0,
        initializer_range=0.4,
        mem_len=8,
    )
    return XLNetLMHeadModel(config).eval()


def effects(model, batch: dict, places) -> np.ndarray:
    """(P, len(places)): whether another token at a place changes the logits of a target, of a batch of one row."""
    copies = len(places) + 1
    many = {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in batch.items()}
    many["input_ids"][torch.arange(copies - 1), torch.tensor(places)] += 1
    many["input_ids"][many["input_ids"] == SIZE] = 5
    with torch.no_grad():
        logits = model(**many).logits
    change = (logits[:-1] - logits[-1]).abs().amax(-1).T.numpy()
    assert not ((change > 1e-6) & (change < 1e-5)).any()  # rounding and effects are far apart
    return change > 1e-5


def test_targets_depend_on_one_another_in_the_order_of_the_factorisation():
    model, length, seen = model_of(), 30, 0
    for seed in range(3):
        rows = rows_of([length], seed=seed)
        targets = PermutationTargets(num_predict=12)
        batch = DataCollatorForPermutationLanguageModeling(TOKENIZER, targets, seed=seed)(rows)
        place_of = batch["target_mapping"][0].argmax(1).tolist()
        functional = set(np.flatnonzero(rows[0]["input_ids"] < 5).tolist())
        found = effects(model, batch, range(length))
        # The order is read off the mask: how many targets and special tokens of its half each one sees.
        inside = sorted({*place_of, *functional})
        perm = batch["perm_mask"][0].numpy()
        rank = [sum(not perm[i, j] for j in inside if (j < 15) == (i < 15) and i != j) for i in range(length)]
        for half in (range(15), range(15, 30)):
            members = [rank[i] for i in inside if i in half]
            assert sorted(members) == list(range(len(members)))  # a total order
        expected = [
            [naive.knows(q, k, rank, set(place_of), functional, 15) for k in range(length)] for q in place_of
        ]
        assert found.tolist() == expected
        assert not any(found[slot, place] for slot, place in enumerate(place_of))  # nobody sees itself
        assert not found[:6, 15:].any()
        seen += int(found[:, place_of].sum())
    assert seen > 60


def test_the_stock_collator_has_no_dependencies_at_all():
    rows = [{"input_ids": rows_of([30])[0]["input_ids"].tolist()}]
    stock = StockCollator(TOKENIZER)

    def batch_for(rows):
        torch.manual_seed(1)
        return stock(rows)

    batch = batch_for(rows)
    masked = np.flatnonzero(batch["labels"][0].numpy() >= 0).tolist()
    assert len(masked) > 2
    model = model_of()
    with torch.no_grad():
        before = model(**batch).logits
        for place in masked:
            changed = list(rows[0]["input_ids"])
            changed[place] = 5 + (changed[place] - 4) % 290
            again = batch_for([{"input_ids": changed}])
            assert torch.equal(again["target_mapping"], batch["target_mapping"])
            assert torch.equal(model(**again).logits[:, masked], before[:, masked])


def test_the_first_part_is_the_same_without_the_second():
    model, rows = model_of(), rows_of([30])
    batch = DataCollatorForPermutationLanguageModeling(TOKENIZER, PermutationTargets(num_predict=10))(rows)
    first = (batch["target_mapping"][0].argmax(1) < 15).sum()
    assert first == 5
    small = {
        "input_ids": batch["input_ids"][:, :15],
        "perm_mask": batch["perm_mask"][:, :15, :15],
        "target_mapping": batch["target_mapping"][:, :first, :15],
    }
    with torch.no_grad():
        whole, part = model(**batch).logits[:, :first], model(**small).logits
    assert torch.allclose(whole, part, rtol=0, atol=1e-5)


def test_padding_changes_nothing_and_every_batch_has_a_loss():
    model = model_of(2)
    collate = DataCollatorForPermutationLanguageModeling(TOKENIZER, PermutationTargets(reuse_length=8))
    batch = collate(rows_of([30, 9, 4, 17]))
    with torch.no_grad():
        out = model(**batch)
        assert torch.isfinite(out.loss)
        assert torch.isfinite(out.logits).all()
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 77)
        real = batch["labels"] >= 0
        assert torch.equal(model(**batch).logits[real], out.logits[real])


def test_85_of_512_in_halves():
    batch = batch_of([512] * 16)
    for targets in (PermutationTargets(), TOKENS, PermutationTargets(num_predict=85)):
        found = targets(generator(0), batch)
        assert found["target_mapping"].shape == (16, 85, 512)
        assert found["perm_mask"].dtype == bool
        assert (found["target_mapping"].sum(2) == 1).all()
        place = found["target_mapping"].argmax(2)
        assert ((place < 256).sum(1) == 43).all()
        assert (np.diff(place) > 0).all()
        assert np.array_equal(found["labels"], np.take_along_axis(batch.input_ids, place, 1))
        assert found["labels"].min() >= 5
        assert found["perm_mask"][:, :256, 256:].all()
        assert not found["perm_mask"][:, 256:, :256].any()
        size = sum(array.nbytes for array in found.values()) / 16 * 32
        assert size < 15e6


@pytest.mark.parametrize(("unit", "reuse"), [("word", None), ("token", None), ("word", 0), ("token", 7)])
def test_ragged_rows(unit, reuse):
    lengths = [200, 61, 20, 9, 5, 4]
    batch = batch_of(lengths)
    found = PermutationTargets(unit=unit, reuse_length=reuse)(generator(0), batch)
    wanted = [max(1, n // 6) for n in lengths]
    assert (found["labels"] >= 0).sum(1).tolist() == wanted
    assert found["target_mapping"].sum((1, 2)).tolist() == wanted
    most = PermutationTargets(unit=unit, reuse_length=reuse, num_predict=40)(generator(0), batch)
    assert most["labels"].shape == (6, 40)
    available = [int(((row["input_ids"] > 4) & (row["word_ids"] >= 0)).sum()) for row in rows_of(lengths)]
    assert (most["labels"] >= 0).sum(1).tolist() == [min(40, n - 1) for n in available]


@pytest.mark.parametrize("reuse", [None, 0, 3])
def test_every_target_sees_a_token(reuse):
    """A target that sees none would attend to all alike, to itself and to padding too."""
    for num_predict in (None, 40):
        targets = PermutationTargets(unit="token", num_predict=num_predict, reuse_length=reuse)
        for length in (4, 5, 6, 9, 12, 30):
            for first in ([2], []):  # BERT's order of special tokens, and XLNet's
                ids = [*first, *range(10, 10 + length - 2), 1, *([] if first else [2])]
                batch = DataCollatorForPermutationLanguageModeling(TOKENIZER, targets)(
                    [{"input_ids": ids}] * 20
                )
                blind = batch["perm_mask"].all(2) & (batch["target_mapping"].sum(1) > 0)
                assert not blind.any()
                assert (batch["labels"] >= 0).any(1).all()


def test_the_walk_is_that_of_the_original():
    rng, batch = np.random.default_rng(0), batch_of([256, 200, 90, 30, 8])
    rounds, context = 40, 6
    sizes = rng.integers(1, 6, (rounds, 5))
    front = (rng.random(sizes.shape) * sizes * context).astype(int)
    counts = np.array([43, 30, 15, 5, 2])
    free = np.arange(256) < batch.lengths[:, None]  # as in the original, special tokens too
    ids = np.where(free, np.maximum(batch.word_ids, 0), -1)
    places = np.broadcast_to(np.arange(256), free.shape)
    words, units = WordRuns.of(ids, free), WordRuns.of(places, free)
    begins, stops = walk(words, units, batch.lengths, counts, sizes, front, context)
    for row, length in enumerate(batch.lengths):
        starts = [place in words.start[row, : words.count[row]] for place in range(length)]
        expected = naive.spans(starts, length, counts[row], sizes[:, row], front[:, row], context)
        found = {p for b, e in zip(begins[row], stops[row], strict=True) for p in range(b, e)}
        assert found == expected


# The original's run is 1.93 tokens; words of 1.43 tokens make ours longer.
def test_spans_have_the_lengths_of_the_original():
    assert PermutationTargets().pmf() == pytest.approx(
        np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]) / 2.28333, abs=1e-5
    )
    assert PermutationTargets().pmf() @ np.arange(1, 6) == pytest.approx(2.190, abs=1e-3)
    batch = batch_of([512] * 32)
    for unit, expected in (("token", 1.93), ("word", 2.94)):
        lengths = []
        for step in range(4):
            found = PermutationTargets(unit=unit)(generator(0, step=step), batch)
            chosen = found["target_mapping"].any(1)
            begins = chosen.copy()
            begins[:, 1:] &= ~chosen[:, :-1]
            lengths.append(chosen.sum() / begins.sum())
        assert np.mean(lengths) == pytest.approx(expected, abs=0.12)


def test_deterministic_and_nothing_is_changed():
    rows = rows_of([40, 30])
    before = [row["input_ids"].copy() for row in rows]
    collate = DataCollatorForPermutationLanguageModeling(TOKENIZER, seed=3)
    one, other = collate(rows), DataCollatorForPermutationLanguageModeling(TOKENIZER, seed=3)(rows)
    assert all(torch.equal(one[name], other[name]) for name in one)
    one["input_ids"][:] = 0
    assert all(np.array_equal(row["input_ids"], old) for row, old in zip(rows, before, strict=True))
    collate.set_epoch(1)
    assert not torch.equal(collate(rows)["labels"], other["labels"])
    assert "token_type_ids" not in one
    typed = [row | {"token_type_ids": [0] * len(row["input_ids"])} for row in rows]
    assert collate(typed)["token_type_ids"].shape == (2, 40)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PermutationTargets(num_predict=0), "num_predict is 0; expected 1 or more"),
        (lambda: PermutationTargets(unit="char"), 'unit must be "word" or "token"'),
        (
            lambda: DataCollatorForPermutationLanguageModeling(TOKENIZER)([{"input_ids": [7, 8, 1]}]),
            "needs a column 'word_ids'",
        ),
        (
            lambda: DataCollatorForPermutationLanguageModeling(TOKENIZER, TOKENS)([{"input_ids": [1, 2]}]),
            "row 0 of the batch has no token that can be masked",
        ),
        (
            lambda: DataCollatorForPermutationLanguageModeling(TOKENIZER, TOKENS)([{"input_ids": [2, 7, 1]}]),
            "row 0 of the batch has one ordinary token, .* leave rows of fewer than two out",
        ),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_tokens_without_a_word_are_no_targets_of_words():
    rows = rows_of([40])
    rows[0]["word_ids"][3:30] = -1  # say a word that truncation has cut
    found = DataCollatorForPermutationLanguageModeling(TOKENIZER, PermutationTargets(num_predict=20))(rows)
    place = np.flatnonzero(found["target_mapping"][0].any(0).numpy())
    assert len(place) == int((rows[0]["word_ids"] >= 0).sum())
    assert (rows[0]["word_ids"][place] >= 0).all()
