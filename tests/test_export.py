"""Exported graphs give the model's numbers, for other sizes than they were traced with, and hold no weights themselves."""

import importlib.util
import zipfile

import pytest
import torch

from heirloom.conversion import export
from heirloom.conversion.export import (
    ONNX_PACKAGES,
    export_checkpoint,
    export_elmo,
    export_lstm_lm,
    load_exported,
)
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoModel
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM

HAS_ONNX = all(importlib.util.find_spec(name) for name in ONNX_PACKAGES)
FORMATS = ("torch", "onnx") if HAS_ONNX else ("torch",)
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason=f"needs {', '.join(ONNX_PACKAGES)}")
new_torch = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
    reason="ELMo's graph is tested with torch 2.13",
)


def lm(**options) -> LstmLMForCausalLM:
    sizes = {"vocab_size": 30, "embedding_size": 6, "cell_size": 8, "num_hidden_layers": 2}
    return LstmLMForCausalLM(LstmLMConfig(**(sizes | options)))


def elmo_config(**options) -> ElmoConfig:
    sizes = {"vocab_size": 10, "projection_size": 8, "cell_size": 12, "num_hidden_layers": 2}
    chars = {"char_filters": [[1, 4], [3, 8]], "char_embedding_size": 4, "max_characters_per_token": 9}
    return ElmoConfig(**(sizes | chars | options))


def runners(folder):
    """The graphs of a folder, as functions from named tensors to tensors."""
    yield load_exported(folder)
    if HAS_ONNX:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

        def run(**inputs):
            found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            return [torch.from_numpy(one) for one in found]

        yield run


def check_elmo(config, folder, mask) -> None:
    """Compare on sentences of other sizes than those of the trace."""
    model = ElmoModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far enough from zero for the clips
    export_elmo(model, folder, FORMATS)
    model.config.precision = "fp32"  # graphs know no other
    inputs = {"attention_mask": torch.tensor(mask)}
    batch, words = inputs["attention_mask"].shape
    if config.word_embedding_size:
        inputs["input_ids"] = torch.randint(1, config.vocab_size, (batch, words))
    if config.char_embedding_size:
        inputs["char_ids"] = torch.randint(1, 262, (batch, words, config.max_characters_per_token))
    layers = config.num_hidden_layers
    states = (
        torch.randn(layers, batch, 2 * config.projection_size) / 9,
        torch.randn(layers, batch, 2 * config.cell_size),
    )
    with torch.no_grad():
        expected = model(**inputs, states=states, output_hidden_states=True)
    for run in runners(folder):
        found = run(**inputs, h=states[0], c=states[1])
        for ours, theirs in zip(found, (torch.stack(expected.hidden_states), *expected.states), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.slow
@new_torch
@pytest.mark.parametrize(
    "options",
    [
        {"cell_clip": 0.2, "proj_clip": 0.1},
        {"use_skip_connections": False, "forget_bias": 0.0, "word_embedding_size": 5, "precision": "bf16"},
    ],
    ids=["clips", "words-and-characters"],
)
def test_elmo(tmp_path, options):
    mask = [[0, 1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]] if "cell_clip" in options else [[1]]
    check_elmo(elmo_config(**options), tmp_path / "graphs", mask)


@new_torch
def test_elmo_of_words_with_one_layer(tmp_path):
    options = {"char_embedding_size": 0, "word_embedding_size": 8, "cell_size": 8, "num_hidden_layers": 1}
    check_elmo(elmo_config(**options), tmp_path / "graphs", [[1, 1, 1, 1], [0, 1, 0, 0]])


@pytest.mark.parametrize(
    "options", [{}, {"projection_size": 5}, {"softmax": "adaptive", "adaptive_cutoffs": [10]}], ids=str
)
def test_step_of_a_language_model(tmp_path, options):
    model = lm(**options).eval()
    rows = export_lstm_lm(model, tmp_path / "graphs", FORMATS)
    assert {row.file for row in rows} == {f"model.{end}" for end in ("pt2", "onnx")[: len(FORMATS)]}
    assert max(row.difference for row in rows) < 1e-5
    tokens = torch.randint(30, (1, 6))
    with torch.no_grad():
        expected = model(tokens).logits
    for run in runners(tmp_path / "graphs"):
        h, c = torch.zeros(2, 1, model.config.hidden_size), torch.zeros(2, 1, 8)
        for step in range(6):
            logits, h, c = run(input_ids=tokens[:, step], h=h, c=c)
            torch.testing.assert_close(logits, expected[:, step], atol=1e-5, rtol=0)


def test_weights_are_in_safetensors_only_and_no_path_is_told(tmp_path):
    model = lm(vocab_size=4000)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    export_lstm_lm(model, tmp_path / "graphs", FORMATS)
    files = {path.name: path.stat().st_size for path in (tmp_path / "graphs").iterdir()}
    assert files.pop("model.safetensors") > size
    assert len(files) == len(FORMATS)
    assert sum(files.values()) < size / 2
    archive = zipfile.ZipFile(tmp_path / "graphs" / "model.pt2")
    told = b"".join(archive.read(name) for name in archive.namelist())
    if HAS_ONNX:
        told += (tmp_path / "graphs" / "model.onnx").read_bytes()
    assert str(export.__file__).encode() not in told
    assert torch.__file__.rsplit("/", 1)[0].encode() not in told


def test_the_model_stays_as_it_was(tmp_path):
    model = lm().double().train()
    export_lstm_lm(model, tmp_path / "graphs", ("torch",))
    assert model.training
    assert model.dtype == torch.float64
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"formats must be some of torch, onnx, found \['tflite'\]"):
        export_lstm_lm(lm(), tmp_path / "a", ["tflite"])
    with pytest.raises(ValueError, match="found 'torch'"):
        export_elmo(None, tmp_path / "a", "torch")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.pt2; expected a folder that was exported"):
        load_exported(tmp_path)
    broken = lm()
    broken.lm_head.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"Verification failed: logits of model\.pt2 .* not finite"):
        export_lstm_lm(broken, tmp_path / "b", ("torch",))
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(
        RuntimeError, match=r"cannot trace this graph: ZeroDivisionError.*Expected a newer torch"
    ):
        export_lstm_lm(broken, tmp_path / "b", ("torch",))
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"ONNX needs onnx, onnxscript, onnxruntime, .*heirloom-lm\[export\]"
    ):
        export_lstm_lm(lm(), tmp_path / "b")


def test_checkpoints(tmp_path, monkeypatch):
    lm().save_pretrained(tmp_path / "lm")
    rows = export_checkpoint(tmp_path / "lm", tmp_path / "graphs", ("torch",))
    assert [row.output for row in rows] == ["logits", "h_after", "c_after"]
    ElmoForPreTraining(elmo_config()).save_pretrained(tmp_path / "elmo")
    monkeypatch.setattr(export, "export_elmo", lambda model, *rest: type(model).__name__)
    assert export_checkpoint(tmp_path / "elmo", tmp_path / "a", ("torch",)) == "ElmoForPreTraining"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="checkpoint of 'bert', expected 'elmo' or 'lstm-lm'"):
        export_checkpoint(tmp_path / "other", tmp_path / "a", ("torch",))


@needs_onnx
def test_command_line(tmp_path, capsys):
    from heirloom.cli.convert import export as verb

    lm().save_pretrained(tmp_path / "lm")
    verb(str(tmp_path / "lm"), tmp_path / "graphs", "onnx")
    printed = capsys.readouterr().out
    assert "model.onnx  logits         3 x 30           max abs difference" in printed
    assert "model.safetensors" in printed
