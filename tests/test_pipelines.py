"""pipeline("translation") and ("summarization"): registered whatever is imported first, and as good as stock generate()."""

import json
import subprocess
import sys

import pytest
import torch
from test_translation import KINDS, LIMIT, SOURCES, make
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY, check_task

from heirloom.sharing import pipelines
from heirloom.sharing.pipelines import SummarizationPipeline, TranslationPipeline
from heirloom.sharing.seq2seq_checkpoints import longest_target
from heirloom.sharing.translation import translate


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoint") / request.param
    model, source, target = make(request.param)
    model.save_pretrained(place)
    if source is target:
        source.save_pretrained(place)
    else:
        source.save_pretrained(place / "source_tokenizer")
        target.save_pretrained(place / "target_tokenizer")
    return place


@pytest.mark.parametrize(
    "imports",
    [
        "import transformers.pipelines; import heirloom",
        "import heirloom; import transformers.pipelines",
    ],
)
def test_both_tasks_are_known_in_any_order_of_imports(imports):
    code = f"{imports}; from transformers.pipelines import check_task\n"
    code += "print(*(check_task(task)[1]['impl'].__name__ for task in ('translation', 'summarization')))"
    found = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert found == ["TranslationPipeline", "SummarizationPipeline"]


def test_importing_heirloom_imports_no_pipelines():
    code = "import sys, heirloom; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_other_tasks_are_as_they_were():
    assert check_task("text-generation")[0] == "text-generation"
    with pytest.raises(KeyError):
        check_task("question-answering")


def test_a_task_that_someone_else_registered_stays(monkeypatch):
    mine = {"impl": object, "pt": ()}
    monkeypatch.setitem(PIPELINE_REGISTRY.supported_tasks, "translation", mine)
    pipelines.register_pipelines()
    assert PIPELINE_REGISTRY.supported_tasks["translation"] is mine


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_translate(folder, batch_size):
    answer = pipeline("translation", model=str(folder), device="cpu")
    assert type(answer) is TranslationPipeline
    expected = translate(*make(folder.name), SOURCES, num_beams=3, n_best=2, **LIMIT)
    found = answer(SOURCES, num_beams=3, batch_size=batch_size, **LIMIT)
    assert found == [{"translation_text": row[0].text} for row in expected]
    several = answer(SOURCES, num_beams=3, num_return_sequences=2, batch_size=batch_size, **LIMIT)
    assert several == [[{"translation_text": one.text} for one in row] for row in expected]
    assert answer(SOURCES[0], num_beams=3, **LIMIT) == [{"translation_text": expected[0][0].text}]
    assert answer(["", " "], **LIMIT) == [{"translation_text": ""}] * 2
    assert answer([]) == []
    streamed = list(answer(iter_of(SOURCES), num_beams=3, batch_size=batch_size, **LIMIT))
    assert streamed == [[one] for one in found]


def iter_of(rows):
    yield from rows


def test_options_may_be_given_once_for_all(folder):
    answer = pipeline("summarization", model=str(folder), device="cpu", num_beams=3, **LIMIT)
    assert type(answer) is SummarizationPipeline
    expected = translate(*make(folder.name), SOURCES[:2], num_beams=3, **LIMIT)
    assert answer(SOURCES[:2]) == [{"summary_text": row[0].text} for row in expected]
    assert answer(tuple(SOURCES[:2])) == answer(SOURCES[:2])


def test_targets_get_as_many_tokens_as_in_translate(folder):
    answer = pipeline("translation", model=str(folder), device="cpu")
    model = make(folder.name)[0]
    seen = []

    def spy(**options):
        seen.append(options)
        return torch.ones(1, 2, dtype=torch.long)

    answer.model.generate = spy
    answer("cat")
    assert seen.pop()["max_new_tokens"] == longest_target(model, None) in (20, 256)
    answer("cat", max_length=9)
    assert "max_new_tokens" not in seen.pop()


def test_saved_pipelines_come_back(folder, tmp_path):
    answer = pipeline("translation", model=str(folder), device="cpu")
    answer.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "custom_pipelines" not in config  # it would name a file that is not there
    again = pipeline("translation", model=str(tmp_path / "again"), device="cpu")
    assert again(SOURCES, **LIMIT) == answer(SOURCES, **LIMIT)


def test_models_and_tokenizers_may_be_given():
    model, source, target = make("separate")
    answer = pipeline("translation", model=model, tokenizer=source, target_tokenizer=target, device="cpu")
    expected = translate(model, source, target, SOURCES[:1], **LIMIT)
    assert answer(SOURCES[0], **LIMIT) == [{"translation_text": expected[0][0].text}]


def test_prefixes_and_limits(tmp_path):
    model, source, target = make("bart")
    model.config.task_specific_params = {"summarization": {"prefix": "dog "}}
    expected = [row[0].text for row in translate(model, source, target, ["dog sat", "mat sat"], **LIMIT)]
    answer = pipeline("summarization", model=model, tokenizer=source, device="cpu", **LIMIT)
    assert answer("sat") == [{"summary_text": expected[0]}]
    assert answer("sat", prefix="mat ") == [{"summary_text": expected[1]}]
    plain = pipeline("translation", model=model, tokenizer=source, device="cpu", **LIMIT)
    with pytest.raises(ValueError, match=r"has 26 tokens, but the model reads 20 at most.*truncation=True"):
        plain("cat " * 25)
    assert plain("cat " * 25, truncation=True) == plain("cat " * 19)
    with pytest.raises(ValueError, match="a text is expected, found int 3"):
        plain([3])


def test_what_cannot_translate_is_refused(tmp_path):
    from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
    from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM

    lm = LstmLMForCausalLM(LstmLMConfig(vocab_size=9, embedding_size=4, cell_size=4))
    with pytest.raises(ValueError, match="an encoder-decoder is expected"):
        pipeline("translation", model=lm, device="cpu")
    make("separate")[0].save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        pipeline("translation", model=str(tmp_path / "bare"), device="cpu")
