"""Attention masks: exact matrices, and what a stock BERT really sees under each attention implementation."""

import numpy as np
import pytest
import torch
from reference import permutation_naive as naive
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, PreTrainedTokenizerFast

from heirloom.objectives.attention_masks import (
    KINDS,
    DataCollatorForUnifiedLM,
    permutation_mask,
    prefix_lm_mask,
    unified_lm_mask,
)

ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCABULARY = {word: number for number, word in enumerate([*ROLES.values(), *(f"w{n}" for n in range(95))])}
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]")), **ROLES
)
BERT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_exact(kind):
    cases = [(source, length) for length in range(1, 9) for source in range(length + 1)]
    sources, lengths = map(np.array, zip(*cases, strict=True))
    mask = unified_lm_mask([kind] * len(cases), sources, lengths, 8)
    assert mask.dtype == np.float32
    assert mask.shape == (len(cases), 1, 8, 8)
    assert set(np.unique(mask)) == {np.finfo(np.float32).min, 0}
    for (source, length), found in zip(cases, mask[:, 0] == 0, strict=True):
        expected = [
            [q == k or (q < length and k < length and naive.sees(kind, source, q, k)) for k in range(8)]
            for q in range(8)
        ]
        assert found.tolist() == expected
        if kind == "seq2seq":
            target = length - source
            assert found[:length].sum() == source**2 + source * target + target * (target + 1) // 2


def test_a_prefix_is_a_source():
    one = prefix_lm_mask(np.array([2, 0]), np.array([5, 4]))
    assert np.array_equal(one, unified_lm_mask(["seq2seq"] * 2, np.array([2, 0]), np.array([5, 4])))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_model_sees_what_it_may_and_nothing_else(kind, attention):
    config = BertConfig(**BERT, attn_implementation=attention, initializer_range=0.5)
    model = BertForMaskedLM(config).double().eval()
    length, source, width = 7, 3, 9
    ids = torch.randint(5, 100, (1, width)).repeat(width + 1, 1)
    ids[torch.arange(width), torch.arange(width)] = (
        ids[0] + 17
    ) % 95 + 5  # row i differs at i, the last one nowhere
    mask = unified_lm_mask(
        [kind] * (width + 1), np.full(width + 1, source), np.full(width + 1, length), width
    )
    with torch.no_grad():
        logits = model(ids, attention_mask=torch.from_numpy(mask).double()).logits
    assert torch.isfinite(logits).all()
    change = (logits[:-1] - logits[-1]).abs().amax(-1).numpy().T  # (what is predicted, what was changed)
    assert not ((change > 1e-12) & (change < 1e-9)).any()  # rounding and effects are far apart
    effect = change > 1e-9
    # Two layers reach no further than one: each of these relations is transitive.
    expected = [
        [q == k or (max(q, k) < length and naive.sees(kind, source, q, k)) for k in range(width)]
        for q in range(width)
    ]
    assert effect.tolist() == expected


@pytest.mark.parametrize("border", [6, 4])
def test_permutation_masks(border):
    rng = np.random.default_rng(0)
    for _ in range(30):
        order = np.concatenate([rng.permutation(border), rng.permutation(6 - border)])
        targets = rng.random(6) < 0.4
        functional = ~targets & (rng.random(6) < 0.3)
        part = (np.arange(6) >= border).astype(int)
        mask = permutation_mask(order[None], targets[None], functional[None], part)[0]
        sets = set(np.flatnonzero(targets)), set(np.flatnonzero(functional))
        expected = [[not naive.knows(q, k, order, *sets, border) for k in range(6)] for q in range(6)]
        assert mask.tolist() == expected


def rows_of(count: int, pairs: bool = False) -> list[dict]:
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        a, b = rng.integers(4, 20, 2)
        ids = [2, *rng.integers(5, 100, a), 3, *rng.integers(5, 100, b), 3]
        rows.append({"input_ids": ids, "token_type_ids": [0] * (a + 2) + [1] * (b + 1)})
        if pairs:
            rows[-1]["next_sentence_label"] = int(rng.integers(2))
    return rows


def kinds_of(batch, rows) -> list[str]:
    """Which kind each row has, from its mask."""
    sources = np.array([row["token_type_ids"].count(0) for row in rows])
    lengths = np.array([len(row["input_ids"]) for row in rows])
    width = batch["input_ids"].shape[1]
    masks = {kind: unified_lm_mask([kind] * len(rows), sources, lengths, width) for kind in KINDS}
    found = batch["attention_mask"].numpy()
    return [
        next(kind for kind in KINDS if np.array_equal(masks[kind][i], found[i])) for i in range(len(rows))
    ]


def test_batches_of_unilm():
    rows = rows_of(1200)
    collate = DataCollatorForUnifiedLM(TOKENIZER)
    batch = collate(rows)
    kinds = kinds_of(batch, rows)
    for kind, share in zip(KINDS, (1 / 3, 1 / 3, 1 / 6, 1 / 6), strict=True):
        assert kinds.count(kind) / 1200 == pytest.approx(share, abs=3 * (share * (1 - share) / 1200) ** 0.5)
    labels = batch["labels"].numpy()
    counts = (labels >= 0).sum(1)
    assert counts.tolist() == [max(1, round(0.15 * len(row["input_ids"]))) for row in rows]
    last = np.array([len(row["input_ids"]) - 1 for row in rows])
    ends = labels[np.arange(1200), last] == 3
    assert {kind for kind, end in zip(kinds, ends, strict=True) if end} == {"seq2seq"}
    assert (labels == 3).sum() == ends.sum()
    assert np.array_equal(batch["labels"], collate(rows)["labels"])
    collate.set_epoch(1)
    assert not np.array_equal(batch["labels"], collate(rows)["labels"])


def test_a_stock_model_learns_from_every_batch():
    model = BertForPreTraining(BertConfig(**BERT))
    for number in range(20):
        rows = rows_of(2, pairs=True)
        batch = DataCollatorForUnifiedLM(TOKENIZER, seed=number)(rows)
        assert (batch["next_sentence_label"] >= 0).any()
        kinds = kinds_of(batch, rows)
        kept = [
            row["next_sentence_label"] if k == "bidirectional" else -100
            for row, k in zip(rows, kinds, strict=True)
        ]
        assert batch["next_sentence_label"].tolist() == kept
        assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: unified_lm_mask(["l2r"], [1], [2]), "expected kinds of bidirectional, seq2seq"),
        (lambda: unified_lm_mask(["seq2seq"], [3], [2]), "expected 0 <= source length <= length <= 2"),
        (lambda: unified_lm_mask(["seq2seq"], [1, 1], [2, 2]), "got 1 kinds, 2 source lengths"),
        (
            lambda: DataCollatorForUnifiedLM(TOKENIZER, mix=(1, 1, 0, 0)),
            "four shares in mix that add up to 1",
        ),
        (lambda: DataCollatorForUnifiedLM(TOKENIZER)([{"input_ids": [2, 7, 8, 3]}]), "rows of two segments"),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_one_segment_is_enough_without_seq2seq():
    batch = DataCollatorForUnifiedLM(TOKENIZER, mix=(0.5, 0, 0.5, 0))([{"input_ids": [2, 7, 8, 3]}])
    assert batch["attention_mask"].shape == (1, 1, 4, 4)
