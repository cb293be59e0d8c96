"""Two tokenizers of a checkpoint, wherever it lies, and how many tokens a model can read."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from seq2seq_training import LINES, ours
from transformers import (
    BartConfig,
    BertConfig,
    EncoderDecoderConfig,
    GPT2Config,
    LEDConfig,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaModel,
    T5Config,
    pipeline,
)

from heirloom.cli.main import app
from heirloom.sharing.evaluation import evaluate
from heirloom.sharing.seq2seq_checkpoints import load
from heirloom.training import parallel_text
from heirloom.training.parallel_text import (
    Limits,
    has_own_tokenizer,
    open_tokenizers,
    positions_of,
)
from heirloom.training.tokenizers import train_tokenizer

NAME = "someone/en-de"


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "source_tokenizer": train_tokenizer(LINES[:12] * 2, "word", 60)[0],
        "target_tokenizer": train_tokenizer(LINES[5:] * 2, "word", 60)[0],
    }


@pytest.fixture
def on_the_hub(tokenizers, tmp_path):
    """A checkpoint with two tokenizers as downloads of the Hub lie in the cache; no folder has its name."""
    source, target = tokenizers.values()
    place = Path(constants.HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}"
    snapshot = place / "snapshots" / ("1" * 40)
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("1" * 40)
    ours(vocab_size=len(target), encoder_vocab_size=len(source), encoder_pad_token_id=0).save_pretrained(
        snapshot
    )
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(snapshot / name)
    yield snapshot
    shutil.rmtree(place)


def test_two_tokenizers_on_the_hub(on_the_hub, tokenizers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not Path(NAME).exists()
    pair = open_tokenizers(NAME)
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers.values()]
    assert vocabularies[0] != vocabularies[1]
    assert [pair.source.get_vocab(), pair.target.get_vocab()] == vocabularies
    assert pair.model_input_names == pair.source.model_input_names

    model, source, target = load(NAME)
    assert [source.get_vocab(), target.get_vocab()] == vocabularies
    answers = pipeline("translation", model=NAME, max_new_tokens=3)(["the cat", "the dog"])
    ids = pair.source("the cat", return_tensors="pt", return_token_type_ids=False)
    row = model.to("cpu").generate(**ids, max_new_tokens=3)[0]
    assert answers[0]["translation_text"] == pair.target.decode(row, skip_special_tokens=True)
    Path("test.en").write_text("the cat\nthe dog\n")
    scores, _ = evaluate(NAME, ["test.en", "test.en"], max_new_tokens=3)
    assert [score.name for score in scores] == ["BLEU", "chrF2"]


def test_one_of_two_may_be_replaced(on_the_hub, tokenizers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizers["target_tokenizer"].save_pretrained("other")
    pair = open_tokenizers(NAME, source="other")
    assert pair.source.get_vocab() == pair.target.get_vocab()
    assert pair.source is not pair.target


def test_one_tokenizer_on_the_hub_is_one(on_the_hub, tokenizers):
    for name in tokenizers:
        shutil.rmtree(on_the_hub / name)
    tokenizers["target_tokenizer"].save_pretrained(on_the_hub)
    pair = open_tokenizers(NAME)
    assert pair.source is pair.target
    assert not has_own_tokenizer(NAME, "source")


def test_a_folder_asks_nobody(tokenizers, tmp_path, monkeypatch):
    def asks(*args, **kwargs):
        raise AssertionError("a local folder was looked for on the Hub")

    monkeypatch.setattr(parallel_text, "has_file", asks)
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(tmp_path / name)
    pair = open_tokenizers(str(tmp_path))
    assert pair.source.get_vocab() == tokenizers["source_tokenizer"].get_vocab()
    assert pair.target.get_vocab() == tokenizers["target_tokenizer"].get_vocab()
    with pytest.raises(AssertionError, match="looked for"):
        open_tokenizers(NAME)


def test_what_is_not_there_is_said(on_the_hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"someone/nothing holds no tokenizer of the source"):
        open_tokenizers("someone/nothing")
    shutil.rmtree(on_the_hub / "target_tokenizer")
    with pytest.raises(FileNotFoundError, match=r"someone/en-de holds no tokenizer"):
        load(NAME)
    (tmp_path / "target_tokenizer").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"target_tokenizer holds no tokenizer of the target .*--target_tokenizer"
    ):
        open_tokenizers(str(tmp_path), source=str(on_the_hub / "source_tokenizer"))


# How many tokens a model can read


def roberta(size: int, **changes) -> RobertaConfig:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return RobertaConfig(vocab_size=30, max_position_embeddings=size, **sizes | changes)


def test_roberta_keeps_two_positions_for_itself():
    """Found by running it: one token more than `positions_of` is one too many."""
    model = RobertaModel(roberta(12)).eval()
    most = positions_of(model.config, "encoder")
    assert most == 10
    with torch.no_grad():
        model(torch.full((1, most), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, most + 1), 5))
    decoder = RobertaForCausalLM(roberta(12, is_decoder=True))
    assert positions_of(decoder.config, "decoder") == 10


def test_limits_are_those_of_each_half():
    limits = Limits(600, 600, "truncate", "drop")
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        roberta(514), roberta(66, is_decoder=True, pad_token_id=3)
    )
    assert limits.within(config) == Limits(512, 62, "truncate", "drop")
    bert, gpt2 = BertConfig(max_position_embeddings=512), GPT2Config(n_positions=100)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, gpt2)
    assert limits.within(config) == Limits(512, 100, "truncate", "drop")
    assert limits.within(BartConfig(max_position_embeddings=64)) == Limits(64, 64, "truncate", "drop")
    led = LEDConfig(max_encoder_position_embeddings=300, max_decoder_position_embeddings=70)
    assert limits.within(led) == Limits(300, 70, "truncate", "drop")
    assert limits.within(T5Config()) == limits.within(ours().config) == limits
    assert Limits(5, 6).within(config) == Limits(5, 6)


def test_the_verb_reads_a_name_too(on_the_hub, tmp_path):
    from typer.testing import CliRunner

    (tmp_path / "a.txt").write_text("the cat\n")
    result = CliRunner().invoke(app, ["translate", NAME, str(tmp_path / "a.txt"), "--max-new-tokens", "3"])
    assert result.exit_code == 0, result.output
