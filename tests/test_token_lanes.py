"""Transformer-XL on the stock XLNet: lanes that go on from batch to batch, and memories that training carries."""

import json

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from stock_lms import fuzz
from stock_pretraining_models import WORDPIECES, WORDS, plain_sgd
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, XLNetConfig, XLNetLMHeadModel

from heirloom.objectives.text_packing import DataCollatorForCausalLanguageModeling
from heirloom.objectives.token_lanes import DataCollatorForTokenLanes, TokenLanes, pack_lanes
from heirloom.training.recurrence import SegmentRecurrence, check_memories
from heirloom.training.stock_pretraining import StockPretrainingTrainer

TEXT = np.random.default_rng(0).integers(6, WORDS, 64).astype(np.int32)  # 63 targets: 9 lanes' worth of 7
SIZES = {"vocab_size": WORDS, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 12, "dropout": 0.0}
MEMORIES = {"attn_type": "uni", "use_mems_train": True, "mem_len": 100}


def model_of(**changes) -> XLNetLMHeadModel:
    torch.manual_seed(1)
    return fuzz(XLNetLMHeadModel(XLNetConfig(**SIZES | MEMORIES | changes)))


def trainer_of(folder, model=None, rows=3, **more) -> StockPretrainingTrainer:
    own = {"train_dataset": TokenLanes(TEXT, 5), "data_collator": DataCollatorForTokenLanes(WORDPIECES)}
    own |= {key: more.pop(key) for key in (*own, "eval_dataset") if key in more}
    return StockPretrainingTrainer(model or model_of(), plain_sgd(folder, rows, **more), **own)


def losses(trainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def whole_lanes(lanes: TokenLanes) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of each lane in one piece, of lanes that are equally long."""
    parts = [[lanes[step * lanes.lanes + lane] for step in range(lanes.steps)] for lane in range(lanes.lanes)]
    return tuple(
        torch.tensor(np.stack([np.concatenate([row[name] for row in rows]) for rows in parts]))
        for name in ("input_ids", "labels")
    )


def weights(trainer) -> list[torch.Tensor]:
    return [value.clone() for value in trainer.model.state_dict().values()]


# Lanes


@pytest.mark.parametrize(
    ("size", "length", "lanes"), [(64, 5, 3), (64, 7, 9), (50, 4, 8), (9, 3, 8), (10, 99, 1)]
)
def test_lanes_one_after_the_other_are_the_corpus(size, length, lanes):
    data = TokenLanes(TEXT[:size], length, lanes)
    order = [data[step * lanes + lane] for lane in range(lanes) for step in range(data.steps)]
    assert np.array_equal(np.concatenate([row["input_ids"] for row in order]), TEXT[: size - 1])
    assert np.array_equal(np.concatenate([row["labels"] for row in order]), TEXT[1:size])
    assert all(len(row["input_ids"]) == length for row in list(data)[: (data.steps - 1) * lanes - lanes])
    assert len({len(data[lane]["input_ids"]) for lane in range(lanes)}) <= 2
    assert len(data) == data.steps * lanes


def test_documents_end_with_a_separator():
    lanes = pack_lanes([[[7, 8], [9]], [[10]]], 10, separator=2)
    assert lanes[0]["input_ids"].tolist() == [7, 8, 9, 2, 10]
    assert lanes[0]["labels"].tolist() == [8, 9, 2, 10, 2]


def test_rows_of_one_process_stay_in_their_lanes_when_accelerate_deals_them():
    rows, processes = 2, 3
    data = TokenLanes(TEXT, 4).spread(rows * processes)
    batches = BatchSampler(SequentialSampler(data), rows, drop_last=False)
    for process in range(processes):
        mine = [
            [data[number] for number in batch] for batch in BatchSamplerShard(batches, processes, process)
        ]
        assert len(mine) == data.steps
        for row in range(rows):
            found = np.concatenate([batch[row]["labels"] for batch in mine])
            lane = process * rows + row
            assert np.array_equal(found, TEXT[data.edges[lane] + 1 : data.edges[lane + 1] + 1])


def test_the_last_rows_are_filled_up():
    collate = DataCollatorForTokenLanes(WORDPIECES)
    empty = {"input_ids": np.zeros(0, np.int64), "labels": np.zeros(0, np.int64)}
    row = {"input_ids": np.array([7, 8]), "labels": np.array([8, 9])}
    batch = collate([row, empty])
    assert batch["input_ids"].tolist() == [[7, 8], [0, 0]]
    assert batch["labels"].tolist() == [[8, 9], [-100, -100]]
    assert collate([empty, empty])["labels"].tolist() == [[-100], [-100]]


# Training


def test_training_reads_segments_as_if_the_text_were_whole(tmp_path):
    trainer = trainer_of(tmp_path, num_train_epochs=2, eval_dataset=TokenLanes(TEXT, 4))
    trainer.train()
    model, lanes = trainer.model.eval(), trainer.train_dataset
    assert lanes.lanes == 3
    inputs, labels = whole_lanes(lanes)  # 21 targets each, in segments of 5, 5, 5, 5, 1
    with torch.no_grad():
        logits = model(input_ids=inputs).logits
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    expected = [nats[:, begin : begin + 5].mean().item() for begin in range(0, 21, 5)]
    assert losses(trainer) == pytest.approx(2 * expected, abs=1e-5)  # the second epoch begins anew
    alone = [model(**segment).loss.item() for segment in map(trainer.data_collator, batches_of(lanes))]
    assert losses(trainer)[1:5] != pytest.approx(alone[1:], abs=1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(nats.mean().item(), abs=1e-5)
    predicted = trainer.predict(TokenLanes(TEXT, 4))
    assert predicted.metrics["test_loss"] == pytest.approx(nats.mean().item(), abs=1e-5)
    assert predicted.predictions is None


def batches_of(lanes):
    return [[lanes[step * lanes.lanes + row] for row in range(lanes.lanes)] for step in range(lanes.steps)]


def test_batches_that_are_accumulated_go_on_from_each_other(tmp_path):
    one, parts = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", gradient_accumulation_steps=2)
    one.train()
    parts.train()
    found, first = losses(parts), losses(one)
    expected = [(first[0] + first[1]) / 2, (first[2] + first[3]) / 2, first[4]]
    assert found == pytest.approx(expected, abs=1e-5)


def test_no_gradient_reaches_the_segment_before():
    model, recurrence = model_of(), SegmentRecurrence("mems")
    first, second = (torch.tensor(TEXT[None, begin : begin + 6], dtype=torch.long) for begin in (0, 6))
    words = model.get_input_embeddings()
    one = words(first).detach().requires_grad_()
    outputs = model.train()(inputs_embeds=one)
    recurrence.keep(outputs)
    two = words(second).detach().requires_grad_()
    logits = model(**recurrence.feed({"inputs_embeds": two})).logits
    logits.sum().backward()
    assert one.grad is None
    assert two.grad.abs().sum() > 0
    assert (logits - model(inputs_embeds=two).logits).abs().max() > 1e-4  # but it is read


def test_evaluation_leaves_the_memories_of_the_training_alone(tmp_path):
    more = {"learning_rate": 0.1, "eval_dataset": TokenLanes(TEXT[:40], 7), "num_train_epochs": 2}
    plain = trainer_of(tmp_path / "a", **more)
    watched = trainer_of(tmp_path / "b", eval_strategy="steps", eval_steps=1, **more)
    plain.train()
    watched.train()
    assert losses(plain) == losses(watched)
    assert all(map(torch.equal, weights(plain), weights(watched)))
    assert len([record for record in watched.state.log_history if "eval_loss" in record]) == 10


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_training_remembers(step, tmp_path):
    more = {"learning_rate": 0.1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": step}
    whole = trainer_of(tmp_path, **more)
    whole.train()
    again = trainer_of(tmp_path, model_of(), **more)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert losses(again) == pytest.approx(losses(whole), abs=1e-6)
    for ours, theirs in zip(weights(again), weights(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    other = trainer_of(tmp_path, model_of(), rows=4, **more)
    with pytest.raises(ValueError, match="changed lanes 3 to 4.*Resume with the same data"):
        other.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))


# What does not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_type": "bi"}, "attn_type='bi' instead of 'uni'.*would see the tokens.*take new weights"),
        ({"use_mems_train": False}, "use_mems_train=False instead of True.*may be set in its config.json"),
        ({"mem_len": None}, "mem_len=None instead of a number of tokens to keep"),
        ({"reuse_len": 3}, "reuse_len=3, which would keep the wrong tokens"),
    ],
)
def test_models_that_are_no_transformer_xl(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model_of(**changes))


def test_what_else_is_refused(tmp_path):
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=20))
    with pytest.raises(ValueError, match="need an XLNet with attn_type='uni'.*but the model is gpt2"):
        check_memories(gpt.config)
    with pytest.raises(ValueError, match="DataCollatorForTokenLanes makes batches for a permutation"):
        trainer_of(tmp_path, gpt)
    with pytest.raises(ValueError, match="ForCausalLanguageModeling makes batches for a causal"):
        trainer_of(tmp_path, data_collator=DataCollatorForCausalLanguageModeling(WORDPIECES))
    with pytest.raises(ValueError, match="auto_find_batch_size and split_batches change the rows"):
        trainer_of(tmp_path, auto_find_batch_size=True)
    with pytest.raises(ValueError, match="64 tokens do not fill 64 lanes"):
        trainer_of(tmp_path, rows=64)
    with pytest.raises(ValueError, match="expected rows of TokenLanes"):
        DataCollatorForTokenLanes(WORDPIECES)([{"input_ids": [7, 8]}])
    with pytest.raises(ValueError, match="length is 0; expected 1 or more"):
        TokenLanes(TEXT, 0)
    assert json.dumps(TokenLanes(TEXT, 5, 3).identity()) == '{"tokens": 64, "lanes": 3, "length": 5}'
