"""A summariser from one language model on both sides, from the verbs; and sides that begin at random."""

import json
from pathlib import Path

import pytest
import torch
from test_seq2seq_from_language_models import make_lm, make_tokenizer
from transformers import AutoModelForSeq2SeqLM
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.training.parallel_text import Limits, PairEncoder, encode_pairs, open_tokenizers, read_pairs
from heirloom.training.recipes import parse
from heirloom.training.seq2seq_arguments import Seq2SeqArguments
from heirloom.training.tokenizers import train_tokenizer
from heirloom.training.trainer import read_log

SENTENCE = "the council of our town said on monday that it will build a new bridge over the river next year"
WORDS = SENTENCE.split()
DOCUMENTS = [" ".join((WORDS[start:] + WORDS) * 40) for start in range(12)]  # about 800 words each
SUMMARIES = [" ".join(WORDS[start : start + 6]) for start in range(12)]


def heirloom(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = train_tokenizer([SENTENCE] * 2, "word", 60)[0]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "cell_size": 8, "tie_word_embeddings": True}
    LstmLMForCausalLM(LstmLMConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def test_one_language_model_on_both_sides_from_end_to_end(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = heirloom("convert", "seq2seq", "--source", lm, "--target", lm, "start")
    assert "one joint vocabulary" in told
    assert "the tokenizers are equal: one was written" in told
    model = AutoModelForSeq2SeqLM.from_pretrained("start")
    assert model.config.encoder_vocab_size is None
    one, other = model.encoder.embed_tokens.weight, model.decoder.embed_tokens.weight
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()  # copies, not tied
    layers = (dict(side.layers[0].named_parameters()) for side in (model.encoder, model.decoder))
    for here, there in zip(*(layer.values() for layer in layers), strict=True):
        assert torch.equal(here, there)
        assert here.data_ptr() != there.data_ptr()

    rows = zip(DOCUMENTS, SUMMARIES, strict=True)
    Path("news.jsonl").write_text("\n".join(json.dumps({"article": a, "highlights": b}) for a, b in rows))
    Path("text.txt").write_text("\n".join(SUMMARIES) + "\n")
    words = ["train-seq2seq", "summarise-small", "--model", "start", "--output_dir", "run"]
    words += ["--train_file", "news.jsonl", "--validation_file", "news.jsonl", "--use_cpu", "true"]
    words += ["--source_monolingual", "text.txt", "--target_monolingual", "text.txt"]
    words += ["--max_steps", "3", "--logging_steps", "1", "--eval_steps", "3", "--save_steps", "3"]
    words += ["--per_device_train_batch_size", "4", "--predict_with_generate", "--generation_max_length", "7"]
    heirloom(*words)
    last = read_log(Path("run"))[-1]
    assert {"eval_rouge1", "eval_rouge2", "eval_rougeL", "eval_source_lm_ppl"} <= last.keys()
    assert "eval_bleu" not in last
    trained = AutoModelForSeq2SeqLM.from_pretrained("run")
    assert not torch.equal(trained.encoder.embed_tokens.weight, trained.decoder.embed_tokens.weight)

    Path("documents.txt").write_text("\n".join(DOCUMENTS) + "\n")
    limits = ["--max-source-tokens", "600", "--max-new-tokens", "6"]
    heirloom("translate", "run", "documents.txt", "--output", "summaries.txt", *limits)
    assert len(Path("summaries.txt").read_text().splitlines()) == 12
    told = heirloom("evaluate", "run", "news.jsonl", "--metric", "rouge", *limits)
    assert f"ROUGE-L  {last['eval_rougeL']:>9.3f}" in told  # what the training logged, both of cut documents


def test_documents_are_cut_and_summaries_are_not(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, _ = parse("summarise-small", [], Seq2SeqArguments)
    assert (arguments.max_source_tokens, arguments.too_long) == (600, "truncate_source")
    for name, lines in (("documents", DOCUMENTS), ("summaries", SUMMARIES), ("long", DOCUMENTS)):
        Path(name).write_text("\n".join(lines) + "\n")
    encode = PairEncoder(open_tokenizers(str(lm)), 1)
    limits = Limits(600, 7, "truncate_source")
    pairs = read_pairs(["documents"], ["summaries"])
    rows = encode_pairs(pairs, encode, limits)
    assert rows["input_ids"] == [row[:600] for row in encode.sources(DOCUMENTS)]
    assert {len(row) for row in rows["input_ids"]} == {600}
    assert rows["labels"] == encode.targets(SUMMARIES)
    assert rows["target"] == SUMMARIES
    with pytest.raises(
        ValueError, match=r"train target, line 1: \d+ tokens, more than max_target_tokens = 7"
    ):
        encode_pairs(read_pairs(["documents"], ["long"]), encode, limits)


def test_recipes_say_what_their_papers_say():
    arguments, training = parse("seq2seq-paper", [], Seq2SeqArguments)
    assert (training.learning_rate, training.max_grad_norm, arguments.dropout) == (5e-5, 5.0, 0.2)
    decay = arguments.lr_decay_after, arguments.lr_decay_every, arguments.lr_decay_factor
    assert decay == (400_000, 50_000, 0.8)
    assert (arguments.forgetting, arguments.source_lm_weight, arguments.target_lm_weight) == ("lm_loss", 1, 1)
    arguments, training = parse(
        "seq2seq-multi30k-gpu", ["--bf16", "true", "--use_cpu", "true"], Seq2SeqArguments
    )
    assert training.bf16
    assert training.per_device_train_batch_size == 128
    assert 0.3 <= arguments.dropout <= 0.5
    assert arguments.early_stopping_patience
    assert training.load_best_model_at_end


# Sides that begin at random


@pytest.fixture
def de(tmp_path):
    make_lm().save_pretrained(tmp_path / "de")
    make_tokenizer("b").save_pretrained(tmp_path / "de")
    return tmp_path / "de"


def test_a_random_encoder_with_a_vocabulary_of_its_own(de, tmp_path):
    make_tokenizer("a", 17).save_pretrained(tmp_path / "en")
    out = tmp_path / "out"
    told = heirloom("convert", "seq2seq", "--target", de, "--source-tokenizer", tmp_path / "en", out)
    assert "source LM" not in told
    assert "17 source and 13 target tokens of their own, compared by content" in told
    pair = open_tokenizers(str(out))
    assert [len(pair.source), len(pair.target)] == [17, 13]
    config = AutoModelForSeq2SeqLM.from_pretrained(out).config
    assert (config.encoder_vocab_size, config.vocab_size, config.encoder_pad_token_id) == (17, 13, 0)
    assert config.decoder_start_token_id == 1


def test_a_random_decoder_has_the_marks_of_its_tokenizer(de, tmp_path):
    marks = {"pad_token": "c7", "eos_token": "c5", "bos_token": "c6"}
    make_tokenizer("c", 19, **marks).save_pretrained(tmp_path / "other")
    out = tmp_path / "out"
    told = heirloom("convert", "seq2seq", "--source", de, "--target-tokenizer", tmp_path / "other", out)
    assert "target LM" not in told
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    ids = {"pad_token_id": 10, "eos_token_id": 8, "bos_token_id": 9, "decoder_start_token_id": 9}
    for name, token in ids.items():
        assert getattr(model.config, name) == getattr(model.generation_config, name) == token
    assert (model.config.encoder_vocab_size, model.config.vocab_size) == (13, 19)
    assert model.config.encoder_pad_token_id == 0
    assert model.lm_head.weight.shape[0] == 19
    pair = open_tokenizers(str(out))
    assert [len(pair.source), len(pair.target)] == [13, 19]


@pytest.mark.parametrize("side", ["source", "target"])
def test_without_one_the_vocabulary_is_the_others(side, de, tmp_path):
    out = tmp_path / "out"
    told = heirloom("convert", "seq2seq", f"--{side}", de, out)
    assert "one joint vocabulary of 13 tokens, compared by content" in told
    other = {"source": "target", "target": "source"}[side]
    assert f"the {other} has neither language model nor --{other}-tokenizer: it reads the {side}'s" in told
    pair = open_tokenizers(str(out))
    assert pair.source is pair.target
    assert pair.source.get_vocab() == make_tokenizer("b").get_vocab()
    config = AutoModelForSeq2SeqLM.from_pretrained(out).config
    assert (config.encoder_vocab_size, config.encoder_pad_token_id, config.eos_token_id) == (None, None, 1)


def test_equal_tokenizers_stay_one(de, tmp_path):
    make_tokenizer("b").save_pretrained(tmp_path / "same")
    told = heirloom(
        "convert", "seq2seq", "--target", de, "--source-tokenizer", tmp_path / "same", tmp_path / "out"
    )
    assert "one joint vocabulary of 13 tokens" in told
    assert "the tokenizers are equal: one was written" in told


def test_tokenizers_that_do_not_fit_are_named(de, tmp_path):
    make_tokenizer("a", 17).save_pretrained(tmp_path / "en")
    bad = {
        "source_tokenizer has 17 ids, but source_lm": ["--source", de, "--source-tokenizer", tmp_path / "en"],
        "no holds no tokenizer of the source. Give the folder of one": [
            *("--target", de, "--source-tokenizer", tmp_path / "no")
        ],
    }
    for words, options in bad.items():
        result = CliRunner().invoke(app, ["convert", "seq2seq", *map(str, options), str(tmp_path / "out")])
        assert result.exit_code == 1
        assert words in result.stderr
        assert not (tmp_path / "out").exists()
