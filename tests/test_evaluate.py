"""heirloom evaluate: the libraries' own numbers on known pairs, perplexity as exp(sum / count), clear errors."""

import json
import math
import sys

import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration
from heirloom.sharing.evaluation import evaluate
from heirloom.sharing.scoring import score_sentences
from heirloom.sharing.seq2seq_checkpoints import load
from heirloom.sharing.translation import translate
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.text_metrics import need_libraries, text_scores
from heirloom.training.tokenizers import train_tokenizer

TEXTS = ["The cat sat on the mat.", "A dog barks at the Small cats today.", "", "Nothing at all, it seems."]
REFERENCES = [
    "The cat sat on a mat.",
    "The dogs bark at the small cat today.",
    "Hello.",
    "Nothing at all, it seems.",
]
LIMIT = {"max_new_tokens": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    place = tmp_path_factory.mktemp("checkpoint") / "joint"
    tokenizer, _ = train_tokenizer([*TEXTS, *REFERENCES], "word", 90, tokenized=True)
    config = LstmSeq2SeqConfig(vocab_size=len(tokenizer), embedding_size=6, cell_size=8, upper_size=6)
    model = LstmSeq2SeqForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def files(tmp_path):
    """The texts, and what the folder's model could be asked to say of them."""
    paths = tmp_path / "test.en", tmp_path / "test.de"
    for path, rows in zip(paths, (TEXTS, REFERENCES), strict=True):
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return list(map(str, paths))


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "none"}, {"tokenize": "char"}])
def test_bleu_and_chrf_are_sacrebleus(options):
    bleu, chrf = text_scores(TEXTS, REFERENCES, **options)
    lower = {key: value for key, value in options.items() if key == "lowercase"}
    assert bleu.score == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [REFERENCES], **options).score)
    expected = sacrebleu.metrics.CHRF(**lower).corpus_score(TEXTS, [REFERENCES]).score
    assert chrf.score == pytest.approx(expected)
    assert 20 < bleu.score < 90
    case, splitter = "lc" if lower else "mixed", options.get("tokenize", "13a")
    version = sacrebleu.__version__
    assert bleu.signature == f"nrefs:1|case:{case}|eff:no|tok:{splitter}|smooth:exp|version:{version}"
    assert chrf.signature == f"nrefs:1|case:{case}|eff:yes|nc:6|nw:0|space:no|version:{version}"
    assert bleu.details.split(" ")[1:3] == ["(BP", "="]
    assert bleu.details.startswith(
        f"{sacrebleu.corpus_bleu(TEXTS, [REFERENCES], **options).precisions[0]:.1f}/"
    )


def test_bleu_of_known_pairs():
    """Four of five unigrams, three of four bigrams, ... by hand."""
    (bleu,) = text_scores(["a b c d e"], ["a b c d f"], ["bleu"])
    assert bleu.score == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert [one.score for one in text_scores(REFERENCES, REFERENCES)] == pytest.approx([100, 100])


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_is_the_mean_of_the_librarys(stem):
    found = text_scores(TEXTS, REFERENCES, ["rouge"], stem=stem)
    assert [one.name for one in found] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    for kind, one in zip(("rouge1", "rouge2", "rougeL"), found, strict=True):
        scorer = RougeScorer([kind], use_stemmer=stem)
        rows = [
            scorer.score(reference, text)[kind].fmeasure
            for text, reference in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert one.score == pytest.approx(100 * sum(rows) / 4)
        assert f"stem:{'yes' if stem else 'no'}" in one.signature
    assert found[0].score > found[1].score > 0


def test_bad_metrics_are_refused():
    with pytest.raises(ValueError, match=r"metrics must be some of bleu, chrf, rouge, found \['meteor'\]"):
        text_scores(TEXTS, REFERENCES, ["meteor"])
    with pytest.raises(ValueError, match="found 4 texts and 3 references"):
        text_scores(TEXTS, REFERENCES[:3])
    with pytest.raises(ValueError, match="found one text"):
        text_scores("abc", "abc")
    with pytest.raises(ValueError, match="tokenize must be one of .*13a.*, found '14a'"):
        text_scores(TEXTS, REFERENCES, tokenize="14a")


@pytest.mark.parametrize(
    ("metric", "module"), [("bleu", "sacrebleu"), ("chrf", "sacrebleu"), ("rouge", "rouge_score")]
)
def test_a_missing_library_is_told_before_any_work(metric, module, files, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{metric} needs .*: pip install 'heirloom-lm\[train\]'"):
        need_libraries([metric])
    monkeypatch.setattr("heirloom.sharing.evaluation._is_seq2seq", lambda checkpoint: True)
    result = CliRunner().invoke(app, ["evaluate", "no-such-checkpoint", *files, "--metric", metric])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"heirloom: {metric} needs ")


def test_a_checkpoint_is_scored_on_what_it_translates(folder, files, tmp_path):
    out = tmp_path / "out.txt"
    scores, notes = evaluate(str(folder), files, ["bleu", "chrf", "rouge"], out, num_beams=3, **LIMIT)
    model, source, target = load(str(folder))
    texts = [row[0].text for row in translate(model, source, target, TEXTS, num_beams=3, **LIMIT)]
    assert out.read_text(encoding="utf-8").splitlines() == texts
    assert len(set(texts)) > 2
    assert scores == text_scores(texts, REFERENCES, ["bleu", "chrf", "rouge"])
    assert notes[:2] == ["4 pairs", "blank sources: 1"]
    with pytest.raises(FileExistsError, match=r"out.txt exists"):
        evaluate(str(folder), files, output=out, **LIMIT)


def test_a_translation_that_is_right_has_100(folder, files, tmp_path):
    """The model's own outputs as references: files, order and sides are not confused."""
    out, table = tmp_path / "own.txt", tmp_path / "own.jsonl"
    evaluate(str(folder), files, output=out, **LIMIT)
    scores, _ = evaluate(str(folder), [files[0], str(out)], batch_size=1, **LIMIT)
    assert [one.score for one in scores] == pytest.approx([100, 100])
    rows = zip(TEXTS, out.read_text(encoding="utf-8").split("\n"), strict=False)
    table.write_text(
        "".join(json.dumps({"en": one, "de": two}) + "\n" for one, two in rows), encoding="utf-8"
    )
    columns = {"source_column": "en", "target_column": "de"}
    assert evaluate(str(folder), [str(table)], **columns, **LIMIT)[0] == scores
    with pytest.raises(ValueError, match="no column 'fr' with targets"):
        evaluate(str(folder), [str(table)], source_column="en", target_column="fr")


def test_the_verb_prints_scores_with_signatures(folder, files):
    result = CliRunner().invoke(
        app, ["evaluate", str(folder), *files, "--max-new-tokens", "7", "--lowercase"]
    )
    assert result.exit_code == 0, result.output
    scores, _ = evaluate(str(folder), files, lowercase=True, **LIMIT)
    rows = result.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["BLEU", "chrF2"]
    assert [float(row.split()[1]) for row in rows] == pytest.approx([one.score for one in scores], abs=1e-3)
    assert [row.split()[-1] for row in rows] == [one.signature for one in scores]


def test_files_that_are_not_aligned_name_both_counts(folder, files, tmp_path):
    short = tmp_path / "short.de"
    short.write_text("\n".join(REFERENCES[:3]) + "\n")
    result = CliRunner().invoke(app, ["evaluate", str(folder), files[0], str(short)])
    assert result.exit_code == 1
    assert "test.en has 4 lines" in result.stderr
    assert "short.de has 3" in result.stderr


def test_other_data_than_the_checkpoint_needs_is_refused(folder, files, tmp_path):
    for data in (files[:1], [*files, files[0]], [files[0], "table.csv"]):
        with pytest.raises(ValueError, match="a file of sources and a file of references, or on one table"):
            evaluate(str(folder), data)
    with pytest.raises(ValueError, match="Leave the columns out"):
        evaluate(str(folder), files, source_column="en")
    blank = tmp_path / "blank.de"
    blank.write_text("\n\n \n\n")
    with pytest.raises(ValueError, match="found no reference that is not blank"):
        evaluate(str(folder), [files[0], str(blank)])


def test_rouge_says_that_it_drops_letters(folder, files, tmp_path):
    russian = tmp_path / "test.ru"
    russian.write_text("\n".join(["да нет"] * 4) + "\n", encoding="utf-8")
    _, notes = evaluate(str(folder), [files[0], str(russian)], ["rouge"], **LIMIT)
    assert any("100% of the references' letters" in note for note in notes)
    _, notes = evaluate(str(folder), files, ["rouge"], **LIMIT)
    assert not any("letters" in note for note in notes)


def save_lm(place, kind: str):
    torch.manual_seed(0)
    if kind == "elmo":
        tokenizer = ElmoTokenizer.from_words(["the", "cat", "sat", "on", "mat", "dog", "."])
        config = ElmoConfig(
            char_filters=[[1, 4]],
            char_embedding_size=4,
            projection_size=8,
            cell_size=8,
            num_highway_layers=1,
            vocab_size=len(tokenizer),
        )
        model = ElmoForPreTraining(config)
    else:
        tokenizer, _ = train_tokenizer(["the cat sat on the mat .", "a dog ."], "word", 50, tokenized=True)
        model = LstmLMForCausalLM(LstmLMConfig(vocab_size=len(tokenizer), embedding_size=6, cell_size=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.eval().save_pretrained(place)
    tokenizer.save_pretrained(place)
    return model, tokenizer


@pytest.mark.parametrize("kind", ["elmo", "lstm-lm"])
def test_perplexity_is_exp_of_sum_over_count(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("heirloom.sharing.evaluation.CHUNK", 2)
    model, tokenizer = save_lm(tmp_path / "lm", kind)
    sentences = ["the cat sat on the mat .", "dog", "a purple dog sat ."]
    first, second = tmp_path / "one.txt", tmp_path / "two.txt"
    first.write_text("\n\n".join(sentences[:2]) + "\n")
    second.write_text(sentences[2] + "\n")
    scores, notes = evaluate(str(tmp_path / "lm"), [str(first), str(second)], batch_size=2)
    rows = score_sentences(model, tokenizer, sentences)
    targets = sum(row.targets for row in rows)
    assert targets == 7 + 1 + 5 + 3
    names = ("forward", "backward") if kind == "elmo" else ("forward",)
    expected = [math.exp(-sum(getattr(row, name) for row in rows) / targets) for name in names]
    assert [one.score for one in scores] == pytest.approx(expected, rel=1e-5)
    assert notes[0] == "3 sentences"
    result = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "lm"), str(first), str(second), "--tokenized"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("forward perplexity" if kind == "elmo" else "perplexity")
    for options in (["--metric", "bleu"], ["--num-beams", "2"]):
        refused = CliRunner().invoke(app, ["evaluate", str(tmp_path / "lm"), str(first), *options])
        assert refused.exit_code == 1
        assert "is no encoder-decoder, of which only the perplexity is measured" in refused.stderr
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n")
    with pytest.raises(ValueError, match="blank.txt holds no words"):
        evaluate(str(tmp_path / "lm"), [str(blank)])


def test_no_checkpoint_is_told(tmp_path, files):
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "none"), *files])
    assert result.exit_code == 1
    assert "holds no config.json" in result.stderr
