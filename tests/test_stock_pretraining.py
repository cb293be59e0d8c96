"""Pre-training of stock models: the head on masked rows alone, and means that no accumulation and no processes change."""

import numpy as np
import pytest
import torch
from stock_lms import fuzz
from stock_pretraining_models import (
    COLLATORS,
    COMMON,
    GATHERED,
    STILL,
    WORDPIECES,
    WORDS,
    batch_of,
    collator_of,
    make,
    rows_of,
)
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraConfig,
    SqueezeBertConfig,
    SqueezeBertForMaskedLM,
    TrainingArguments,
)
from two_processes import run_in_two_processes

from heirloom.modeling.configuration_electra_joint import ElectraJointConfig
from heirloom.modeling.configuration_infoword import InfoWordConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.gathered_head import StockPretrainingLosses, gathered, mlm_head, mlm_logits
from heirloom.modeling.modeling_electra_joint import ElectraForJointPreTraining
from heirloom.modeling.modeling_infoword import InfoWordForPreTraining
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.objectives.ngram_pairs import DataCollatorForNgramContrast, NgramPairs
from heirloom.objectives.pretraining_collators import DataCollatorForMaskedLanguageModeling
from heirloom.objectives.sentence_pairs import SentencePairDataset
from heirloom.training.distillation import DistillationTrainer
from heirloom.training.stock_pretraining import StockPretrainingTrainer


def trainer_of(folder, name, size, accumulate, **more):
    model = more.pop("model", None) or make(name)
    own = {"train_dataset": rows_of(name)}
    known = ("data_collator", "train_dataset", "eval_dataset", "teacher")
    own |= {key: more.pop(key) for key in known if key in more}
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": accumulate,
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    own.setdefault("data_collator", collator_of(name))
    kind = DistillationTrainer if "teacher" in own else StockPretrainingTrainer
    return kind(model, TrainingArguments(**arguments | more), **own)


# The head


def stock_loss(model, batch):
    """The loss as the stock forward computes it, of whatever its labels are."""
    return model(**batch).loss


@pytest.mark.parametrize("name", GATHERED)
def test_the_gathered_head_is_the_dense_one(name):
    model, batch = make(name).double(), batch_of(name)
    stock_loss(model, batch).backward()
    dense = {key: parameter.grad for key, parameter in model.named_parameters()}
    loss = model(**batch).loss.item()
    model.zero_grad()
    losses, shapes = StockPretrainingLosses(model), []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, found: shapes.append(tuple(found.shape))
    )
    output = losses(**batch)
    hook.remove()
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss, abs=1e-6)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, dense[key], rtol=0, atol=1e-6, msg=key)
    if name != "deberta-v2 new":  # whose softmax is no module
        assert shapes == [(int((batch["labels"] != -100).sum()), WORDS)]
    assert not mlm_head(model)[0]._forward_pre_hooks


@pytest.mark.parametrize("name", GATHERED)
def test_logits_of_some_states_are_the_models_own(name):
    model, batch = make(name), batch_of(name)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    places = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    places[1, 2] = places[2, 20] = places[7, 0] = True
    with torch.no_grad():
        dense = model(**inputs)
        logits = dense["prediction_logits"] if "prediction_logits" in dense else dense["logits"]
        hidden = model.base_model(**inputs).last_hidden_state
        torch.testing.assert_close(mlm_logits(model, hidden[places]), logits[places], rtol=1e-5, atol=1e-5)
        with gathered(model, places):
            few = model(**inputs)
        few = few["prediction_logits"] if "prediction_logits" in few else few["logits"]
        torch.testing.assert_close(few, logits[places], rtol=1e-5, atol=1e-5)


def test_an_unknown_head_runs_as_it_is():
    sizes = {**COMMON, **STILL, "embedding_size": 16, "num_hidden_layers": 1}
    groups = {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
    model = fuzz(SqueezeBertForMaskedLM(SqueezeBertConfig(**sizes, **groups)))
    batch = batch_of("bert")
    assert mlm_head(model) is None
    loss = StockPretrainingLosses(model)(**batch).loss
    assert loss.item() == pytest.approx(stock_loss(model, batch).item(), abs=1e-5)
    with pytest.raises(
        ValueError, match=r"the head of SqueezeBertForMaskedLM is not known; .*Call the model"
    ):
        mlm_logits(model, torch.zeros(1, 16))


# The losses


@pytest.mark.parametrize("name", [*COLLATORS, "bert pairs", "albert pairs"])
def test_losses_of_one_batch_are_the_stock_ones(name):
    model, batch = make(name), batch_of(name)
    output = StockPretrainingLosses(model)(**batch)
    assert output.loss.item() == pytest.approx(stock_loss(model, batch).item(), abs=1e-5)
    assert StockPretrainingLosses(model, gather=False)(**batch).loss.item() == pytest.approx(
        output.loss.item(), abs=1e-5
    )


def test_pairs_are_optional_and_each_part_has_its_own_mean():
    model, batch = make("bert pairs"), batch_of("bert pairs")
    losses = StockPretrainingLosses(model)
    assert losses.parts == ("mlm_loss", "nsp_loss")
    assert losses.count(batch).tolist() == [int((batch["labels"] != -100).sum()), 6]
    whole = losses(**batch)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    found, label = model(**inputs), batch.pop("next_sentence_label")
    mlm = F.cross_entropy(found.prediction_logits.transpose(1, 2), batch["labels"])
    nsp = F.cross_entropy(found.seq_relationship_logits, label)
    assert whole.mlm_loss.item() == pytest.approx(mlm.item(), abs=1e-5)
    assert whole.nsp_loss.item() == pytest.approx(nsp.item(), abs=1e-5)
    alone = losses(**batch)
    assert alone.loss.item() == alone.mlm_loss.item() == pytest.approx(mlm.item(), abs=1e-5)
    assert "nsp_loss" not in alone
    none = losses(**batch | {"labels": torch.full_like(batch["labels"], -100), "next_sentence_label": label})
    assert none.mlm_loss.item() == 0
    assert none.loss.item() == pytest.approx(nsp.item(), abs=1e-5)


def test_targets_that_are_shifted_already():
    model, batch = make("gpt2"), batch_of("gpt2")
    losses = StockPretrainingLosses(model)
    labels = batch.pop("labels")
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    assert (
        losses.count({"shift_labels": shifted}).item() == losses.count({"labels": labels}).item() == 110 - 8
    )
    one, other = losses(**batch, labels=labels), losses(**batch, shift_labels=shifted)
    assert one.loss.item() == pytest.approx(other.loss.item(), abs=1e-6)


def test_types_of_a_model_without_them_are_left_out():
    for name in ("roberta", "distilbert"):
        batch = batch_of(name)
        losses = StockPretrainingLosses(make(name))
        with_types = losses(**batch, token_type_ids=torch.ones_like(batch["input_ids"]))
        assert with_types.loss.item() == losses(**batch).loss.item()
    batch, losses = batch_of("bert"), StockPretrainingLosses(make("bert"))
    with_types = losses(**batch, token_type_ids=torch.ones_like(batch["input_ids"]))
    assert with_types.loss.item() != losses(**batch).loss.item()


# The trainer

EVERY_HEAD = ["bert", "bert pairs", "roberta", "albert pairs", "electra", "discriminator"]
EVERY_HEAD += ["bart", "t5", "mass", "xlnet", "gpt2"]


class Fixed:
    """The rows' own targets, whatever the batch: what a collator draws depends on the batch."""

    def __init__(self, name, collator=None):
        self.name, self.pieces = name, {}
        for number, row in enumerate(rows_of(name)):
            self.pieces[number] = (collator or collator_of(name))([row])

    def __call__(self, numbers):
        parts = [self.pieces[number["number"]] for number in numbers]
        return {key: padded([part[key] for part in parts], key) for key in parts[0]}


def padded(tensors, key):
    fill = -100 if key == "labels" else 1 if key == "perm_mask" else 0
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    found = tensors[0].new_full((len(tensors), *shape), fill)
    for row, tensor in zip(found, tensors, strict=True):
        row[tuple(map(slice, tensor.shape[1:]))] = tensor[0]
    return found


def exactly(name):
    model = make(name)
    return model if name == "xlnet" else model.double()  # whose sinusoids are single always


def moved(folder, name, size, accumulate):
    """How far one step of SGD moves each parameter, and what it logs."""
    model = exactly(name)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    numbers = [{"number": number} for number in range(8)]
    options = {"train_dataset": numbers, "eval_dataset": numbers, "data_collator": Fixed(name)}
    trainer = trainer_of(folder, name, size, accumulate, model=model, **options)
    evaluated = trainer.evaluate()
    trainer.train()
    steps = {key: parameter.detach() - before[key] for key, parameter in model.named_parameters()}
    return steps, trainer.state.log_history[-2], evaluated


@pytest.mark.parametrize("name", EVERY_HEAD)
def test_accumulation_changes_nothing(name, tmp_path):
    whole, log, evaluated = moved(tmp_path, name, 8, 1)
    parts, other, _ = moved(tmp_path, name, 2, 4)
    norms = [torch.cat([step.flatten() for step in steps.values()]).norm() for steps in (whole, parts)]
    assert norms[0] > 1e-3
    precision = 1e-5 if name == "xlnet" else 1e-6
    assert float(norms[1] / norms[0]) == pytest.approx(1, abs=precision)
    for key, step in whole.items():
        torch.testing.assert_close(parts[key], step, rtol=0, atol=0.1 * precision, msg=key)
    names = [key for key in log if key.endswith("_loss") and not key.startswith("train")]
    assert names
    batch = Fixed(name)([{"number": number} for number in range(8)])
    exact = stock_loss(exactly(name), batch).item()
    assert sum(log[key] for key in names) == pytest.approx(exact, abs=1e-5)
    for key in ("loss", *names):
        assert log[key] == pytest.approx(other[key], abs=1e-5)
        assert evaluated[f"eval_{key}"] == pytest.approx(log[key], abs=1e-5)
    assert ("perplexity" in log) == ("eval_perplexity" in evaluated) == (name != "discriminator")


KINDS = ["t5", "gpt2", "electra joint", "infoword", "distillation"]


def of_kind(folder, name, size, **more):
    """Two steps of another kind of model."""
    torch.manual_seed(1)
    text = BertConfig(**COMMON, **STILL)
    if name == "electra joint":
        parts = ElectraConfig(**COMMON, **STILL, embedding_size=8)
        likeliest = {"discriminator_weight": 1.0, "temperature": 1e-4}  # so that drawing is not random
        config = ElectraJointConfig(discriminator_config=parts, **likeliest)
        more |= {"model": fuzz(ElectraForJointPreTraining(config))}
    elif name == "infoword":
        config = InfoWordConfig(text_config=text, contrast="margin", negatives="replaced", temperature=4.0)
        collator = DataCollatorForNgramContrast(WORDPIECES, ngrams=NgramPairs("replaced"))
        more |= {"model": fuzz(InfoWordForPreTraining(config)), "data_collator": Fixed(name, collator)}
    elif name == "distillation":
        more |= {"model": make("bert"), "teacher": fuzz(BertForMaskedLM(text)).double()}
    else:
        more |= {"model": make(name)}
    more["model"].double()
    numbers = [{"number": number} for number in range(8)]
    options = {"train_dataset": numbers, "eval_dataset": numbers[:7], "data_collator": Fixed(name)}
    return trainer_of(folder, name, size, 1, **options | {"max_steps": 2} | more)


def what_became(trainer):
    """Weights, logs and metrics after training."""
    trainer.train()
    metrics = trainer.evaluate()
    logs = [record for record in trainer.state.log_history if "grad_norm" in record]
    return {"weights": list(trainer.model.state_dict().values()), "logs": logs, "eval": metrics}


def test_two_processes_change_nothing(tmp_path):
    code = """
options = {"ddp_backend": "gloo"}
found = {name: suite.what_became(suite.of_kind(folder, name, 2, **options)) for name in suite.KINDS}
trainer = suite.over_two_epochs(folder, 2, **options)
found["bert pairs"] = suite.what_became(trainer)
if trainer.is_world_process_zero():
    torch.save(found, folder / "result")
"""
    run_in_two_processes(__file__, tmp_path, code)
    both = torch.load(tmp_path / "result", weights_only=True)
    for name, two in both.items():
        pairs = name == "bert pairs"
        trainer = over_two_epochs(tmp_path / "one", 4) if pairs else of_kind(tmp_path / "one", name, 4)
        one = what_became(trainer)
        for ours, whole in zip(two["weights"], one["weights"], strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-7, msg=name)
        assert len(one["logs"]) == len(two["logs"]) == (4 if pairs else 2)
        parts = trainer.stock.parts
        assert len(parts) == {"t5": 1, "gpt2": 1, "distillation": 3}.get(name, 2)
        for part in ("loss", *parts):
            assert two["eval"][f"eval_{part}"] == pytest.approx(one["eval"][f"eval_{part}"], abs=1e-6), name
            for ours, whole in zip(two["logs"], one["logs"], strict=True):
                assert ours[part] == pytest.approx(whole[part], abs=1e-5), name


class Numbers(torch.utils.data.Dataset):
    """Half of the rows, twice, in the second epoch; accelerate alone would not tell two processes of it."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 8

    def __getitem__(self, number):
        return {"number": number % 4 if self.epoch else number}


def over_two_epochs(folder, size, **more):
    options = {"data_collator": Fixed("bert pairs"), "train_dataset": Numbers()}
    options |= {"eval_dataset": [{"number": number} for number in range(7)], "max_steps": 4}
    model = make("bert pairs").double()
    return trainer_of(folder, "bert pairs", size, 1, model=model, **options, **more)


class Rows(torch.utils.data.Dataset):
    """Rows that remember their epochs, fewer in the second."""

    def __init__(self):
        self.rows, self.epochs, self.size = rows_of("bert"), [], 8

    def set_epoch(self, epoch):
        self.epochs.append(epoch)
        self.size = 5 if epoch == 1 else 8

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        return self.rows[number]


class Remembering(DataCollatorForMaskedLanguageModeling):
    """A collator that remembers the epoch of every batch."""

    def __call__(self, rows):
        self.__dict__.setdefault("seen", []).append(self.epoch)
        return super().__call__(rows)


def test_epochs_reach_data_set_and_collator(tmp_path):
    collator, rows = Remembering(WORDPIECES), Rows()
    options = {"data_collator": collator, "train_dataset": rows, "eval_dataset": rows_of("bert")[:3]}
    options |= {"max_steps": -1, "num_train_epochs": 3, "eval_strategy": "epoch"}
    trainer = trainer_of(tmp_path, "bert", 4, 2, **options)
    trainer.train()
    assert list(dict.fromkeys(rows.epochs)) == [0, 1, 2]
    evaluation = [0]  # every evaluation has the same masks
    assert collator.seen == [0, 0, *evaluation, 1, 1, *evaluation, 2, 2, *evaluation]
    assert collator.epoch == 2


def test_a_resumed_training_has_the_masks_of_its_epoch(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "max_steps": -1}
    seen = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        collator = Remembering(WORDPIECES)
        trainer = trainer_of(tmp_path, "bert", 4, 1, data_collator=collator, **options)
        trainer.train(resume_from_checkpoint=resume)
        seen.append(
            (collator.seen, {key: value.clone() for key, value in trainer.model.state_dict().items()})
        )
    assert seen[0][0] == [0, 0, 1, 1]
    assert seen[1][0] == [1]
    for key, value in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pairs_that_are_drawn_anew_resume_where_they_were(accumulate, tmp_path):
    """Epochs of chunks have different numbers; a training must not lose its place over them."""
    draw = np.random.default_rng(0)
    documents = [
        [draw.integers(6, WORDS, draw.integers(2, 9)).tolist() for _ in range(draw.integers(1, 6))]
        for _ in range(20)
    ]
    options = {"save_strategy": "steps", "num_train_epochs": 4, "max_steps": -1}
    options["save_steps"] = 40 // accumulate
    found = []
    for resume in (None, str(tmp_path / f"checkpoint-{40 // accumulate}")):
        rows = SentencePairDataset(documents, WORDPIECES, "nsp", max_length=20, seed=4)
        trainer = trainer_of(tmp_path, "bert pairs", 2, accumulate, train_dataset=rows, **options)
        trainer.train(resume_from_checkpoint=resume)
        found.append((trainer.state.global_step, trainer.state.epoch, trainer.model.state_dict()))
    assert found[0][:2] == found[1][:2]
    assert found[0][1] == 4
    for key, value in found[0][2].items():
        torch.testing.assert_close(found[1][2][key], value, rtol=0, atol=1e-6, msg=key)


def test_our_own_models_train_as_before(tmp_path):
    sizes = {"vocab_size": WORDS, "embedding_size": 8, "cell_size": 8, "dropout": 0.0, "eos_token_id": 2}
    model = LstmLMForCausalLM(LstmLMConfig(**sizes))
    trainer = trainer_of(tmp_path, "gpt2", 4, 1, model=model, eval_dataset=rows_of("gpt2"))
    assert trainer.stock is None
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


# What is wrong


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"label_smoothing_factor": 0.1}, "label_smoothing_factor replace the loss"),
        ("t5", {"data_collator": "bert"}, r"makes batches for a masked .* T5For\w+ is an encoder-decoder"),
        (
            "bert",
            {"data_collator": "t5"},
            "makes batches for an encoder-decoder .*BertForMaskedLM is a masked",
        ),
        ("electra", {"data_collator": "discriminator"}, "makes batches for a discriminator"),
        (
            "bert",
            {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
            "do not hear of a new epoch",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, changes, message, tmp_path):
    if "data_collator" in changes:
        changes = {"data_collator": collator_of(changes["data_collator"])}
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, name, 4, 1, **changes)


def test_models_and_vocabularies_that_do_not_fit(tmp_path):
    small = BertForMaskedLM(BertConfig(**COMMON | {"vocab_size": 50}))
    with pytest.raises(ValueError, match=r"the tokenizer has 60 ids, but BertForMaskedLM embeds 50.*resize"):
        trainer_of(tmp_path, "bert", 4, 1, model=small)
    other = BertForSequenceClassification(BertConfig(**COMMON))
    with pytest.raises(ValueError, match=r"expected a masked .*got BertForSequenceClassification"):
        trainer_of(tmp_path, "bert", 4, 1, model=other)


def test_labels_that_do_not_fit():
    bert, batch = StockPretrainingLosses(make("bert")), batch_of("bert pairs")
    with pytest.raises(ValueError, match=r"`next_sentence_label`, but BertForMaskedLM has no head for pairs"):
        bert(**batch)
    with pytest.raises(ValueError, match="AlbertForPreTraining reads sentence_order_label. Name the label"):
        StockPretrainingLosses(make("albert pairs"))(**batch)
    with pytest.raises(ValueError, match=r"labels must lie in 0..1 \(or be -100\), found 0..2"):
        StockPretrainingLosses(make("bert pairs"))(
            **batch | {"next_sentence_label": torch.tensor([2, 0] * 4)}
        )
    batch.pop("next_sentence_label")
    with pytest.raises(ValueError, match=r"needs labels 0 \(original\) and 1 \(replaced\), got"):
        StockPretrainingLosses(make("discriminator"))(**batch)
    batch.pop("labels")
    with pytest.raises(
        ValueError, match=r"BertForMaskedLM needs `labels` for a loss, but the batch has \['att"
    ):
        bert(**batch)
