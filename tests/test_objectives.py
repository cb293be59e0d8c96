"""Objectives by name: each trains the stock models that fit it, from documents to a checkpoint that loads again."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TrainingArguments
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.modeling.modeling_electra_joint import ElectraForJointPreTraining
from heirloom.modeling.modeling_infoword import InfoWordForPreTraining
from heirloom.modeling.modeling_sentence_pair import SentencePairForPreTraining
from heirloom.modeling.modeling_spanbert import SpanBertForPreTraining
from heirloom.objectives.permutation import PermutationTargets
from heirloom.training.arguments import PretrainArguments
from heirloom.training.objective_examples import example_of, split_sentences
from heirloom.training.objectives import OBJECTIVES, find_objective, objective_table
from heirloom.training.stock_objectives import (
    encode,
    held_out,
    new_config,
    open_model,
    open_segmenter,
    pretrain_stock,
    read_documents,
)

ROOT = Path(__file__).resolve().parents[1]
NAMES = [objective.name for objective in OBJECTIVES]
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", *(f"<extra_id_{number}>" for number in range(8))]
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BERT |= {"max_position_embeddings": 40}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
BART |= {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
CONFIGS = {name: {"model_type": "bert", **BERT} for name in NAMES} | {
    "roberta": {"model_type": "roberta", **BERT, "type_vocab_size": 1},
    "ernie1": {"model_type": "ernie", **BERT},
    "albert": {"model_type": "albert", **BERT, "embedding_size": 8},
    "electra": {"model_type": "electra", **BERT, "embedding_size": 8},
    "rtd": {"model_type": "electra", **BERT, "embedding_size": 8},
    "bart": {"model_type": "bart", **BART, "max_position_embeddings": 40},
    "t5": {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    "xlnet": {"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24},
    "transformer-xl": {"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24},
    "gpt": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40},
}
PARTS = {
    "bert": {"mlm_loss", "nsp_loss"},
    "spanbert": {"mlm_loss", "sbo_loss"},
    "ernie1": {"mlm_loss", "nsp_loss"},
    "albert": {"mlm_loss", "sop_loss"},
    "electra": {"mlm_loss", "rtd_loss"},
    "rtd": {"rtd_loss"},
    "bart": {"seq2seq_loss"},
    "t5": {"seq2seq_loss"},
    "mass": {"seq2seq_loss"},
    "xlnet": {"lm_loss"},
    "unilm": {"mlm_loss", "nsp_loss"},
    "gpt": {"lm_loss"},
    "transformer-xl": {"lm_loss"},
    "infoword": {"mlm_loss", "contrastive_loss"},
    "structbert": {"mlm_loss", "pair_loss"},
}


@pytest.fixture(scope="module")
def tokenizer():
    words = [*SPECIAL, ".", *(f"w{number}" for number in range(40))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    names |= {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="module")
def files(tokenizer, tmp_path_factory):
    """A corpus in BERT's format, a tokenizer, and phrases."""
    folder, draw = tmp_path_factory.mktemp("files"), random.Random(0)
    lines = []
    for _ in range(12):
        for _ in range(draw.randint(3, 6)):
            lines.append(" ".join(f"w{draw.randrange(40)}" for _ in range(draw.randint(4, 9))) + " .")
        lines.append("")
    (folder / "corpus.txt").write_text("\n".join(lines))
    (folder / "phrases.txt").write_text("w1 w2\nw3\nw4\nw5\n")
    tokenizer.save_pretrained(folder / "words")
    return folder


def documents_of(files):
    return read_documents([str(files / "corpus.txt")])


def run(files, output, objective, model, **more):
    own = {name: more.pop(name) for name in list(more) if name in PretrainArguments.__dataclass_fields__}
    arguments = PretrainArguments(
        **{"objective": objective, "model": model, "tokenizer": str(files / "words")}
        | {"train_file": [str(files / "corpus.txt")], "max_tokens": 32}
        | own
    )
    options = {"per_device_train_batch_size": 4, "max_steps": 2, "report_to": "none", "disable_tqdm": True}
    options |= {"logging_steps": 1, "save_strategy": "no", "use_cpu": True, "dataloader_pin_memory": False}
    training = TrainingArguments(output_dir=str(output), **options | more)
    return pretrain_stock(arguments, training)


# Every objective


@pytest.mark.parametrize("name", NAMES)
def test_from_documents_to_a_checkpoint(name, files, tmp_path):
    objective = find_objective(name)
    segmenter = f"gazetteer:{files / 'phrases.txt'}" if objective.segmented else ""
    trainer = run(files, tmp_path / "run", name, json.dumps(CONFIGS[name]), segmenter=segmenter)
    scores = next(record for record in reversed(trainer.state.log_history) if "eval_loss" in record)
    parts = {key.removeprefix("eval_") for key in scores if key.endswith("_loss")} - {"loss"}
    assert parts - {"eval_loss"} == PARTS.get(name, {"mlm_loss"})
    assert all(math.isfinite(value) for key, value in scores.items() if "loss" in key)
    classes = {
        "spanbert": SpanBertForPreTraining,
        "electra": ElectraForJointPreTraining,
        "infoword": InfoWordForPreTraining,
        "structbert": SentencePairForPreTraining,
    }
    kind = classes.get(name) or getattr(transformers, objective.models.auto)
    again = kind.from_pretrained(tmp_path / "run").state_dict()
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(again[key], value, msg=key)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run")) == len(trainer.processing_class)
    if objective.part:
        stock = getattr(transformers, objective.models.auto).from_pretrained(
            tmp_path / "run" / objective.part
        )
        assert type(stock).__name__ in objective.models.classes()


@pytest.mark.parametrize("name", NAMES)
def test_rows_fit_and_batches_have_targets(name, files, tokenizer):
    objective = find_objective(name)
    segmenter = open_segmenter(f"gazetteer:{files / 'phrases.txt'}") if objective.segmented else None
    corpus = encode(objective, documents_of(files), tokenizer, segmenter)
    rows = objective.rows(corpus, tokenizer, 32, 1)
    batch = objective.make_collator(tokenizer, 1)([rows[number] for number in range(4)])
    assert batch["input_ids"].shape[1] <= 32
    assert ("word_ids" in rows[0]) == objective.words
    assert ((batch["labels"] != -100).sum(1) > 0).all()
    again = objective.make_collator(tokenizer, 1)([rows[number] for number in range(4)])
    assert all(torch.equal(batch[key], again[key]) for key in batch)


@pytest.mark.parametrize("name", [name for name in NAMES if not find_objective(name).paired])
def test_rows_of_special_tokens_alone_do_not_stop_a_training(name, tokenizer):
    """A separator that has no room behind its sentence, and text that is the name of a special token."""
    objective = find_objective(name)
    documents = [[" ".join(["w1"] * 30)], [" ".join(["w2"] * 30)], ["[SEP] [MASK]"], ["w3 w4 w5"], ["w6 w7"]]
    rows = objective.rows(encode(objective, documents, tokenizer), tokenizer, 32, 1)
    collator = objective.make_collator(tokenizer, 1)
    for number in range(len(rows)):
        assert (collator([rows[number]])["labels"] != -100).any()


def test_an_entity_is_hidden_whole_and_plain_words_alone(tokenizer, tmp_path):
    (tmp_path / "phrases.txt").write_text("w1 w2 w3\n")
    objective = find_objective("ernie1")
    segmenter = open_segmenter(f"gazetteer:{tmp_path / 'phrases.txt'}")
    documents = [["w9 w8 w1 w2 w3 w7"]] * 40
    corpus = encode(objective, documents, tokenizer, segmenter)
    rows = objective.rows(corpus, tokenizer, 32, 0)
    batch = objective.make_collator(tokenizer, 0)([rows[number] for number in range(len(rows))])
    phrase = batch["labels"][:, 3:6] != -100
    assert (phrase.all(1) == phrase.any(1)).all()
    assert 0 < phrase.all(1).sum() < len(phrase)
    assert ((batch["labels"][:, 1] != -100) != (batch["labels"][:, 2] != -100)).any()


def test_sentences_of_bart_change_places_whole(files, tokenizer):
    objective = find_objective("bart")
    rows = objective.rows(encode(objective, documents_of(files), tokenizer), tokenizer, 32, 0)
    assert "sentence_ids" in rows[0]
    ids, number = rows[0]["input_ids"], rows[0]["sentence_ids"]
    ends = tokenizer.convert_tokens_to_ids(".")
    assert len(set(number[1:-1])) == (ids == ends).sum() > 1


# Models


def test_going_on_from_checkpoints(files, tokenizer, tmp_path):
    bert = open_model(find_objective("bert"), json.dumps(CONFIGS["bert"]), tokenizer)
    bert.save_pretrained(tmp_path / "bert")
    words = bert.get_input_embeddings().weight
    for name in ("wwm", "spanbert", "mass", "unilm"):
        found = open_model(find_objective(name), str(tmp_path / "bert"), tokenizer)
        assert torch.equal(found.get_input_embeddings().weight, words), name
    electra = open_model(find_objective("rtd"), json.dumps(CONFIGS["rtd"]), tokenizer)
    electra.save_pretrained(tmp_path / "electra")
    joint = open_model(find_objective("electra"), str(tmp_path / "electra"), tokenizer)
    for key, value in electra.state_dict().items():
        assert torch.equal(joint.discriminator.state_dict()[key], value), key
    joint.save_pretrained(tmp_path / "joint")
    again = open_model(find_objective("electra"), str(tmp_path / "joint"), tokenizer)
    for key, value in joint.generator.state_dict().items():
        assert torch.equal(again.generator.state_dict()[key], value), key
    with pytest.raises(
        ValueError, match=r"objective bart needs one of bart \(BartFor.*is bert\. Objectives for"
    ):
        run(files, tmp_path / "no", "bart", str(tmp_path / "bert"))


def test_a_model_that_does_not_fit_says_which_do(tokenizer):
    with pytest.raises(
        ValueError, match=r"objective wwm needs one of bert, roberta.*, but the config is gpt2.*are gpt\."
    ):
        open_model(find_objective("wwm"), json.dumps(CONFIGS["gpt"]), tokenizer)
    with pytest.raises(
        ValueError, match="objective bert needs one of bert, megatron.*but the config is roberta"
    ):
        open_model(find_objective("bert"), json.dumps(CONFIGS["roberta"]), tokenizer)
    with pytest.raises(ValueError, match="objective wwm needs a model: name a checkpoint in --model"):
        open_model(find_objective("wwm"), "", tokenizer)
    with pytest.raises(ValueError, match="expected a config as JSON with a model_type"):
        new_config('{"hidden_size": 3}', tokenizer)


def test_xlnet_with_memories(files, tokenizer, tmp_path):
    xlnet = json.dumps(CONFIGS["xlnet"])
    trainer = run(files, tmp_path / "run", "xlnet", xlnet, mem_len=24, reuse_len=10)
    rows, body = trainer.train_dataset, trainer.model.transformer
    assert (rows.lanes, rows.length, rows.reuse_length) == (4, 32, 10)
    assert (body.mem_len, body.reuse_len, body.attn_type) == (24, 10, "bi")
    assert trainer.data_collator.targets == PermutationTargets(reuse_length=10)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["mem_len"], saved["reuse_len"], saved["use_mems_train"]) == (24, 10, True)
    plain = open_model(find_objective("xlnet"), xlnet, tokenizer)
    assert (plain.transformer.reuse_len, plain.config.use_mems_train) == (None, False)
    plain.save_pretrained(tmp_path / "plain")
    remembering = find_objective("xlnet").remembering(24, None, 32)
    found = open_model(remembering, str(tmp_path / "plain"), tokenizer)
    assert (found.transformer.mem_len, found.transformer.reuse_len, found.config.use_mems_train) == (
        24,
        16,
        True,
    )
    for key, value in plain.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    longer = find_objective("transformer-xl").remembering(9, None, 32)
    assert open_model(longer, json.dumps(CONFIGS["transformer-xl"]), tokenizer).transformer.mem_len == 9
    assert find_objective("gpt").remembering(None, None, 32) is find_objective("gpt")


# Errors


def test_memories_that_do_not_fit(files, tmp_path):
    xlnet, bert = json.dumps(CONFIGS["xlnet"]), json.dumps(CONFIGS["bert"])
    with pytest.raises(
        ValueError, match="--mem_len, --reuse_len: for xlnet and transformer-xl only, not wwm"
    ):
        run(files, tmp_path / "a", "wwm", bert, mem_len=24)
    for mem_len in (None, 0):
        with pytest.raises(
            ValueError, match=f"mem_len is {mem_len}; expected the number of tokens to remember, 384"
        ):
            run(files, tmp_path / "a", "xlnet", xlnet, mem_len=mem_len, reuse_len=10)
    with pytest.raises(ValueError, match="reuse_len is 28; expected 1 to 27, since rows of 32 tokens"):
        run(files, tmp_path / "a", "xlnet", xlnet, mem_len=24, reuse_len=28)
    with pytest.raises(ValueError, match="--reuse_len: for xlnet only; transformer-xl remembers whole rows"):
        run(files, tmp_path / "a", "transformer-xl", xlnet, mem_len=24, reuse_len=10)
    one_side = json.dumps(CONFIGS["xlnet"] | {"attn_type": "uni"})
    with pytest.raises(ValueError, match="sees both sides.*attn_type='uni' instead of 'bi'"):
        run(files, tmp_path / "a", "xlnet", one_side, mem_len=24)
    with pytest.raises(ValueError, match="--mem_len, --reuse_len: for stock models only"):
        PretrainArguments(mem_len=0, reuse_len=10)


def test_the_nearest_name_is_suggested():
    with pytest.raises(ValueError, match=r"no objective 'spanbrt'\. Did you mean spanbert\?"):
        find_objective("spanbrt")
    with pytest.raises(ValueError, match=r"no objective 'zzzz'\. Objectives are mlm, bert"):
        find_objective("zzzz")


def test_what_is_missing_is_said(files, tokenizer, tmp_path):
    bert = json.dumps(CONFIGS["bert"])
    with pytest.raises(
        ValueError, match="hides phrases and entities, so it must know them: give --segmenter"
    ):
        run(files, tmp_path / "a", "ernie1", json.dumps(CONFIGS["ernie1"]))
    with pytest.raises(ValueError, match="segmenter must be jieba or gazetteer:FILE, or some .* got 'spacy'"):
        run(files, tmp_path / "a", "wwm", bert, segmenter="spacy")
    with pytest.raises(FileNotFoundError, match="does not exist. Give a file with a phrase"):
        open_segmenter("gazetteer:nowhere.txt")
    with pytest.raises(FileNotFoundError, match="nowhere.txt does not exist"):
        open_segmenter(f"gazetteer:{files / 'phrases.txt'}+gazetteer:nowhere.txt")
    with pytest.raises(ValueError, match="got 'nothing'"):
        open_segmenter(f"gazetteer:{files / 'phrases.txt'}+")
    with pytest.raises(ValueError, match="train_file is empty"):
        run(files, tmp_path / "a", "wwm", bert, train_file=[])
    with pytest.raises(
        ValueError, match="--cell_size, --streaming: for ELMo|--streaming, --cell_size: for ELMo"
    ):
        run(files, tmp_path / "a", "wwm", bert, cell_size=3, streaming=True)
    with pytest.raises(ValueError, match="new weights need a tokenizer: name a folder"):
        run(files, tmp_path / "a", "wwm", bert, tokenizer="")
    with pytest.raises(ValueError, match="max_tokens is 64, but the model has 40 positions"):
        run(files, tmp_path / "a", "wwm", bert, max_tokens=64)
    with pytest.raises(ValueError, match="max_tokens is 0; expected 1 or more"):
        run(files, tmp_path / "a", "wwm", bert, max_tokens=0)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, cls_token="[CLS]", sep_token="[SEP]"
    )
    with pytest.raises(ValueError, match="mask token"):
        find_objective("mlm").make_collator(bare)
    (tmp_path / "one.txt").write_text("w1 w2 w3\n")
    with pytest.raises(ValueError, match="none can be held out. Name a --validation_file"):
        run(files, tmp_path / "a", "wwm", bert, train_file=[str(tmp_path / "one.txt")])
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no text; expected a sentence a line"):
        run(files, tmp_path / "a", "wwm", bert, train_file=[str(tmp_path / "blank.txt")])
    (tmp_path / "two.txt").write_text("w1 .\nw2 .\nw3 .\n")
    with pytest.raises(ValueError, match="nsp takes random sentences from other documents"):
        run(files, tmp_path / "a", "bert", bert, train_file=[str(tmp_path / "two.txt")])


# Text


def test_documents_of_files_and_tables(tmp_path):
    (tmp_path / "a.txt").write_text("one .\n two .\n\n\n   \nthree .\n")
    wanted = [["one .", "two ."], ["three ."]]
    assert read_documents([str(tmp_path / "a.txt")]) == wanted
    rows = [{"body": "one .\ntwo ."}, {"body": "three ."}, {"body": " "}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_documents([str(tmp_path / "a.jsonl")], "body") == wanted
    rows = [{"body": ["one .", "two ."]}, {"body": ["three ."]}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_documents([str(tmp_path / "b.jsonl")], "body") == wanted


def test_held_out_documents_are_not_trained_on():
    documents = [[f"d{number}"] for number in range(150)]
    train, rest = held_out(documents, 1)
    assert (len(train), len(rest)) == (147, 3)
    assert sorted(train + rest) == sorted(documents)
    assert held_out(documents, 1)[1] == rest != held_out(documents, 2)[1]
    assert held_out([["a", "b", "c"]], 1) == ([["a", "b"]], [["c"]])


# What is shown


def test_an_example_says_what_became_of_each_token(files, tokenizer):
    rows = encode(find_objective("mlm"), documents_of(files), tokenizer)
    for name in ("mlm", "rtd", "bart", "t5", "xlnet", "gpt"):
        objective = find_objective(name)
        corpus = encode(objective, documents_of(files), tokenizer) if objective.words else rows
        data = objective.rows(corpus, tokenizer, 32, 0)
        example = example_of(objective, data, tokenizer, seed=3)
        kinds = {piece.kind for piece in example.reads}
        assert bool(kinds & {"masked", "replaced", "kept"}) == (name != "gpt")
        assert bool(example.writes) == (name in ("bart", "t5"))
        if name in ("mlm", "xlnet"):
            told = [piece.target or piece.text for piece in example.reads]
            assert told == tokenizer.convert_ids_to_tokens(data[0]["input_ids"].tolist())
    assert split_sentences("One. Two! 三。四") == ["One.", "Two!", "三。", "四"]


def test_verbs(files, tmp_path):
    runner = CliRunner(env={"COLUMNS": "200"})
    listed = runner.invoke(app, ["objectives"])
    assert listed.exit_code == 0
    assert all(f"\n{name} " in "\n" + listed.output for name in NAMES)
    assert "SpanMasking(geometric=0.2, max_length=10" in listed.output
    words = str(files / "words")
    shown = runner.invoke(
        app, ["objectives", "show", "bert", "--model", words, "--text", "w1 w2 w3. w4 w5 w6."]
    )
    assert shown.exit_code == 0, shown.output
    assert "[MASK](w" in shown.output or "next_sentence_label" in shown.output
    for verb in ("objectives", "objectives show"):
        screen = runner.invoke(app, [*verb.split(), "--help"]).output
        assert len(screen.splitlines()) <= 40
        assert f"Example: heirloom {verb}" in screen
    command = ["pretrain", "bert-small", "--objective", "wwm", "--model", json.dumps(CONFIGS["wwm"])]
    command += ["--tokenizer", words, "--train_file", str(files / "corpus.txt"), "--max_tokens", "32"]
    command += [
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "2",
        "--use_cpu",
        "--disable_tqdm",
        "true",
    ]
    command += ["--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "hidden tokens, nats a token" in done.output
    card = (tmp_path / "run" / "README.md").read_text()
    assert "objective `wwm`" in card
    assert "AutoModelForMaskedLM" in card


# The document


def test_the_table_of_the_document_is_the_code():
    text = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert objective_table() in text, "write objective_table() into docs/objectives.md"
