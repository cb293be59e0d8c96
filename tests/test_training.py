"""Training: exact means under accumulation and over processes, named parts, recipes, data, the verbs' folders."""

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments
from two_processes import run_in_two_processes

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoForTokenClassification
from heirloom.objectives.collators import ClassificationCollator, LanguageModelingCollator
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.arguments import FinetuneArguments, PretrainArguments
from heirloom.training.data import column, most_frequent, read_table, sentences
from heirloom.training.metrics import classification_scores, macro_f1
from heirloom.training.recipes import parse, read_recipe, recipe_names
from heirloom.training.seq2seq_arguments import Seq2SeqArguments
from heirloom.training.trainer import JsonLinesLog, PretrainingTrainer, read_log

TEXT = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    ".",
    "a",
    "dog",
    "ran",
    ".",
    "cats",
    "and",
    "dogs",
    "see",
    "the",
    "mat",
    "and",
    "sit",
    "on",
    "it",
    ".",
    "one",
    ".",
    "two",
    "birds",
    "sing",
    "here",
]
SIZES = {"char_filters": [[1, 4], [2, 4]], "char_embedding_size": 4, "projection_size": 8, "cell_size": 12}


def rows(count: int = 16) -> Dataset:
    """Sentences of very different lengths, so that means of batch means would be wrong."""
    words = [[TEXT[(3 * row + step) % len(TEXT)] for step in range(1 + row * 5 % 13)] for row in range(count)]
    return Dataset.from_dict({"words": words, "length": [len(row) for row in words]})


def make_trainer(folder, batch: int, accumulate: int, **options) -> PretrainingTrainer:
    tokenizer = ElmoTokenizer.from_words(sorted(set(TEXT)), max_characters_per_token=10)
    torch.manual_seed(0)
    sizes = {**SIZES, "max_characters_per_token": 10, "num_highway_layers": 1, "dropout": 0.0}
    model = ElmoForPreTraining(ElmoConfig(vocab_size=len(tokenizer), **sizes)).double()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=accumulate,
        max_steps=2,
        learning_rate=0.1,
        optim="sgd",
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = PretrainingTrainer(
        model=model,
        args=arguments,
        train_dataset=rows(),
        eval_dataset=rows(7),
        data_collator=LanguageModelingCollator(tokenizer),
    )
    trainer.add_callback(JsonLinesLog())
    return trainer


def test_accumulation_changes_nothing(tmp_path):
    runs = {}
    for batch, accumulate in ((8, 1), (4, 2), (2, 4)):
        trainer = make_trainer(tmp_path / f"{batch}", batch, accumulate)
        trainer.train()
        logs = [record for record in trainer.state.log_history if "loss" in record]
        runs[batch] = ([p.detach().clone() for p in trainer.model.parameters()], logs)
    for batch in (4, 2):
        for ours, whole in zip(runs[batch][0], runs[8][0], strict=True):
            torch.testing.assert_close(ours, whole, rtol=0, atol=1e-9)
        for ours, whole in zip(runs[batch][1], runs[8][1], strict=True):
            for part in ("loss", "forward_loss", "backward_loss"):
                assert ours[part] == pytest.approx(whole[part], abs=1e-5)


@pytest.mark.parametrize("window", [1, 2])
def test_the_log_has_every_part_and_they_add_up(tmp_path, window):
    trainer = make_trainer(tmp_path, 4, 2)
    trainer.args.logging_steps = window
    trainer.train()
    records = [record for record in read_log(tmp_path) if "loss" in record]
    assert len(records) == 2 // window
    for record in records:
        assert record["loss"] == pytest.approx(
            (record["forward_loss"] + record["backward_loss"]) / 2, abs=1e-5
        )
    with pytest.raises(FileNotFoundError, match=r"holds no log.jsonl"):
        read_log(tmp_path / "nowhere")


def test_perplexity_is_a_mean_over_targets(tmp_path):
    trainer = make_trainer(tmp_path, 4, 1)
    metrics = trainer.evaluate()
    total = targets = means = 0.0
    for row in rows(7):
        batch = trainer.data_collator([row])
        with torch.no_grad():
            loss = trainer.model.eval()(**batch).loss.item()
        total += loss * (len(row["words"]) + 1)
        targets += len(row["words"]) + 1
        means += loss / 7
    assert metrics["eval_loss"] == pytest.approx(total / targets, abs=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(total / targets), rel=1e-5)
    assert abs(means - total / targets) > 1e-4  # a mean of sentence means would be another number


def test_two_processes_change_nothing(tmp_path):
    code = """
trainer = suite.make_trainer(folder, 4, 1, ddp_backend="gloo")
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    logs = [record for record in trainer.state.log_history if "loss" in record]
    weights = list(trainer.model.state_dict().values())
    torch.save({"weights": weights, "logs": logs, "eval": metrics}, folder / "result")
"""
    run_in_two_processes(__file__, tmp_path, code)
    two = torch.load(tmp_path / "result", weights_only=True)
    one = make_trainer(tmp_path / "one", 8, 1)
    one.train()
    for ours, whole in zip(two["weights"], one.model.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-9)
    logs = [record for record in one.state.log_history if "loss" in record]
    for ours, whole in zip(two["logs"], logs, strict=True):
        for part in ("loss", "forward_loss", "backward_loss"):
            assert ours[part] == pytest.approx(whole[part], abs=1e-5)
    assert two["eval"]["eval_forward_loss"] == pytest.approx(one.evaluate()["eval_forward_loss"], abs=1e-5)


@pytest.mark.parametrize("freeze", [False, True])
def test_the_stock_trainer_is_exact_with_heads(tmp_path, freeze):
    tokenizer = ElmoTokenizer(max_characters_per_token=10)
    data = rows().map(lambda row: {"labels": [len(word) % 3 for word in row["words"]]})
    weights = []
    for batch, accumulate in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        sizes = {**SIZES, "max_characters_per_token": 10, "dropout": 0.0, "head_dropout": 0.0, "mix_l2": 0.1}
        model = ElmoForTokenClassification(ElmoConfig(**sizes, num_labels=3, freeze_bilm=freeze)).double()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        arguments = make_trainer(tmp_path, batch, accumulate).args
        Trainer(model, arguments, ClassificationCollator(tokenizer), data).train()
        weights.append([p.detach() for p in model.parameters()])
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        heads = {"mix.scalar_parameters", "mix.gamma", "classifier.weight", "classifier.bias"}
        assert moved == (
            heads if freeze else set(before) - {"elmo.token_encoder.char_embeddings.weight"} | moved
        )
        assert freeze or "elmo.lstm.backward_layers.1.weight_hh" in moved
    for ours, whole in zip(*weights, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-9)


def test_collators_pad_labels_and_name_bad_rows():
    tokenizer = ElmoTokenizer.from_words(["a", "b"])
    batch = LanguageModelingCollator(tokenizer)([{"words": ["a", "x"]}, {"words": ["b"]}])
    assert batch["labels"].tolist() == [[4, 3], [5, -100]]
    assert batch["char_ids"].shape == (2, 2, 50)
    collate = ClassificationCollator(tokenizer)
    assert collate([{"words": ["a", "b"], "labels": [1, 0]}, {"words": ["b"], "labels": [2]}])[
        "labels"
    ].tolist() == [
        [1, 0],
        [2, -100],
    ]
    assert collate([{"words": ["a"], "labels": 3}])["labels"].tolist() == [3]
    with pytest.raises(ValueError, match="found 2 words but 1 labels"):
        collate([{"words": ["a", "b"], "labels": [1]}])


def test_sentences_are_cut_and_blank_rows_left_out():
    table = Dataset.from_dict({"text": ["a b c d e", "", "f"]})
    assert sentences(table, ElmoTokenizer(), tokenized=True, max_words=2)["words"] == [
        ["a", "b"],
        ["c", "d"],
        ["e"],
        ["f"],
    ]
    raw = sentences(Dataset.from_dict({"story": ["Hi, you."]}), ElmoTokenizer(), text_column="story")
    assert raw["words"] == [["Hi", ",", "you", "."]]
    with pytest.raises(ValueError, match=r"no column 'x' with text: the data has \['text'\]"):
        column(table, "x", ("text",), "text")


def test_vocabularies_are_reproducible():
    assert most_frequent(["b", "a", "b", "c", "a", "d"], 3) == ["a", "b", "c"]
    assert most_frequent(["b", "a", "b", "c", "a", "d"], 9, min_count=2) == ["a", "b"]


def test_tables_are_read_from_every_format(tmp_path):
    table = Dataset.from_dict({"text": ['say "hi"', "b"], "label": [1, 0]})
    table.to_json(tmp_path / "t.jsonl")
    table.to_csv(tmp_path / "t.csv")
    table.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.tsv").write_text('text\tlabel\nsay "hi"\t1\nb\t0\n')
    for suffix in ("jsonl", "csv", "parquet", "tsv"):
        assert read_table(str(tmp_path / f"t.{suffix}"))["text"] == ['say "hi"', "b"]
    with pytest.raises(FileNotFoundError, match="neither a file nor a data set's name"):
        read_table(str(tmp_path / "t.doc"))
    with pytest.raises(FileNotFoundError, match=r"u.csv does not exist"):
        read_table(str(tmp_path / "u.csv"))
    with pytest.raises(ValueError, match="must share one of the endings"):
        read_table([str(tmp_path / "t.csv"), str(tmp_path / "t.tsv")])
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(ValueError, match=r"cannot read .*broken.jsonl"):
        read_table(str(tmp_path / "broken.jsonl"))


def test_every_recipe_parses_and_overrides_win(tmp_path):
    for name in recipe_names():
        keys = read_recipe(name)
        kind = FinetuneArguments if "task" in keys else PretrainArguments
        kind = Seq2SeqArguments if "forgetting" in keys else kind
        parse(name, [], kind)
    arguments, training = parse(
        "tagging", ["--model", "m", "--learning-rate=0.5", "--freeze_bilm"], FinetuneArguments
    )
    assert (arguments.model, training.learning_rate, arguments.freeze_bilm) == ("m", 0.5, True)
    with pytest.raises(ValueError, match="no option `learning_rat`. Did you mean `learning_rate`"):
        parse("tagging", ["--learning_rat", "1"], FinetuneArguments)
    with pytest.raises(ValueError, match="invalid float value: 'fast'"):
        parse("tagging", ["--learning_rate", "fast"], FinetuneArguments)
    with pytest.raises(FileNotFoundError, match="neither a YAML file nor a recipe. Did you mean tagging"):
        parse("taging", [], FinetuneArguments)
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="must hold `option: value` lines, found list"):
        parse(str(tmp_path / "list.yaml"), [], FinetuneArguments)


def test_scores():
    assert macro_f1(torch.tensor([0, 0, 1]).numpy(), torch.tensor([0, 1, 1]).numpy()) == pytest.approx(2 / 3)
    from transformers import EvalPrediction

    predicted = torch.tensor([[1, 2, 0], [0, 0, 0]]).numpy()
    labels = torch.tensor([[1, 2, 0], [1, 0, -100]]).numpy()
    scores = classification_scores(["O", "B-X", "I-X"])(
        EvalPrediction(predictions=predicted, label_ids=labels)
    )
    assert scores["accuracy"] == pytest.approx(0.8)
    assert scores["entity_precision"] == 1.0
    assert scores["entity_recall"] == 0.5
    nothing = classification_scores(["a"])(EvalPrediction(predictions=predicted, label_ids=0 * labels - 100))
    assert nothing == {"accuracy": 0.0, "macro_f1": 0.0}


def test_pretrain_then_finetune_leave_whole_run_folders(tmp_path):
    from heirloom.sharing.runs import run_finetuning, run_pretraining

    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(row) for row in rows(40)["words"]))
    options = [
        "--projection_size",
        "8",
        "--cell_size",
        "12",
        "--char_filters",
        "[[1, 4], [2, 4]]",
        "--max_steps",
        "2",
    ]
    options += ["--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu", "--min_count", "1"]
    bilm = tmp_path / "bilm"
    scores = run_pretraining(
        *parse(
            "elmo_english",
            [*options, "--train_file", str(text), "--output_dir", str(bilm)],
            PretrainArguments,
        )
    )
    assert scores["eval_perplexity"] > 1
    names = {path.name for path in bilm.iterdir()}
    assert names >= {"config.json", "model.safetensors", "vocab.txt", "README.md", "curves.png", "log.jsonl"}
    assert AutoModel.from_pretrained(bilm).config.projection_size == 8
    assert str(tmp_path) not in (bilm / "README.md").read_text()
    with pytest.raises(FileExistsError, match="is not empty. Choose another --output_dir"):
        run_pretraining(
            *parse(
                "elmo_english",
                [*options, "--train_file", str(text), "--output_dir", str(bilm)],
                PretrainArguments,
            )
        )

    short = [*options, "--train_file", str(text), "--save_strategy", "steps", "--save_steps", "1"]
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    run_pretraining(*parse("elmo_english", [*short, "--output_dir", str(whole)], PretrainArguments))
    resumed = [*short, "--output_dir", str(parts), "--resume_from_checkpoint", str(whole / "checkpoint-1")]
    run_pretraining(*parse("elmo_english", resumed, PretrainArguments))
    assert [record["step"] for record in read_log(parts) if "loss" in record] == [2]
    weights = [AutoModel.from_pretrained(folder).state_dict() for folder in (whole, parts)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)

    data = tmp_path / "data.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({"text": f"the cat {word}", "label": word[0]}) for word in ["sat", "ran", "sits"] * 4
        )
    )
    files = [
        "--train_file",
        str(data),
        "--validation_file",
        str(data),
        "--model",
        str(bilm),
        "--task",
        "sequence-classification",
    ]
    files += ["--max_steps", "2", "--disable_tqdm", "true", "--use_cpu"]
    tagger = tmp_path / "classifier"
    scores = run_finetuning(*parse("tagging", [*files, "--output_dir", str(tagger)], FinetuneArguments))
    assert 0 <= scores["eval_accuracy"] <= 1
    model = AutoModelForSequenceClassification.from_pretrained(tagger)
    assert model.config.id2label == {0: "r", 1: "s"}
    assert (tagger / "layer_weights.png").is_file()
    pretrained = AutoModel.from_pretrained(bilm).lstm.backward_layers[1].weight_hh
    for scratch in ("true", "false"):  # with learning rate 0 the weights after training are those before it
        folder = tmp_path / f"scratch_{scratch}"
        still = [*files, "--learning_rate", "0", "--from_scratch", scratch, "--output_dir", str(folder)]
        run_finetuning(*parse("tagging", still, FinetuneArguments))
        weights = (
            AutoModelForSequenceClassification.from_pretrained(folder).elmo.lstm.backward_layers[1].weight_hh
        )
        assert torch.equal(weights, pretrained) == (scratch == "false")
    with pytest.raises(
        ValueError, match=r"column 'text' holds 'the cat sat', which does not fit token-classification"
    ):
        run_finetuning(
            *parse(
                "tagging",
                [
                    *files,
                    "--task",
                    "token-classification",
                    "--label_column",
                    "text",
                    "--output_dir",
                    str(tmp_path / "x"),
                ],
                FinetuneArguments,
            )
        )
    with pytest.raises(ValueError, match="fine-tuning needs --model, --train_file and --validation_file"):
        run_finetuning(*parse("tagging", ["--output_dir", str(tmp_path / "x")], FinetuneArguments))
