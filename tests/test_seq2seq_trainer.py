"""The joint Trainer: exact under accumulation for ours and stock models, by hand, measured, scheduled; clear errors."""

import math

import pytest
import torch
from reference.lstm_seq2seq_naive import naive_lm_losses, naive_losses
from seq2seq_training import (
    MODELS,
    STOCK,
    WORDS,
    bart,
    bert_to_gpt2,
    ids,
    make,
    ours,
    pairs,
    rows_of,
    run,
    settings,
    sides_of,
    texts,
)
from torch.nn import functional as F
from transformers import (
    BertLMHeadModel,
    Seq2SeqTrainer,
    TrainerCallback,
    TrainingArguments,
)

from heirloom.modeling.seq2seq_losses import StockSeq2SeqLosses
from heirloom.objectives.seq2seq import (
    MonolingualBatches,
    MonolingualCollator,
    ParallelCollator,
    TokenRows,
    joint_batch,
)
from heirloom.training.forgetting import Freezing, l2sp
from heirloom.training.seq2seq_trainer import JointSeq2SeqTrainer, StepDecay


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_accumulation_changes_nothing(name, with_text, tmp_path):
    results = [
        run(name, tmp_path, batch, 16 // batch, texts(sides_of(name), batch) if with_text else ())
        for batch in (16, 2, 1)
    ]
    logs, gradients = results[0]
    assert ("target_lm_loss" in logs[0]) == with_text
    for other_logs, other_gradients in results[1:]:
        for one, theirs in zip(other_logs, logs, strict=True):
            for key in theirs.keys() & {"loss", "seq2seq_loss", "source_lm_loss", "target_lm_loss"}:
                assert one[key] == pytest.approx(theirs[key], abs=1e-5)
        for one, theirs in zip(other_gradients, gradients, strict=True):
            assert one.keys() == theirs.keys()
            for key in theirs:
                torch.testing.assert_close(one[key], theirs[key], rtol=0, atol=1e-5)


def test_the_stock_trainer_fails_the_same_test(tmp_path):
    """What the test above is for."""
    norms = [
        sum(
            gradient.square().sum()
            for gradient in run("bart", tmp_path, batch, 16 // batch, (), Seq2SeqTrainer)[1][0].values()
        )
        for batch in (16, 2)
    ]
    assert norms[1] > 10 * norms[0]


@pytest.mark.parametrize("name", STOCK)
def test_stock_losses_are_by_hand_one_row_at_a_time(name, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    start, total, count = model.config.decoder_start_token_id, 0.0, 0
    for row in pairs():
        decoder_input_ids = torch.tensor([[start, *row["labels"][:-1]]])
        mask = torch.ones_like(decoder_input_ids)
        source = torch.tensor([row["input_ids"]])
        logits = model(source, decoder_input_ids=decoder_input_ids, decoder_attention_mask=mask).logits
        total += F.cross_entropy(logits[0], torch.tensor(row["labels"]), reduction="sum")
        count += len(row["labels"])
    text_total, text_count = 0.0, 0
    batches = MonolingualBatches(ids(40, 10), MonolingualCollator("target", [1], [1]), 16, seed=42)
    for row in rows_of(batches[0], "target"):
        sentence = torch.tensor([row])
        if name == "bert to gpt2":
            silence = torch.zeros(1, 1, model.decoder.config.hidden_size, dtype=torch.double)
            logits = model.decoder(sentence[:, :-1], encoder_hidden_states=silence).logits
        elif name == "t5":
            hidden = model.decoder(sentence[:, :-1]).last_hidden_state
            scale = 8**-0.5 if model.config.scale_decoder_outputs else 1.0
            logits = F.linear(hidden * scale, model.lm_head.weight)
        else:
            hidden = model.model.decoder(sentence[:, :-1]).last_hidden_state
            logits = F.linear(hidden, model.lm_head.weight, model.final_logits_bias[0].double())
        text_total += F.cross_entropy(logits[0], sentence[0, 1:], reduction="sum")
        text_count += len(row) - 1
    logs, _ = run(name, tmp_path, 4, 4, texts(("target",), 4, weight=1.0))
    assert logs[0]["seq2seq_loss"] == pytest.approx(float(total / count), abs=1e-6)
    assert logs[0]["target_lm_loss"] == pytest.approx(float(text_total / text_count), abs=1e-6)
    assert logs[0]["loss"] == pytest.approx(float(total / count + text_total / text_count), abs=1e-5)
    assert logs[0]["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)


def test_our_losses_are_the_naive_twins(tmp_path):
    torch.manual_seed(0)
    model = ours().double()
    trainer, _ = make(model, tmp_path, texts(batch_size=5), learning_rate=0.0, max_steps=1)
    trainer.train()
    log = next(log for log in trainer.state.log_history if "loss" in log)
    rows = pairs()[:4]
    losses = [naive_losses(model, row["input_ids"], row["labels"]) for row in rows]
    expected = {"seq2seq_loss": _mean(losses)}
    for side in ("source", "target"):
        read = rows_of(trainer._batches[side][0], side)
        assert len(read) == 5
        expected[f"{side}_lm_loss"] = _mean([naive_lm_losses(model, side, row) for row in read])
    for name, value in expected.items():
        assert log[name] == pytest.approx(value, abs=1e-6)
    assert log["loss"] == pytest.approx(sum(expected.values()), abs=1e-5)


def _mean(losses) -> float:
    flat = [float(loss) for row in losses for loss in row]
    return sum(flat) / len(flat)


def test_weights_and_smoothing(tmp_path):
    results = {}
    for name, weights, smoothing in (("plain", (None, None), 0.0), ("changed", (0.5, 3.0), 0.2)):
        torch.manual_seed(0)
        two = [
            texts((side,), 4, weight=weight)[0]
            for side, weight in zip(("source", "target"), weights, strict=True)
        ]
        model = ours(label_smoothing=smoothing)
        trainer, _ = make(model, tmp_path, two, label_smoothing_factor=smoothing, max_steps=1)
        trainer.train()
        results[name] = next(log for log in trainer.state.log_history if "loss" in log)
    plain, changed = results["plain"], results["changed"]
    assert plain["loss"] == pytest.approx(
        sum(plain[f"{part}_loss"] for part in ("seq2seq", "source_lm", "target_lm")), abs=1e-5
    )
    wanted = changed["seq2seq_loss"] + 0.5 * changed["source_lm_loss"] + 3.0 * changed["target_lm_loss"]
    assert changed["loss"] == pytest.approx(wanted, abs=1e-5)
    assert changed["seq2seq_loss"] != pytest.approx(plain["seq2seq_loss"], abs=1e-5)
    assert changed["source_lm_loss"] == plain["source_lm_loss"]  # no smoothing there
    assert "perplexity" in plain
    assert "perplexity" not in changed  # of a smoothed loss there is none
    with pytest.raises(
        ValueError, match=r"label_smoothing_factor=0.1 would drop.*label_smoothing=0.0 in its config"
    ):
        make(ours(), tmp_path, label_smoothing_factor=0.1)


def test_stock_models_smooth_in_training_only(tmp_path):
    torch.manual_seed(0)
    model = bart().double()
    batch = ParallelCollator()(pairs())
    losses = StockSeq2SeqLosses(model, 0.3)
    logits, known = losses(**batch).logits, batch["labels"] != -100
    logs = logits[known].log_softmax(-1)
    picked = logs.gather(1, batch["labels"][known][:, None]).mean()
    assert float(losses(**batch).loss) == pytest.approx(float(-0.7 * picked - 0.3 * logs.mean()), abs=1e-6)
    assert float(StockSeq2SeqLosses(model.eval(), 0.3)(**batch).loss) == pytest.approx(
        float(-picked), abs=1e-6
    )
    trainer, _ = make(bart(), tmp_path, label_smoothing_factor=0.3)
    trainer.train()
    assert trainer.stock.label_smoothing == 0.3
    assert trainer.label_smoother is None


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_a_mean_over_targets(name, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    trainer, _ = make(model, tmp_path, texts(sides_of(name)))
    metrics = trainer.evaluate()
    total, count = 0.0, 0
    for row in pairs(10, 7):
        batch = ParallelCollator()([row])
        with torch.no_grad():
            losses = model.eval() if name == "ours" else StockSeq2SeqLosses(model)
            total += float(losses(**batch).seq2seq_loss) * len(row["labels"])
        count += len(row["labels"])
    assert metrics["eval_loss"] == metrics["eval_seq2seq_loss"] == pytest.approx(total / count, abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    for number, side in enumerate(sides_of(name)):
        total, count = 0.0, 0
        for row in ids(7, 20 + number):
            batch = MonolingualCollator(side, [1], [1])([row])
            with torch.no_grad():
                total += float(losses(**batch)[f"{side}_lm_loss"]) * (len(row) + 1)
            count += len(row) + 1
        assert metrics[f"eval_{side}_lm_loss"] == pytest.approx(total / count, abs=1e-6)
        assert metrics[f"eval_{side}_lm_ppl"] == pytest.approx(math.exp(total / count), rel=1e-6)


def test_generation_in_evaluation(tmp_path):
    def compute(prediction):
        assert prediction.predictions.ndim == 2
        assert len(prediction.predictions) == len(prediction.label_ids) == 10
        return {"bleu": 1.0}

    for name in ("ours", "bart"):
        torch.manual_seed(0)
        model = MODELS[name]()
        exact = make(model, tmp_path)[0].evaluate()["eval_loss"]
        trainer, _ = make(model, tmp_path, predict_with_generate=True, generation_max_length=6)
        trainer.compute_metrics = compute
        metrics = trainer.evaluate()
        assert metrics["eval_bleu"] == 1.0
        assert metrics["eval_loss"] == pytest.approx(exact, abs=1e-6)
        trainer, _ = make(model, tmp_path)
        trainer.compute_metrics = lambda prediction: {"shape": prediction.predictions.shape[-1]}
        assert trainer.evaluate()["eval_shape"] == WORDS  # logits alone, not a tuple with the parts


def test_each_micro_batch_has_a_text_of_its_own(tmp_path):
    """Over two epochs whose last step is short."""
    seen = []

    class Sees(JointSeq2SeqTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(rows_of(inputs, "source"))
            return super().training_step(model, inputs, *args, **kwargs)

    own = {"gradient_accumulation_steps": 3, "max_steps": 5}
    trainer, _ = make(ours(), tmp_path, texts(batch_size=5), Sees, **own)
    trainer.train()
    numbers = [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14]  # epochs of 4 batches: steps of 3, 1, 3, 1 and 3
    batches = MonolingualBatches(ids(40, 10), MonolingualCollator("source", [1], [1]), 5, seed=42)
    assert seen == [rows_of(batches[number], "source") for number in numbers]


def test_forgetting_is_perplexity_by_that_at_the_start(tmp_path):
    torch.manual_seed(0)
    model = ours()
    own = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "learning_rate": 1.0}
    trainer, _ = make(model, tmp_path, texts(train=None), **own)
    start = {}
    for number, side in enumerate(("source", "target")):
        batch = MonolingualCollator(side, [1], [1])(ids(7, 20 + number))
        with torch.no_grad():
            start[side] = math.exp(model(**batch)[f"{side}_lm_loss"])
    trainer.train()
    log = trainer.state.log_history
    assert log[0]["step"] == 0
    assert log[0]["eval_forgetting"] == 1.0
    evaluations = [record for record in log if "eval_loss" in record]
    assert [record["step"] for record in evaluations] == [2, 4]
    for number, side in enumerate(("source", "target")):
        batch = MonolingualCollator(side, [1], [1])(ids(7, 20 + number))
        with torch.no_grad():
            now = math.exp(model.eval()(**batch)[f"{side}_lm_loss"])
        assert log[0][f"eval_{side}_lm_ppl"] == pytest.approx(start[side], rel=1e-5)
        assert evaluations[-1][f"eval_{side}_forgetting"] == pytest.approx(now / start[side], rel=1e-5)
        assert abs(now / start[side] - 1) > 0.005
    worst = max(evaluations[-1][f"eval_{side}_forgetting"] for side in ("source", "target"))
    assert evaluations[-1]["eval_forgetting"] == worst


def test_the_papers_schedule():
    decay = StepDecay(every=50, after=400)
    assert [decay(step) for step in (0, 400, 449, 450, 499, 500)] == pytest.approx([1, 1, 1, 0.8, 0.8, 0.64])


def test_the_schedule_in_training(tmp_path):
    torch.manual_seed(0)
    trainer, _ = make(ours(), tmp_path, max_steps=8, warmup_steps=2)
    trainer.step_decay = StepDecay(every=2, after=2, factor=0.5)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


# Batches


def test_a_joint_batch():
    parallel = ParallelCollator(source_pad=9)(
        [{"input_ids": [5, 6], "labels": [7, 1]}, {"input_ids": [5], "labels": [1]}]
    )
    assert parallel["input_ids"].tolist() == [[5, 6], [5, 9]]
    assert parallel["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert parallel["labels"].tolist() == [[7, 1], [1, -100]]
    text = MonolingualCollator("source", [1], [2], pad=8)([[4, 3], [], [7]])
    assert text["source_lm_input_ids"].tolist() == [[1, 4, 3, 2], [1, 2, 8, 8], [1, 7, 2, 8]]
    assert text["source_lm_attention_mask"].sum(1).tolist() == [4, 2, 3]
    assert joint_batch(parallel, text).keys() == parallel.keys() | text.keys()
    with pytest.raises(ValueError, match=r"have \['source_lm_attention_mask', 'source_lm_input_ids'\]"):
        joint_batch(parallel, text, text)


def test_monolingual_batches_are_cut_like_one():
    rows = TokenRows([[number] for number in range(3, 20)])
    assert len(rows) == 17
    assert rows[-1] == [19]
    assert rows[2:4] == [[5], [6]]
    collate = MonolingualCollator("source", [], [])

    def seen(size, numbers, **where):
        batches = MonolingualBatches(rows, collate, size, **where)
        return [
            token for number in numbers for token in batches[number]["source_lm_input_ids"].flatten().tolist()
        ]

    one = seen(8, range(9))
    assert one == seen(2, range(36)) == seen(1, range(72))
    assert sorted(one[:17]) == sorted(one[17:34]) == list(range(3, 20))  # each pass has all
    assert one[:17] != one[17:34]
    ranks = [seen(4, range(9), rank=rank, world_size=2) for rank in (0, 1)]
    assert [ranks[number // 4 % 2][number // 8 * 4 + number % 4] for number in range(72)] == one
    batches = MonolingualBatches(rows, collate, 8)
    assert batches[7]["source_lm_input_ids"].flatten().tolist() == one[56:64]  # any at once
    assert seen(8, range(9), seed=1) != one
    with pytest.raises(ValueError, match="monolingual text has 0 sentences and batches of 4"):
        MonolingualBatches([], collate, 4)


def test_texts_that_a_model_cannot_read(tmp_path):
    with pytest.raises(
        ValueError, match="BartForConditionalGeneration holds no language model of the source"
    ):
        make(bart(), tmp_path, texts())
    with pytest.raises(ValueError, match="bidirectional_encoder holds no language model of the source"):
        make(ours(bidirectional_encoder=True), tmp_path, texts())
    model = bart()
    model.model.decoder.forward = None
    with pytest.raises(
        ValueError, match="decoder of BartForConditionalGeneration does not run without encoder states"
    ):
        make(model, tmp_path, texts(("target",)))
    model = bert_to_gpt2()
    model.decoder = BertLMHeadModel(model.config.encoder)  # reads both ways
    with pytest.raises(
        ValueError, match="sees the tokens that it is to predict, so it is no causal language model"
    ):
        make(model, tmp_path, texts(("target",)))
    with pytest.raises(
        ValueError, match="needs args of the kind Seq2SeqTrainingArguments, found TrainingArguments"
    ):
        JointSeq2SeqTrainer(model=ours(), args=settings(tmp_path, TrainingArguments))
    with pytest.raises(ValueError, match="2 monolingual texts for"):
        make(ours(), tmp_path, texts(("source", "source")))
    with pytest.raises(ValueError, match="compute_loss_func replaces the loss"):
        JointSeq2SeqTrainer(model=ours(), args=settings(tmp_path), compute_loss_func=print)


def test_what_acts_on_gradients_does_so_once_a_step(tmp_path):
    """With accumulation; values and gradients of a step that moved, by hand."""
    found = []
    for batch in (16, 2):
        torch.manual_seed(0)
        model = ours().double()
        penalty = l2sp(model, ["lm_head.weight"], 0.7)
        own = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 16 // batch}
        own["learning_rate"] = 5.0
        trainer, gradients = make(model, tmp_path, (), forgetting=penalty, **own)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        found.append((logs, gradients.of_steps))
    for (logs, steps), (other_logs, other_steps) in [found]:
        assert logs[0]["l2sp_loss"] == 0
        assert logs[1]["l2sp_loss"] > 1e-3
        assert logs[1]["loss"] == pytest.approx(logs[1]["seq2seq_loss"] + logs[1]["l2sp_loss"], abs=1e-5)
        for ours_, theirs in zip(logs, other_logs, strict=True):
            assert ours_["l2sp_loss"] == pytest.approx(theirs["l2sp_loss"], abs=1e-9)
        for ours_, theirs in zip(steps, other_steps, strict=True):
            torch.testing.assert_close(ours_["lm_head.weight"], theirs["lm_head.weight"])
    torch.manual_seed(0)
    own = {"per_device_train_batch_size": 16, "learning_rate": 5.0}
    trainer, gradients = make(ours().double(), tmp_path, (), **own)
    trainer.train()
    moved = -5.0 * gradients.of_steps[0]["lm_head.weight"]  # of one step of SGD
    free, held = gradients.of_steps[1]["lm_head.weight"], found[0][1][1]["lm_head.weight"]
    torch.testing.assert_close(held - free, 0.7 * moved)
    assert found[0][0][1]["l2sp_loss"] == pytest.approx(float(0.35 * moved.square().sum()), rel=1e-6)


def test_frozen_at_first(tmp_path):
    torch.manual_seed(0)
    model = ours()
    names = ["lm_head.weight", "lm_head.bias", "encoder.embed_tokens.weight"]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    seen = []

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append({name for name, p in model.named_parameters() if not torch.equal(p, before[name])})

    own = {"max_steps": 3, "optim": "adamw_torch", "weight_decay": 0.1, "max_grad_norm": 1.0}
    trainer, gradients = make(model, tmp_path, (), forgetting=Freezing(names, 2), **own)
    trainer.add_callback(Looks())
    trainer.train()
    assert not (seen[0] | seen[1]) & set(names)  # not even by weight decay
    assert {"encoder.layers.1.weight_ih_l0"} <= seen[0]
    assert set(names) <= seen[2]
    norm = sum(gradient.square().sum() for gradient in gradients.of_steps[0].values()).sqrt()
    assert float(norm) <= 1 + 1e-5
    assert not set(names) & gradients.of_steps[1].keys()
