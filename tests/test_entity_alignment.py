"""Batches for ERNIE of Tsinghua: what the model sees of each alignment, the table of a batch, and clear errors."""

import numpy as np
import pytest
import torch
from stock_lms import tokenizer

from heirloom.modeling.configuration_ernie_thu import ErnieThuConfig
from heirloom.modeling.modeling_ernie_thu import ErnieThuForPreTraining
from heirloom.objectives.entity_alignment import DataCollatorForEntityAlignment
from heirloom.objectives.pretraining_collators import DataCollatorForMaskedLanguageModeling

WORDS = 60
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
BERT = tokenizer(WORDS, SPECIAL, **NAMES)
VECTORS = np.random.default_rng(0).normal(size=(50, 6))
# mentions of one, two and three tokens, two of the same entity, and -100 for none
ROWS = [
    {"input_ids": [1, 5, 6, 7, 8, 2], "entity_ids": [-1, 7, 7, 30, -1, -1], "next_sentence_label": 1},
    {
        "input_ids": [1, 9, 8, 7, 6, 5, 4, 2],
        "entity_ids": [-100, 3, 3, 3, -100, 7, -100, -100],
        "next_sentence_label": 0,
    },
]
BARE = [{"input_ids": [1, 5, 6, 2], "entity_ids": [-1] * 4}]


def collator(**options):
    return DataCollatorForEntityAlignment(BERT, **{"entity_vectors": VECTORS} | options)


def many(rows=200, length=52, seed=1):
    rng = np.random.default_rng(seed)
    return [
        {
            "input_ids": rng.integers(4, WORDS, length).tolist(),
            "entity_ids": [*rng.permutation(50).tolist(), -1, -1],
        }
        for _ in range(rows)
    ]


def test_a_batch_has_its_own_entities_at_first_tokens():
    batch = collator(random=0.0, dropped=0.0)(ROWS)
    assert batch["entities"].tolist() == [
        [-1, 1, -1, 2, -1, -1, -1, -1],
        [-1, 0, -1, -1, -1, 1, -1, -1],
    ]
    assert torch.equal(batch["entity_labels"], torch.where(batch["entities"] < 0, -100, batch["entities"]))
    expected = torch.from_numpy(VECTORS[[3, 7, 30]]).float()
    assert torch.equal(batch["entity_vectors"], expected)
    for table in (
        torch.from_numpy(VECTORS),
        torch.nn.Embedding.from_pretrained(torch.from_numpy(VECTORS)).weight,
    ):
        found = collator(random=0.0, dropped=0.0, entity_vectors=table)(ROWS)["entity_vectors"]
        assert torch.equal(found, expected)
        assert not found.requires_grad


def test_everything_else_is_the_masked_batch():
    batch, masked = collator(seed=3)(ROWS), DataCollatorForMaskedLanguageModeling(BERT, seed=3)(ROWS)
    assert batch["next_sentence_label"].tolist() == [1, 0]
    assert batch.keys() - masked.keys() == {"entities", "entity_labels", "entity_vectors"}
    assert all(torch.equal(batch[name], value) for name, value in masked.items())


def test_shares_of_exchanged_dropped_and_kept():
    batch = collator()(many())
    seen, true = (batch[name][batch["entity_labels"] >= 0] for name in ("entities", "entity_labels"))
    number = len(true)
    assert number == 200 * 50
    dropped, other = (seen == -1).float().mean().item(), ((seen >= 0) & (seen != true)).float().mean().item()
    for share, wanted in ((dropped, 0.15), (other, 0.05 * 49 / 50)):
        assert abs(share - wanted) < 3 * (wanted * (1 - wanted) / number) ** 0.5
    exchanged = seen[(seen >= 0) & (seen != true)]
    assert len(exchanged.unique()) == 50  # any entity of the batch
    assert bool((batch["entities"][batch["entity_labels"] < 0] == -1).all())
    few = collator(random=1.0, dropped=0.0)(ROWS)
    assert 0 <= few["entities"][few["entity_labels"] >= 0].min() <= few["entities"].max() < 3
    none = collator(random=0.0, dropped=1.0)(ROWS)
    assert none["entities"].unique().tolist() == [-1]
    assert (none["entity_labels"] >= 0).sum() == 4


def test_equal_seeds_and_epochs_give_equal_batches():
    rows = many(4)
    first, again, other, later = collator(), collator(), collator(seed=1), collator(epoch=1)
    batches = [one(rows) for one in (first, again, other, later)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    for batch in batches[2:]:
        assert not torch.equal(batches[0]["entities"], batch["entities"])
        assert torch.equal(batches[0]["entity_labels"], batch["entity_labels"])
    first.set_epoch(1)
    assert torch.equal(first(rows)["entities"], batches[3]["entities"])
    assert rows == many(4)


@pytest.mark.parametrize("rows", [ROWS, BARE])
def test_the_model_reads_it(rows):
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 3, "num_text_layers": 1, "entity_size": 6, "num_entity_heads": 2}
    model = ErnieThuForPreTraining(ErnieThuConfig(**sizes, max_position_embeddings=16)).train()
    batch = collator()(rows)
    found = model(**batch)
    found.loss.backward()
    assert found.loss.isfinite()
    assert (found.dea_loss.item() > 0) == (rows is ROWS)
    assert model.count_items(batch)[2] == (4 if rows is ROWS else 0)
    assert not any(batch[name].requires_grad for name in batch)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random": 1.5}, "random must lie between 0 and 1"),
        ({"dropped": -0.1}, "dropped must lie between 0 and 1"),
        ({"random": 0.6, "dropped": 0.6}, "must be 1 at most together, got 0.6 and 0.6"),
        ({"entity_vectors": VECTORS[0]}, r"entity_vectors must be \(M, E\), .* got shape \(6,\)"),
        ({"entity_vectors": VECTORS[:0]}, r"got shape \(0, 6\)"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        collator(**options)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"input_ids": [1, 5, 6, 2]}], {}, "needs a column 'entity_ids'"),
        ([{"input_ids": [1, 5, 6, 2], "entity_ids": [-1, 50, -1, -1]}], {}, "entity_ids below 50, .* got 50"),
        (
            [{"input_ids": [1, 5, 6, 2], "entity_ids": [-1, 5]}],
            {},
            "row 0 of the batch has 2 entity_ids for 4 tokens",
        ),
        (ROWS, {"entity_vectors": VECTORS * np.nan}, "NaN or infinity for entity 3"),
    ],
)
def test_bad_rows(rows, options, words):
    with pytest.raises(ValueError, match=words):
        collator(**options)(rows)


def test_a_tokenizer_without_a_mask():
    with pytest.raises(ValueError, match="needs a mask token"):
        DataCollatorForEntityAlignment(tokenizer(WORDS), entity_vectors=VECTORS)
