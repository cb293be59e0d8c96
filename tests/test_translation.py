"""heirloom translate: batches against single texts and stock generate(), scores, limits, order, heat maps, clear errors."""

import io
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

import heirloom
from heirloom.cli.main import app
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration
from heirloom.sharing import lines, translation
from heirloom.sharing.seq2seq_checkpoints import LONGEST, decode, load
from heirloom.sharing.translation import Translator, attend, translate, translate_file
from heirloom.training.plots import plot_attention
from heirloom.training.tokenizers import train_tokenizer

SOURCES = [
    "the cat sat on the mat .",
    "a dog .",
    "",
    "the dog sat on a cat and the mat sat on the dog .",
    "   ",
    "cat cat mat",
    "sat",
]
TARGETS = ["die Katze saß auf der Matte .", "ein Hund und eine Katze .", "der Hund saß"]
LIMIT = {"max_new_tokens": 7}
# Seeds with which outputs differ, and some end.
KINDS = {"separate": 111, "joint": 56, "bart": 89, "t5": 128, "encoder-decoder": 111}


def wild(model, seed: int):
    """Numbers so large that outputs depend on every word of the source."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=chance) * (0.9 if parameter.dim() > 1 else 0.3)
            )
    return model.eval()


def ids(size: int) -> dict:
    return {"vocab_size": size, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1}


def make(kind: str):
    """A tiny model, its source's tokenizer and its target's."""
    source, _ = train_tokenizer(SOURCES, "word", 50, tokenized=True)
    target, _ = train_tokenizer(TARGETS, "word", 50, tokenized=True)
    joint, _ = train_tokenizer([*SOURCES, *TARGETS], "word", 50, tokenized=True)
    if kind == "separate":
        config = LstmSeq2SeqConfig(
            vocab_size=len(target),
            encoder_vocab_size=len(source),
            encoder_pad_token_id=0,
            embedding_size=6,
            cell_size=8,
            upper_size=6,
        )
        return wild(LstmSeq2SeqForConditionalGeneration(config), KINDS[kind]), source, target
    size = len(joint)
    if kind == "joint":
        config = LstmSeq2SeqConfig(vocab_size=size, embedding_size=6, cell_size=8, upper_size=6)
        return wild(LstmSeq2SeqForConditionalGeneration(config), KINDS[kind]), joint, joint
    if kind == "bart":
        sizes = {
            f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")
        }
        sizes |= {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "max_position_embeddings": 20}
        model = BartForConditionalGeneration(
            BartConfig(**sizes, **ids(size), bos_token_id=1, forced_eos_token_id=None)
        )
    elif kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, **ids(size))
        )
    else:
        bert = BertConfig(
            vocab_size=size, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        gpt2 = GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(
            bert, gpt2, **(ids(size) | {"vocab_size": size})
        )
        model = EncoderDecoderModel(config)
        model.generation_config.update(pad_token_id=0, eos_token_id=1, decoder_start_token_id=1)
    return wild(model, KINDS[kind]), joint, joint


@pytest.fixture(scope="module", params=KINDS)
def loaded(request):
    return make(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The LSTM with separate tokenizers, as `convert seq2seq` leaves it."""
    place = tmp_path_factory.mktemp("checkpoint") / "separate"
    model, source, target = make("separate")
    model.save_pretrained(place)
    source.save_pretrained(place / "source_tokenizer")
    target.save_pretrained(place / "target_tokenizer")
    return place


def texts(found) -> list[list[str]]:
    return [[hypothesis.text for hypothesis in row] for row in found]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_batch_is_the_stock_generate_text_by_text(loaded, num_beams):
    model, source, target = loaded
    n_best = min(num_beams, 3)
    options = {"num_beams": num_beams, "n_best": n_best, "scores": True, "length_penalty": 0.7, **LIMIT}
    found = translate(model, source, target, SOURCES, batch_size=3, **options)
    assert len({one.text for row in found for one in row}) > 2
    for text, row in zip(SOURCES, found, strict=True):
        if not text.strip():
            assert [(one.text, one.score, one.token_ids) for one in row] == [("", 0.0, ())] * n_best
            continue
        expected = model.generate(
            **source(text, return_tensors="pt", return_token_type_ids=False),
            do_sample=False,
            num_beams=num_beams,
            num_return_sequences=n_best,
            length_penalty=0.7,
            return_dict_in_generate=True,
            output_scores=True,
            **LIMIT,
        )
        tokens = [target.convert_ids_to_tokens(sequence) for sequence in expected.sequences.tolist()]
        words = [
            " ".join(token for token in sequence if token not in ("<eos>", "<pad>")) for sequence in tokens
        ]
        assert [one.text for one in row] == words
        if num_beams > 1:
            scores = expected.sequences_scores.tolist()
        else:
            logs = torch.stack(expected.scores, 1).log_softmax(-1)[0]
            tokens = expected.sequences[0, 1:]
            count = tokens.tolist().index(1) + 1 if 1 in tokens else len(tokens)
            scores = [float(logs[range(count), tokens[:count]].sum()) / count**0.7]
        assert [one.score for one in row] == pytest.approx(scores, abs=2e-4)


def test_batches_and_chunks_change_nothing(loaded, monkeypatch):
    options = {"num_beams": 3, "n_best": 2, "scores": True, **LIMIT}
    alone = [translate(*loaded, [text], **options)[0] for text in SOURCES]
    monkeypatch.setattr(translation, "CHUNK", 2)
    monkeypatch.setattr(translation, "SCORES", 1)  # one text at a time
    together = translate(*loaded, SOURCES[::-1], batch_size=7, **options)[::-1]
    assert texts(together) == texts(alone)
    assert texts(translate(*loaded, SOURCES, batch_size=7, num_beams=3, n_best=2, **LIMIT)) == texts(alone)


def test_scores_are_sums_of_the_models_own_losses(loaded):
    model, source, target = loaded
    row = translate(
        model, source, target, SOURCES[:1], num_beams=4, n_best=4, scores=True, length_penalty=0.0, **LIMIT
    )[0]
    assert row == sorted(row, key=lambda one: -one.score)
    for one in row:
        tokens = torch.tensor([one.token_ids])
        with torch.no_grad():
            logits = model(
                **source(SOURCES[0], return_tensors="pt", return_token_type_ids=False),
                decoder_input_ids=torch.cat([torch.tensor([[1]]), tokens[:, :-1]], 1),
            ).logits
        expected = logits.log_softmax(-1).gather(2, tokens.unsqueeze(2)).sum()
        assert one.score == pytest.approx(float(expected), abs=2e-4)


def test_batches_go_by_length_and_blank_texts_stay_out(monkeypatch):
    model, source, target = make("separate")
    seen, stock = [], type(model).generate

    def spy(self, *args, **options):
        seen.append(options["attention_mask"].sum(1).tolist())
        assert "output_scores" not in options or not options["output_scores"]
        return stock(self, *args, **options)

    monkeypatch.setattr(type(model), "generate", spy)
    translate(model, source, target, SOURCES, batch_size=2, **LIMIT)
    assert seen == [[15, 8], [4, 4], [2]]  # the tokenizer puts <eos> before a sentence
    seen.clear()
    assert texts(translate(model, source, target, ["", " ", "\t"], **LIMIT)) == [[""]] * 3
    assert translate(model, source, target, []) == []
    assert seen == []


def test_what_was_cut_is_counted(caplog):
    model, source, target = make("separate")
    translator = Translator(model, source, target, max_new_tokens=2, max_source_tokens=4)
    found = translator([*SOURCES, "the cat sat on nothing"])
    assert texts(translator(["the cat sat"]))[0] == texts(found[:1])[0] == texts(found[-1:])[0]
    long = sum(len(source(text)["input_ids"]) > 4 for text in SOURCES) + 1
    assert translator.truncated == long == 3
    unfinished = sum(bool(row[0].token_ids) and row[0].token_ids[-1] != 1 for row in found)
    assert unfinished > 0
    assert translator.notes() == [
        f"sources cut to 4 tokens: {long}",
        f"targets cut at 2 tokens, before their end: {translator.unfinished}",
    ]


def test_sources_that_are_too_long_are_named():
    model, source, target = make("bart")
    long = "cat " * 25
    with pytest.raises(
        ValueError, match=r"text 3 has 26 tokens, but the model reads 20 at most.*--max-source-tokens 20"
    ):
        translate(model, source, target, ["cat", "dog", long], **LIMIT)
    cut = translate(model, source, target, [long], max_source_tokens=20, **LIMIT)
    assert texts(cut) == texts(translate(model, source, target, ["cat " * 19], **LIMIT))
    with pytest.raises(ValueError, match=r"reads 20 source tokens at most, found max_source_tokens 21"):
        translate(model, source, target, ["cat"], max_source_tokens=21)
    with pytest.raises(ValueError, match=r"writes 20 tokens at most, found max_new_tokens 21"):
        translate(model, source, target, ["cat"], max_new_tokens=21)
    source.model_max_length = 5  # what a tokenizer knows of its model counts too
    with pytest.raises(ValueError, match="text 1 has 8 tokens, but the model reads 5"):
        translate(model, source, target, SOURCES, **LIMIT)


def test_the_checkpoints_own_search_is_the_default():
    model, source, target = make("separate")
    expected = texts(
        translate(model, source, target, SOURCES, num_beams=4, length_penalty=0.2, max_new_tokens=5)
    )
    model.generation_config.update(num_beams=4, length_penalty=0.2, max_new_tokens=5, do_sample=True)
    assert texts(translate(model, source, target, SOURCES)) == expected
    model.generation_config.update(num_beams=None, max_new_tokens=None, do_sample=None)
    with torch.no_grad():
        model.lm_head.bias[1] = -1e4  # no end
    assert len(translate(model, source, target, SOURCES)[0][0].token_ids) == LONGEST


def test_unknown_words_show_and_marks_do_not():
    _, _, target = make("separate")
    known = target("der Hund")["input_ids"]
    assert decode(target, [*known, target.unk_token_id, 1, 0, 0]) == "der Hund <unk>"
    target.unk_token = target.eos_token  # as GPT-2 has it
    assert decode(target, [*known, 1]) == "der Hund"


def test_bad_options_and_models_are_refused():
    model, source, target = make("separate")
    for options, words in (
        ({"n_best": 3, "num_beams": 2}, "3 best need at least as many beams, found num_beams 2"),
        ({"num_beams": 0}, "num_beams must be 1 or more, found 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, found 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, found 0"),
    ):
        with pytest.raises(ValueError, match=words):
            translate(model, source, target, SOURCES, **options)
    with pytest.raises(ValueError, match="texts must be a list, found the text 'the cat'"):
        translate(model, source, target, "the cat")
    big, _ = train_tokenizer([f"word{number}" for number in range(99)], "word", 200)
    with pytest.raises(ValueError, match=r"made the id \d+, but the model has \d+ words"):
        translate(model, big, target, [f"word{number}" for number in range(99)])
    lm = LstmLMForCausalLM(LstmLMConfig(vocab_size=9, embedding_size=4, cell_size=4))
    with pytest.raises(ValueError, match="is a lstm-lm model; an encoder-decoder is expected"):
        translate(lm, source, target, SOURCES)


def test_attention_is_the_models_and_its_rows_sum_to_one(loaded):
    model, source, target = loaded
    before = model.config._attn_implementation
    row = translate(model, source, target, SOURCES[:1], num_beams=2, **LIMIT)[0][0]
    inputs = source(SOURCES[0])["input_ids"]
    weights = attend(model, inputs, row.token_ids)
    assert weights.shape == (len(row.token_ids), len(inputs))
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-5)
    assert model.config._attn_implementation == before
    generated = model.generate(
        torch.tensor([inputs]),
        num_beams=1,
        return_dict_in_generate=True,
        output_attentions=True,
        do_sample=False,
        **LIMIT,
    )
    if generated.cross_attentions and generated.cross_attentions[0]:  # fused kernels tell none
        tokens = generated.sequences[0, 1:].tolist()
        steps = [torch.stack(step).mean((0, 2))[0, -1] for step in generated.cross_attentions]
        assert torch.allclose(attend(model, inputs, tokens), torch.stack(steps), atol=1e-5)
    with pytest.raises(ValueError, match="found 3 of the source and 0 of the target"):
        attend(model, [1, 2, 3], [])


def test_heat_maps_show_weights_and_names():
    weights = np.array([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]])
    figure = plot_attention(weights, ["a", "$b", "c$"], ["x", "y"], "title")
    (image,) = figure.axes[0].images
    assert np.array_equal(image.get_array(), weights)
    assert image.get_clim() == (0, 1)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", r"\$b", r"c\$"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["x", "y"]
    figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match=r"\(target tokens, source tokens\) = \(3, 2\), found \(2, 3\)"):
        plot_attention(weights, ["a", "b"], ["x", "y", "z"])


def test_files_keep_order_and_blank_lines(folder, tmp_path):
    text, out = tmp_path / "in.txt", tmp_path / "out.txt"
    text.write_text("\n".join(SOURCES) + "\n", encoding="utf-8")
    expected = [row[0].text for row in translate(*load(str(folder)), SOURCES, num_beams=3, **LIMIT)]
    summary = translate_file(str(folder), str(text), out, num_beams=3, **LIMIT)
    assert out.read_text(encoding="utf-8").split("\n") == [*expected, ""]
    assert expected[2] == expected[4] == ""
    assert summary[0] == "7 sentences, 2 of them blank"
    with pytest.raises(FileExistsError, match="out.txt exists. Choose another name"):
        translate_file(str(folder), str(text), out)
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        translate_file(str(folder), str(text), tmp_path / "nowhere" / "out.txt")


def test_a_failure_leaves_no_file(folder, tmp_path):
    text, out = tmp_path / "in.txt", tmp_path / "out.txt"
    text.write_bytes(b"the cat\n\xff\n")
    with pytest.raises(ValueError, match="line 2, is no UTF-8"):
        translate_file(str(folder), str(text), out, **LIMIT)
    assert not out.exists()


def test_long_files_are_read_in_chunks(folder, tmp_path, monkeypatch):
    """At no time are more than two chunks of lines read ahead of what is written."""
    monkeypatch.setattr(translation, "CHUNK", 3)
    taken, written = [], []

    def supply(source, column):
        for number in range(20):
            taken.append(number)
            yield "cat"

    class Out(io.StringIO):
        def writelines(self, rows):
            written.extend(rows)
            assert len(taken) - len(written) < 6

    monkeypatch.setattr(translation, "read_lines", supply)
    monkeypatch.setattr(translation, "new_text_file", lambda output: _Context(Out()))
    translate_file(str(folder), "x", tmp_path / "out", **LIMIT)
    assert len(written) == 20


class _Context:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        return False


def test_the_verb_reads_standard_input_and_tells_n_best_with_scores(folder, tmp_path):
    options = [
        "--num-beams",
        "3",
        "--n-best",
        "2",
        "--scores",
        "--max-new-tokens",
        "7",
        "--length-penalty",
        "0.5",
    ]
    result = CliRunner().invoke(app, ["translate", str(folder), *options], input="\n".join(SOURCES))
    assert result.exit_code == 0, result.output
    expected = translate(
        *load(str(folder)), SOURCES, num_beams=3, n_best=2, scores=True, length_penalty=0.5, **LIMIT
    )
    rows = [line.split("\t") for line in result.stdout.split("\n")[:-1]]
    assert [row[1] for row in rows] == [one.text for row in expected for one in row]
    scores = [one.score for row in expected for one in row]
    assert [float(row[0]) for row in rows] == pytest.approx(scores, abs=1e-4)
    assert "7 sentences, 2 of them blank" in result.stderr


def test_the_verb_draws_heat_maps_of_the_first_sentences(folder, tmp_path):
    text, place = tmp_path / "in.tsv", tmp_path / "maps"
    text.write_text("text\n" + "\n".join(["cat .", "dog", "dog sat", "mat", "sat", "on", "a"]) + "\n")
    options = ["--output", str(tmp_path / "out"), "--attention", str(place), "--max-new-tokens", "3"]
    result = CliRunner().invoke(app, ["translate", str(folder), str(text), *options])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in place.iterdir()) == [f"{number:05d}.png" for number in range(1, 6)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in place.iterdir())
    again = CliRunner().invoke(app, ["translate", str(folder), str(text), "--attention", str(place)])
    assert again.exit_code == 1
    assert "maps exists. Choose another folder" in again.stderr


def test_checkpoints_that_cannot_translate_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load(str(tmp_path))
    LstmLMConfig(vocab_size=9).save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="is a lstm-lm model; an encoder-decoder is expected"):
        load(str(tmp_path / "lm"))
    model, source, _ = make("separate")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load(str(tmp_path / "bare"))
    source.save_pretrained(tmp_path / "bare" / "source_tokenizer")
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load(str(tmp_path / "bare"))


def test_one_line_a_text_and_standard_input_in_utf8(monkeypatch):
    assert lines.one_line("a\tb\nc\u2028d") == "a b c d"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("é\r\n\nb".encode() + b"\n\xff")))
    rows = lines.read_lines("-")
    assert list(islice(rows, 3)) == ["é", "", "b"]
    with pytest.raises(ValueError, match="standard input, line 4, is no UTF-8 at byte 0"):
        next(rows)


def test_translate_is_in_the_face():
    assert heirloom.translate is translate
