"""An encoder-decoder out of two language models: to the bit, told in a table, refused by words; and `heirloom convert`."""

import copy
import json

import pytest
import torch
from reference.lstm_lm_naive import close
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.conversion import convert_seq2seq
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.inheritance_lstm_seq2seq import NO_WORD
from heirloom.modeling.modeling_elmo import ElmoForPreTraining
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM, LstmLMModel
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration

SIZES = {"embedding_size": 6, "cell_size": 8, "projection_size": 6, "dropout": 0.0, "initializer_range": 0.9}
WORDS = ["<pad>", "<eos>", "<unk>"]
ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": [4, 9], "cell_size": 17, "projection_size": 16}
begin = LstmSeq2SeqForConditionalGeneration.from_language_models


def make_lm(size=13, **changes) -> LstmLMForCausalLM:
    return LstmLMForCausalLM(LstmLMConfig(vocab_size=size, **SIZES | changes)).eval()


def make_tokenizer(letter, size=13, **marks) -> PreTrainedTokenizerFast:
    words = WORDS + [f"{letter}{number}" for number in range(size - 3)]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<eos>", "unk_token": "<unk>"} | marks
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def origins(model) -> dict[str, str]:
    return {row.parameter: row.origin for row in model.origins}


def same(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes", [{}, {"projection_size": None}, {"softmax": "sampled", "num_sampled": 5}, ADAPTIVE]
)
def test_begins_as_two_language_models_to_the_bit(changes):
    source, target, ids = make_lm(11, **changes), make_lm(**changes), torch.randint(1, 11, (3, 6))
    model = begin(source, target, zero_init=True, num_hidden_layers=3)
    config = model.config
    assert (config.encoder_vocab_size, config.vocab_size, config.num_hidden_layers) == (11, 13, 3)
    assert config.upper_size == target.config.hidden_size
    assert not model.training
    # the conditional decoder is the target's language model, whatever the source
    logits = model(ids, decoder_input_ids=ids).logits
    assert torch.equal(logits, target(ids).logits)
    assert torch.equal(model.encoder(ids).first_hidden_state, source.model(ids).last_hidden_state)
    outputs = model(source_lm_input_ids=ids, target_lm_input_ids=ids)
    assert torch.equal(outputs.source_lm_loss, source(ids, labels=ids).loss)
    assert torch.equal(outputs.target_lm_loss, target(ids, labels=ids).loss)
    # and no longer is with a random combination
    other = begin(source, target)
    assert not torch.equal(other(ids, decoder_input_ids=ids).logits, target(ids).logits)
    assert same(other.lm_head, target.lm_head)
    # copies, not the same memory
    with torch.no_grad():
        model.decoder.embed_tokens.weight.zero_()
    assert target.model.embed_tokens.weight.any()


def test_the_table(capsys):
    model = begin(make_lm(11), make_lm(), zero_init=True)
    found = origins(model)
    assert found == {
        name: "source LM, kept for its loss"
        if name.startswith("encoder_lm_head")
        else "zero"
        if "combine" in name
        else "random"
        if "layers.1" in name
        else f"{'source' if name.startswith('encoder') else 'target'} LM"
        for name, _ in model.named_parameters()
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["parameter", "shape", "from"]
    assert lines[1].split() == ["encoder.embed_tokens.weight", "11", "x", "6", "source", "LM"]
    assert len(lines) == len(found) + 3
    taken = sum(lm.num_parameters() for lm in (make_lm(11), make_lm()))
    assert lines[-2] == (
        f"numbers: {taken:,} from language models, {model.num_parameters() - taken:,} from random or zero"
    )
    assert lines[-1] == "vocabularies: 11 source and 13 target tokens of their own, not compared by content"


@pytest.mark.parametrize("parts", [("embeddings",), ("embeddings", "lstm"), ("softmax",), "lstm"])
def test_parts(parts):
    source, target = make_lm(11), make_lm()
    model = begin(source, target, parts=parts)
    named = (parts,) if isinstance(parts, str) else parts
    assert torch.equal(model.encoder.embed_tokens.weight, source.model.embed_tokens.weight) == (
        "embeddings" in named
    )
    assert same(model.decoder.layers[0], target.model.layers[0]) == ("lstm" in named)
    assert same(model.encoder_lm_head, source.lm_head) == ("softmax" in named)
    taken = {"embeddings": "embed_tokens", "lstm": "layers.0.", "softmax": "lm_head"}
    for name, origin in origins(model).items():
        assert ("LM" in origin) == any(taken[part] in name for part in named), name


@pytest.mark.parametrize("side", ["source", "target"])
def test_one_side_alone(side):
    lm = make_lm()
    model = begin(lm, None) if side == "source" else begin(None, lm)
    assert model.config.encoder_vocab_size is None
    assert {origin for origin in origins(model).values() if "LM" in origin} <= {
        f"{side} LM",
        "source LM, kept for its loss",
    }
    stack = model.encoder if side == "source" else model.decoder
    assert torch.equal(stack.embed_tokens.weight, lm.model.embed_tokens.weight)
    assert model.generation_config.decoder_start_token_id == 1
    if side == "target":
        apart = begin(None, lm, encoder_vocab_size=9, bidirectional_encoder=True)
        assert apart.encoder.embed_tokens.num_embeddings == 9
        assert apart.generate(torch.tensor([[3, 4]]), max_new_tokens=3).shape == (1, 4)
    else:
        assert begin(lm, None, vocab_size=20).lm_head.out_features == 20
        assert begin(lm, None, target_tokenizer=make_tokenizer("b", 17)).config.vocab_size == 17


def test_names_and_dtypes(tmp_path):
    source, target = make_lm(11), make_lm().to(torch.bfloat16)
    source.save_pretrained(tmp_path / "source")
    target.save_pretrained(tmp_path / "target")
    model = begin(str(tmp_path / "source"), tmp_path / "target")
    assert model.dtype == torch.float32  # of what is loaded here, for training
    assert torch.equal(model.decoder.embed_tokens.weight, target.model.embed_tokens.weight.float())
    assert begin(source, target).dtype == torch.float32
    assert begin(source, make_lm().double()).dtype == torch.float64
    assert begin(target, target).dtype == torch.bfloat16


def test_ties():
    source, target = (make_lm(n, tie_word_embeddings=True) for n in (11, 13))
    model = begin(source, target)
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    assert model.encoder_lm_head.weight is model.encoder.embed_tokens.weight
    assert origins(model)["lm_head.weight"] == "shares decoder.embed_tokens.weight"
    for loose in (begin(source, make_lm()), begin(source, target, parts=("embeddings",))):
        assert not loose.config.tie_word_embeddings
        assert loose.lm_head.weight is not loose.decoder.embed_tokens.weight
    assert torch.equal(begin(source, make_lm()).encoder_lm_head.weight, source.lm_head.weight)
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings=True needs .* tied themselves.*untied \['target_lm"
    ):
        begin(source, make_lm(), tie_word_embeddings=True)
    with pytest.raises(
        ValueError, match=r"tie_word_embeddings=True needs .*found parts \['embeddings'\]. Leave it out"
    ):
        begin(source, target, parts=["embeddings"], tie_word_embeddings=True)


def test_special_tokens_go_into_both_configs():
    marks = {"pad_token_id": 5, "bos_token_id": 2, "eos_token_id": 3}
    model = begin(make_lm(11, pad_token_id=7), make_lm(**marks))
    for config in (model.config, model.generation_config):
        assert (
            config.pad_token_id,
            config.bos_token_id,
            config.eos_token_id,
            config.decoder_start_token_id,
        ) == (5, 2, 3, 2)
    assert model.config.encoder_pad_token_id == 7
    assert begin(make_lm(11, pad_token_id=1), make_lm()).config.encoder_pad_token_id is None  # says nothing
    without = begin(make_lm(), make_lm(bos_token_id=None, pad_token_id=None))
    assert without.config.decoder_start_token_id == without.config.eos_token_id == 1
    assert without.config.encoder_vocab_size == 13  # other special tokens: not one vocabulary
    with pytest.raises(
        ValueError, match="target_lm LstmLMForCausalLM has no eos_token_id, so a translation could not end"
    ):
        begin(make_lm(), make_lm(eos_token_id=None))


def test_vocabularies_are_compared_by_content(capsys):
    lm, other, ours, theirs = make_lm(), make_lm(), make_tokenizer("a"), make_tokenizer("b")
    joint = begin(lm, other, source_tokenizer=ours, target_tokenizer=make_tokenizer("a"))
    assert joint.config.encoder_vocab_size is None
    assert "one joint vocabulary of 13 tokens, compared by content" in capsys.readouterr().out
    apart = begin(lm, other, source_tokenizer=ours, target_tokenizer=theirs)  # as many tokens, but others
    assert apart.config.encoder_vocab_size == 13
    assert apart.config.encoder_pad_token_id == 0
    assert begin(lm, other).config.encoder_vocab_size is None
    assert "one joint vocabulary of 13 tokens, not compared by content" in capsys.readouterr().out
    assert begin(lm, other, encoder_vocab_size=13).config.encoder_vocab_size == 13
    asked = {"source_tokenizer": ours, "target_tokenizer": theirs, "encoder_vocab_size": None}
    with pytest.raises(
        ValueError, match=r"asks for a joint vocabulary, but id 3 is 'a0' in the source's tokenizer and 'b0'"
    ):
        begin(lm, other, **asked)
    with pytest.raises(
        ValueError, match="asks for a joint vocabulary, but the source has 11 tokens and the target 13"
    ):
        begin(make_lm(11), other, encoder_vocab_size=None)


def test_tokenizers_must_belong_to_their_models(tmp_path):
    make_tokenizer("a", 12).save_pretrained(tmp_path)
    for tokenizer in (make_tokenizer("a", 12), tmp_path, str(tmp_path)):
        with pytest.raises(
            ValueError,
            match="source_tokenizer has 12 ids, but source_lm LstmLMForCausalLM has 13 words. Give the",
        ):
            begin(make_lm(), make_lm(), source_tokenizer=tokenizer)
    with pytest.raises(ValueError, match="target_tokenizer has eos_token_id 1, but target_lm .* has 2. Give"):
        begin(make_lm(), make_lm(eos_token_id=2), target_tokenizer=make_tokenizer("b"))
    with pytest.raises(ValueError, match="target_tokenizer has pad_token_id 3"):
        begin(make_lm(), make_lm(), target_tokenizer=make_tokenizer("b", pad_token="b0"))


@pytest.mark.parametrize(
    ("source", "target", "options", "words"),
    [
        ({}, {"embedding_size": 5, "cell_size": 9}, {}, "must have equal sizes, found embedding_size 6 and 5, cell_size 8 and 9. Train both"),
        ({}, {"projection_size": None}, {}, "found projection_size 6 and None"),
        (ADAPTIVE, {**ADAPTIVE, "softmax": "full"}, {}, "found softmax adaptive and full"),
        (ADAPTIVE, {**ADAPTIVE, "adaptive_cutoffs": [3]}, {}, r"found adaptive_cutoffs \[4, 9\] and \[3\]"),
        ({"num_hidden_layers": 2}, {}, {}, "source_lm LstmLMForCausalLM has 2 layers, expected 1.*num_hidden_layers=1"),
        ({}, {}, {"cell_size": 9}, "cell_size is 8 in target_lm LstmLMForCausalLM, found 9. Leave it out"),
        ({}, {}, {"softmax": "adaptive"}, "softmax is full in target_lm"),
        ({}, {}, {"vocab_size": 14}, "vocab_size is 13 by target_lm .*found 14"),
        ({}, {}, {"encoder_vocab_size": 14}, "encoder_vocab_size is 13 by source_lm .*found 14"),
        ({}, {}, {"uper_size": 5}, r"LstmSeq2SeqConfig has no field \['uper_size'\]"),
        ({}, {}, {"parts": ("embedding",)}, r"parts must be some of \['embeddings', 'lstm', 'softmax'\], found \['embedding'\]"),
        ({}, {}, {"parts": ()}, "found none"),
        ({}, {}, {"bidirectional_encoder": True}, "bidirectional_encoder cannot begin as a language model.*source_lm=None"),
    ],
)  # fmt: skip
def test_refused(source, target, options, words, capsys):
    with pytest.raises(ValueError, match=words):
        begin(make_lm(**source), make_lm(**target), **options)
    assert capsys.readouterr().out == ""


def test_what_is_no_language_model(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match="bert is a checkpoint of 'bert', expected one of a causal LSTM language model"
    ):
        begin(tmp_path / "bert", make_lm())
    with pytest.raises(
        FileNotFoundError, match="source_lm .*nowhere does not exist, expected a checkpoint folder"
    ):
        begin(tmp_path / "nowhere", make_lm())
    with pytest.raises(ValueError, match="holds no config.json"):
        begin(tmp_path, make_lm())
    with pytest.raises(
        ValueError, match="target_lm LstmLMModel is no causal LSTM language model .*class LstmLMModel"
    ):
        begin(None, make_lm().model)
    with pytest.raises(ValueError, match="found neither. For a model without any"):
        begin(None, None)
    LstmLMModel(LstmLMConfig(vocab_size=13, **SIZES)).save_pretrained(tmp_path / "body")
    with pytest.raises(
        ValueError, match=r"is no whole language model: \['lm_head.bias', 'lm_head.weight'\] are not in"
    ):
        begin(tmp_path / "body", make_lm())


ELMO = {
    "vocab_size": 13,
    "char_embedding_size": 0,
    "word_embedding_size": 5,
    "projection_size": 6,
    "cell_size": 8,
    "num_hidden_layers": 1,
    "cell_clip": None,
    "proj_clip": None,
    "dropout": 0.0,
}


def make_elmo(**changes) -> ElmoForPreTraining:
    model = ElmoForPreTraining(ElmoConfig(**ELMO | changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.9, 0.9)
    return model


@pytest.mark.parametrize("changes", [{}, {"projection_size": 8, "proj_clip": 3.0}, {"forget_bias": 0.0}])
def test_the_forward_half_of_a_bilm(changes, tmp_path):
    """In word mode, with one layer and without clips it is an LSTM language model; `<S>` begins and `</S>` ends."""
    elmo = make_elmo(**changes)
    model = begin(None, elmo, zero_init=True)
    words = torch.randint(1, 13, (4, 6))
    text = torch.cat([torch.full((4, 1), 1), words, torch.full((4, 1), 2)], 1)
    assert close([model(target_lm_input_ids=text).loss], [elmo(words, labels=words).forward_loss])
    outputs = model(torch.tensor([[3, 4]] * 4), labels=text[:, 1:])
    assert close([outputs.loss], [elmo(words, labels=words).forward_loss])
    assert (model.config.decoder_start_token_id, model.config.eos_token_id) == (1, 2)
    assert model.lm_head.bias[0] == NO_WORD
    assert begin(elmo, elmo).config.encoder_vocab_size is None
    elmo.save_pretrained(tmp_path)
    assert torch.equal(begin(None, tmp_path).lm_head.weight, elmo.softmax.weight.float())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"char_embedding_size": 4, "char_filters": [[1, 3]]},
            "reads words by their characters, not by a table",
        ),
        ({"num_hidden_layers": 2}, "it has 2 layers, expected 1"),
        ({"cell_clip": 3.0}, "it clips cells at 3, which nn.LSTM cannot"),
        ({"proj_clip": 3.0}, "it clips projections at 3, which nn.LSTM cannot"),
        ({"softmax": "adaptive", "adaptive_cutoffs": [4]}, "its adaptive softmax has no row for each id"),
    ],
)
def test_bilms_that_are_no_such_language_model(changes, words):
    with pytest.raises(
        ValueError,
        match=f"forward half of source_lm ElmoForPreTraining cannot be .*{words}.*Train an lstm-lm",
    ):
        begin(make_elmo(**changes), None)


# heirloom convert seq2seq


def run(*arguments):
    return CliRunner().invoke(app, ["convert", "seq2seq", *map(str, arguments)])


@pytest.fixture
def lms(tmp_path):
    """Folders of two language models with equal tokenizers, and of one with another."""
    folders = []
    for name, letter in (("en", "a"), ("also", "a"), ("de", "b")):
        folders.append(tmp_path / name)
        make_lm().save_pretrained(folders[-1])
        make_tokenizer(letter).save_pretrained(folders[-1])
    return folders


def test_separate_tokenizers(lms, tmp_path):
    en, _, de = lms
    out = tmp_path / "deep" / "out"
    result = run("--source", en, "--target", de, out, "--layers", 3, "--upper-size", 4, "--zero-init")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert lines[0] == ["parameter", "shape", "from", "max", "abs", "difference"]
    assert ["lm_head.weight", "13", "x", "6", "target", "LM", "0"] in lines
    assert ["encoder_lm_head.bias", "13", "source", "LM,", "kept", "for", "its", "loss", "0"] in lines
    assert ["decoder.combine.bias", "6", "zero", "0"] in lines
    assert ["encoder.layers.2.bias_ih_l0", "16", "random", "0"] in lines
    assert "every bit equal" in result.output
    assert (
        "note: vocabularies: 13 source and 13 target tokens of their own, compared by content"
        in result.output
    )
    assert all(len(line) < 110 for line in result.output.splitlines())
    loaded = AutoModelForSeq2SeqLM.from_pretrained(out), LstmLMForCausalLM.from_pretrained(de)
    # Copies, since a file's numbers lie unaligned in memory, where even one and the same model rounds differently.
    (model, lm), ids = copy.deepcopy(loaded), torch.tensor([[1, 4, 5]])
    assert torch.equal(model(ids, decoder_input_ids=ids).logits, lm(ids).logits)
    assert AutoTokenizer.from_pretrained(out / "source_tokenizer").get_vocab()["a0"] == 3
    assert AutoTokenizer.from_pretrained(out / "target_tokenizer").get_vocab()["b0"] == 3
    assert not (out / "tokenizer.json").exists()
    assert json.loads((out / "generation_config.json").read_text())["decoder_start_token_id"] == 1


def test_a_joint_tokenizer_and_seeds(lms, tmp_path):
    en, also, _ = lms
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        result = run("--source", en, "--target", also, tmp_path / name, "--seed", seed)
        assert result.exit_code == 0, result.output
    assert "one joint vocabulary of 13 tokens, compared by content" in result.output
    assert AutoTokenizer.from_pretrained(tmp_path / "one").get_vocab() == make_tokenizer("a").get_vocab()
    assert not (tmp_path / "one" / "source_tokenizer").exists()
    one, again, two = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name) for name in ("one", "again", "two")
    )
    assert same(one, again)
    assert not same(one, two)
    assert one.config.encoder_vocab_size is None


def test_parts_and_one_side(lms, tmp_path):
    en, _, de = lms
    result = run("--source", en, "--target", de, tmp_path / "parts", "--parts", "embeddings, lstm")
    assert result.exit_code == 0, result.output
    assert "kept for its loss" not in result.output
    result = run("--target", de, tmp_path / "half")
    assert result.exit_code == 0, result.output
    assert "source LM" not in result.output
    assert "it reads the target's vocabulary" in result.output
    for file in en.glob("tokenizer*"):
        file.unlink()
    rows, notes = convert_seq2seq(en, de, tmp_path / "without")
    assert f"no tokenizer beside {en}, so none was written for it" in notes
    assert all(row.difference == 0 for row in rows)


def failed(tmp_path, words, *arguments):
    """Exit status 1, one message on stderr, nothing on stdout, nothing left behind."""
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.startswith("heirloom: ")
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_failures_leave_nothing(lms, tmp_path, monkeypatch):
    en, _, de = lms
    out = tmp_path / "out"
    failed(tmp_path, "not empty. Choose another folder", "--source", en, "--target", de, en)
    failed(
        tmp_path,
        "does not exist, expected a checkpoint folder",
        "--source",
        tmp_path / "no",
        "--target",
        de,
        out,
    )
    failed(tmp_path, "parts must be some of", "--target", de, out, "--parts", "head")
    failed(tmp_path, "found neither", out)
    make_tokenizer("a", 12).save_pretrained(en)
    failed(tmp_path, "source_tokenizer has 12 ids, but source_lm", "--source", en, "--target", de, out)
    (en / "tokenizer.json").write_text("{")
    failed(tmp_path, "but no tokenizer can be read", "--source", en, "--target", de, out)
    make_tokenizer("a").save_pretrained(en)
    load = LstmSeq2SeqForConditionalGeneration.from_pretrained.__func__

    def spoiled(cls, *args, **kwargs):
        model = load(cls, *args, **kwargs)
        with torch.no_grad():
            model.lm_head.bias[-1] += 1e-6
        return model

    monkeypatch.setattr(LstmSeq2SeqForConditionalGeneration, "from_pretrained", classmethod(spoiled))
    words = "Verification failed: the checkpoint differs from the language models in ['lm_head.bias']"
    failed(tmp_path, words, "--source", en, "--target", de, out)


def test_help_fits_a_screen():
    for flag in ("-h", "--help"):
        result = run(flag)
        assert result.exit_code == 0
        assert len(result.output.splitlines()) <= 24
        assert max(map(len, result.output.splitlines())) <= 80
        assert "Example: heirloom convert seq2seq" in result.output
