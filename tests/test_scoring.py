"""heirloom score and lexical substitutes: against loops over the model's own outputs and losses, and clear errors."""

import copy
import json
import math
import re

import pytest
import torch
from typer.testing import CliRunner

import heirloom
from heirloom.cli.main import app
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoModel
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.sharing import scoring
from heirloom.sharing.scoring import lexical_substitutes, score_file, score_sentences
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.tokenizers import train_tokenizer

WORDS = ["the", "cat", "sat", "on", "mat", "dog", ".", "a", "caf\u00e9"]
SENTENCES = [
    "the cat sat on the mat .",
    "a dog .",
    "purple the",
    "the",
    "the mat sat on a cat caf\u00e9 purple zebra dog .",
]
SPLIT = [sentence.split() for sentence in SENTENCES]
SIZES = {"char_filters": [[1, 4], [2, 4]], "char_embedding_size": 4, "projection_size": 16, "cell_size": 16}


def scaled(model, factor: float = 2.0):
    """Weights so large that a wrong position, direction or state changes every score."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor if parameter.dim() > 1 else 1).add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> ElmoTokenizer:
    return ElmoTokenizer.from_words(WORDS)


@pytest.fixture(scope="module", params=["full", "adaptive"])
def bilm(request, tokenizer) -> ElmoForPreTraining:
    torch.manual_seed(0)
    cutoffs = {"adaptive_cutoffs": [4, 8]} if request.param == "adaptive" else {}
    config = ElmoConfig(
        **SIZES, num_highway_layers=1, vocab_size=len(tokenizer), softmax=request.param, **cutoffs
    )
    return scaled(ElmoForPreTraining(config))


@pytest.fixture(scope="module")
def lstm_lm() -> tuple:
    torch.manual_seed(0)
    tok, _ = train_tokenizer(SENTENCES[:2] * 2, "word", 50, tokenized=True)
    config = LstmLMConfig(vocab_size=len(tok), embedding_size=6, cell_size=8, num_hidden_layers=2)
    return scaled(LstmLMForCausalLM(config), 10.0), tok


@pytest.fixture(scope="module")
def elmo_folder(tmp_path_factory, tokenizer):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bilm")
    config = ElmoConfig(**SIZES, num_highway_layers=1, vocab_size=len(tokenizer))
    scaled(ElmoForPreTraining(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def naive(model, tokenizer, words: list[str]) -> tuple[float, float, float]:
    """One sentence, one position after another, with logits made by hand from the states around it."""
    batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.elmo(**batch, keep_boundaries=True).last_hidden_state[0]  # (n + 2, 2 P)

        def logs(vector):
            if hasattr(model.softmax, "log_prob"):
                return model.softmax.log_prob(vector[None])[0]
            return torch.log_softmax((model.softmax.weight @ vector + model.softmax.bias)[1:], 0)

        half = hidden.shape[1] // 2
        ids = [model.config.bos_token_id, *tokenizer.word_ids_of(words), model.config.eos_token_id]
        forward = sum(float(logs(hidden[t - 1, :half])[ids[t] - 1]) for t in range(1, len(ids)))
        backward = sum(float(logs(hidden[t + 1, half:])[ids[t] - 1]) for t in range(len(ids) - 1))
        pseudo = sum(
            float(torch.log_softmax(logs(hidden[t - 1, :half]) + logs(hidden[t + 1, half:]), 0)[ids[t] - 1])
            for t in range(1, len(ids) - 1)
        )
    return forward, backward, pseudo


@pytest.mark.parametrize("buffer", [2**23, 30])
def test_scores_are_those_of_a_loop_over_positions(bilm, tokenizer, buffer, monkeypatch):
    monkeypatch.setattr(scoring, "BUFFER", buffer)  # 30 logits: two positions at a time
    found = score_sentences(bilm, tokenizer, SPLIT, batch_size=3)
    for words, scores in zip(SPLIT, found, strict=True):
        expected = naive(bilm, tokenizer, words)
        assert (scores.forward, scores.backward, scores.pseudo) == pytest.approx(expected, abs=1e-4)
        assert scores.targets == len(words) + 1
        assert scores.unknown == sum(word not in WORDS for word in words)
    assert len({round(scores.forward, 2) for scores in found}) == len(found)


def test_sums_are_the_models_own_losses(bilm, tokenizer):
    batch = tokenizer(SPLIT, is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = bilm(**batch, labels=batch["input_ids"])
    found = score_sentences(bilm, tokenizer, SPLIT)
    targets = sum(scores.targets for scores in found)
    assert targets == sum(len(words) + 1 for words in SPLIT)
    for name in ("forward", "backward"):
        total = sum(getattr(scores, name) for scores in found)
        assert -total / targets == pytest.approx(float(output[f"{name}_loss"]), abs=1e-5)


def test_pseudo_is_the_softmax_of_summed_logits(bilm, tokenizer):
    for words, scores in zip(SPLIT, score_sentences(bilm, tokenizer, SPLIT), strict=True):
        batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            output = bilm(**batch)
        both = torch.log_softmax(output.forward_logits + output.backward_logits, -1)[0]
        expected = both.gather(1, batch["input_ids"].T).sum()
        assert scores.pseudo == pytest.approx(float(expected), abs=1e-4)


def test_sentences_do_not_depend_on_one_another(bilm, tokenizer):
    alone = [score_sentences(bilm, tokenizer, [words])[0] for words in SPLIT]
    for batch_size in (1, 2, 5):
        together = score_sentences(bilm, tokenizer, SPLIT[::-1], batch_size)[::-1]
        for one, other in zip(alone, together, strict=True):
            assert one.forward == pytest.approx(other.forward, abs=1e-4)
            assert one.backward == pytest.approx(other.backward, abs=1e-4)
            assert one.pseudo == pytest.approx(other.pseudo, abs=1e-4)


def test_padding_on_the_left_changes_nothing(bilm, tokenizer):
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    for one, other in zip(*(score_sentences(bilm, tok, SPLIT) for tok in (tokenizer, left)), strict=True):
        assert one.forward == pytest.approx(other.forward, abs=1e-5)


def test_texts_are_split_and_empty_sentences_have_an_end(bilm, tokenizer):
    texts = score_sentences(bilm, tokenizer, ["the cat.", "", "the dog"])
    words = score_sentences(bilm, tokenizer, [["the", "cat", "."], [], ["the", "dog"]])
    assert [scores.targets for scores in texts] == [4, 1, 3]
    for one, other in zip(texts, words, strict=True):
        assert one.forward == pytest.approx(other.forward, abs=1e-5)
    empty = naive(bilm, tokenizer, [])
    assert (words[1].forward, words[1].backward, words[1].pseudo) == pytest.approx(empty, abs=1e-5)
    assert score_sentences(bilm, tokenizer, []) == []


def test_dropout_is_off_while_scoring_and_the_mode_comes_back(bilm, tokenizer):
    expected = score_sentences(bilm, tokenizer, SPLIT)
    bilm.train()
    bilm.softmax.eval()
    try:
        assert score_sentences(bilm, tokenizer, SPLIT) == expected
        assert bilm.elmo.training
        assert not bilm.softmax.training
    finally:
        bilm.eval()


def test_lstm_lm_scores_are_those_of_its_logits(lstm_lm):
    model, tok = lstm_lm
    found = score_sentences(model, tok, SENTENCES, batch_size=2)
    assert found[2].unknown == 1
    for sentence, scores in zip(SENTENCES, found, strict=True):
        ids = [1, *tok(sentence, add_special_tokens=False)["input_ids"], 1]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logs[t, ids[t + 1]]) for t in range(len(ids) - 1))
        assert scores.forward == pytest.approx(expected, abs=1e-4)
        assert (scores.backward, scores.pseudo) == (None, None)
        assert scores.targets == len(ids) - 1
    assert score_sentences(model, tok, SPLIT, batch_size=5)[4].forward == pytest.approx(
        found[4].forward, abs=1e-4
    )
    assert score_sentences(model, tok, []) == []


def test_substitutes_are_the_most_probable_words(bilm, tokenizer):
    words = SPLIT[4]
    batch = tokenizer([words], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        output = bilm(**batch)
    for index in range(len(words)):
        both = torch.softmax(output.forward_logits[0, index] + output.backward_logits[0, index], 0)
        probability = dict(zip(tokenizer.convert_ids_to_tokens(range(len(both))), both.tolist(), strict=True))
        expected = sorted(WORDS, key=lambda word: -probability[word])
        found = lexical_substitutes(bilm, tokenizer, words, index, k=100)
        assert [word for word, _ in found] == expected
        assert dict(found) == pytest.approx({word: probability[word] for word in WORDS}, abs=1e-5)
        assert lexical_substitutes(bilm, tokenizer, words, index, k=4) == found[:4]
    assert heirloom.lexical_substitutes is lexical_substitutes
    assert heirloom.score_sentences is score_sentences


def test_the_word_itself_is_not_seen(bilm, tokenizer):
    one, other = (
        lexical_substitutes(bilm, tokenizer, ["the", word, "sat"], 1, 9) for word in ("cat", "zebra")
    )
    assert [word for word, _ in one] == [word for word, _ in other]
    assert "cat" in dict(one)


def test_bad_places_and_models_are_refused(bilm, tokenizer, lstm_lm):
    for index in (-1, 3):
        with pytest.raises(ValueError, match=rf"index must lie in 0..2 for 3 words, found {index}"):
            lexical_substitutes(bilm, tokenizer, SPLIT[1], index)
    for words in ([], "the cat"):
        with pytest.raises(
            ValueError, match="words must be a list of one word at least, found .*Split the sentence"
        ):
            lexical_substitutes(bilm, tokenizer, words, 0)
    with pytest.raises(ValueError, match="k must be 1 or more, found 0"):
        lexical_substitutes(bilm, tokenizer, SPLIT[1], 0, 0)
    with pytest.raises(ValueError, match="LstmLMForCausalLM holds no softmax over words"):
        lexical_substitutes(*lstm_lm, SPLIT[1], 0)
    with pytest.raises(ValueError, match="ElmoModel holds no softmax .*Convert the original with --softmax"):
        score_sentences(bilm.elmo, tokenizer, SPLIT)
    with pytest.raises(
        ValueError, match="has 4 word ids, but the softmax has 13.*convert again with --vocab"
    ):
        score_sentences(bilm, ElmoTokenizer(), SPLIT)
    with pytest.raises(ValueError, match="must be a list, found the text 'the cat'"):
        score_sentences(bilm, tokenizer, "the cat")
    with pytest.raises(ValueError, match="batch_size must be 1 or more, found 0"):
        score_sentences(bilm, tokenizer, SPLIT, 0)


def test_other_language_models_are_refused(lstm_lm):
    from transformers import GPT2Config, GPT2LMHeadModel

    _, tok = lstm_lm
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=4, n_layer=1, n_head=1, n_positions=8))
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel \(gpt2\) cannot be scored; expected ElmoForPreTraining or"
    ):
        score_sentences(gpt, tok, SENTENCES)
    bare = copy.deepcopy(tok)
    bare.bos_token = None
    with pytest.raises(ValueError, match="no bos_token or no eos_token"):
        score_sentences(lstm_lm[0], bare, SENTENCES)


def table(text: str) -> list[dict]:
    lines = [line.split("\t") for line in text.removesuffix("\n").split("\n")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_the_verb_writes_a_line_a_sentence_in_order(elmo_folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 2)
    source, target = tmp_path / "text.txt", tmp_path / "scores.tsv"
    rows = [*SENTENCES[:2], "", "the\tcat\u2028sat", *SENTENCES[2:]]
    source.write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = [
        "score",
        str(elmo_folder),
        str(source),
        "--output",
        str(target),
        "--batch-size",
        "2",
        "--tokenized",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = table(target.read_text(encoding="utf-8"))
    assert [row["sentence"] for row in found] == [*SENTENCES[:2], "", "the cat sat", *SENTENCES[2:]]
    assert found[2] == dict(zip(scoring.HEADER, ["0.000000"] * 3 + ["0", "0", ""], strict=True))
    model = ElmoForPreTraining.from_pretrained(elmo_folder)
    expected = score_sentences(model, tokenizer, [row.split() for row in rows if row])
    for row, scores in zip([row for row in found if row["sentence"]], expected, strict=True):
        for name in ("forward", "backward", "pseudo"):
            assert float(row[name]) == pytest.approx(getattr(scores, name), abs=1e-4)
        assert (row["targets"], row["unknown"]) == (str(scores.targets), str(scores.unknown))
    targets = sum(scores.targets for scores in expected)
    for name, count in (("forward", targets), ("backward", targets), ("pseudo", targets - len(expected))):
        mean = sum(getattr(scores, name) for scores in expected) / count
        line = next(line for line in result.stderr.splitlines() if line.startswith(name))
        found = [float(number.replace(",", "")) for number in re.findall(r"-?[\d,]+\.?\d*", line)]
        assert found == pytest.approx([math.exp(-mean), mean, count], rel=1e-4)
    assert "unknown   3 of 27 words (11.11%) in 6 sentences" in result.stderr
    assert result.stdout == ""
    before = target.read_bytes()
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1
    assert "exists. Choose another name, or delete it" in again.output
    assert target.read_bytes() == before


def test_the_verb_reads_standard_input_and_tables(elmo_folder, tmp_path):
    piped = CliRunner().invoke(app, ["score", str(elmo_folder), "-"], input=b"The cat.\na dog\n")
    assert piped.exit_code == 0, piped.output
    assert [(row["targets"], row["sentence"]) for row in table(piped.stdout)] == [
        ("4", "The cat."),
        ("3", "a dog"),
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"id": 1, "story": ["The", "cat."]}) + "\n")
    listed = CliRunner().invoke(app, ["score", str(elmo_folder), str(source), "--column", "story"])
    assert [(row["targets"], row["sentence"]) for row in table(listed.stdout)] == [("3", "The cat.")]
    broken = CliRunner().invoke(app, ["score", str(elmo_folder), "-"], input=b"fine\ncaf\xe9\n")
    assert broken.exit_code == 1
    assert "standard input, line 2, is no UTF-8 at byte 3" in broken.stderr


def test_the_verb_scores_an_lstm_lm(lstm_lm, tmp_path):
    model, tok = lstm_lm
    model.save_pretrained(tmp_path / "lm")
    tok.save_pretrained(tmp_path / "lm")
    (tmp_path / "text.txt").write_text("the cat\n\na zebra\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["score", str(tmp_path / "lm"), str(tmp_path / "text.txt")])
    assert result.exit_code == 0, result.output
    rows = table(result.stdout)
    assert [(row["backward"], row["pseudo"], row["targets"]) for row in rows] == [("", "", n) for n in "303"]
    expected = score_sentences(model, tok, ["the cat", "a zebra"])
    assert [float(rows[number]["forward"]) for number in (0, 2)] == pytest.approx(
        [scores.forward for scores in expected], abs=1e-4
    )
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["forward", "unknown"]


def test_bad_files_are_named_and_leave_nothing(elmo_folder, tokenizer, tmp_path):
    ElmoModel(ElmoConfig(**SIZES, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "elmo")
    tokenizer.save_pretrained(tmp_path / "elmo")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    text, latin, blank = (tmp_path / name for name in ("text.txt", "latin.txt", "blank.txt"))
    text.write_text("the cat\n")
    latin.write_bytes(b"fine\ncaf\xe9\n")
    blank.write_text("\n\n")
    target = tmp_path / "out.tsv"
    cases = [
        (elmo_folder, tmp_path / "missing.txt", FileNotFoundError, "no file matches"),
        (elmo_folder, latin, ValueError, "latin.txt, line 2, is no UTF-8"),
        (elmo_folder, blank, ValueError, "blank.txt holds no words"),
        (
            tmp_path / "elmo",
            text,
            ValueError,
            r"holds no softmax over words: its class is \['ElmoModel'\]. Convert",
        ),
        (
            tmp_path / "bert",
            text,
            ValueError,
            "is a bert checkpoint; ELMo with its softmax or lstm-lm is expected",
        ),
        (tmp_path, text, FileNotFoundError, "holds no config.json"),
    ]
    for checkpoint, source, kind, message in cases:
        with pytest.raises(kind, match=message):
            score_file(str(checkpoint), str(source), target)
        assert not target.exists()
    with pytest.raises(FileNotFoundError, match="nowhere does not exist. Create it first"):
        score_file(str(elmo_folder), str(text), tmp_path / "nowhere" / "out.tsv")
