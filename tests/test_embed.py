"""heirloom embed: layers, formats, resuming, blank lines, and clear errors."""

import errno
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import load_file

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import ElmoForTokenClassification, ElmoModel
from heirloom.sharing import embedding
from heirloom.sharing.embedding import embed_file
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

SENTENCES = ["The cat sat .", "", "Hi !", "na\u00efve caf\u00e9\u2028x", "The cat sat ."]
SIZES = {"char_filters": [[1, 4], [2, 4]], "char_embedding_size": 4, "projection_size": 8, "cell_size": 16}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("elmo")
    ElmoModel(ElmoConfig(**SIZES, num_highway_layers=1)).save_pretrained(folder)
    ElmoTokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def vectors(checkpoint: Path, sentence: str) -> np.ndarray:
    """All layers of one sentence on its own: (L + 1, n, 2 P)."""
    model, tokenizer = ElmoModel.from_pretrained(checkpoint).eval(), ElmoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer([sentence.split()], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        return torch.cat(model(**batch, output_hidden_states=True).hidden_states).numpy()


@pytest.mark.parametrize("layers", ["all", "top", "average"])
@pytest.mark.parametrize("file_format", ["hdf5", "hdf5-bilm", "parquet", "safetensors"])
def test_every_format_holds_every_sentence(checkpoint, text, tmp_path, layers, file_format):
    target = tmp_path / "out"
    assert embed_file(str(checkpoint), text, target, layers, file_format) == len(SENTENCES)
    found = read(target, file_format)
    for number, sentence in enumerate(SENTENCES):
        expected = vectors(checkpoint, sentence)
        expected = {"all": expected, "top": expected[-1], "average": expected.mean(0)}[layers]
        assert found[number].shape == expected.shape
        np.testing.assert_allclose(found[number], expected, rtol=0, atol=1e-6)
    assert not (tmp_path / "out.partial").exists()


def read(target: Path, file_format: str) -> list[np.ndarray]:
    if file_format == "safetensors":
        tensors = load_file(target)
        return [tensors[str(number)] for number in range(len(SENTENCES))]
    if file_format == "parquet":
        table = parquet.read_table(target)
        assert table["words"].to_pylist() == [sentence.split() for sentence in SENTENCES]
        names = [name for name in table.column_names if name != "words"]
        rows = zip(*[table[name].to_pylist() for name in names], strict=True)
        arrays = [np.array(row, dtype=np.float32).reshape(len(names), -1, 16) for row in rows]
        return [array[0] if names == ["vectors"] else array for array in arrays]
    with h5py.File(target) as file:
        index = json.loads(file["sentence_to_index"][0]) if file_format == "hdf5" else {}
        assert set(file) == {*map(str, range(len(SENTENCES)))} | ({"sentence_to_index"} if index else set())
        if index:
            assert index["The cat sat ."] == "4"  # of equal sentences the last one's number, as AllenNLP
        return [file[str(number)][()] for number in range(len(SENTENCES))]


def test_tables_are_read_by_column(checkpoint, tmp_path):
    rows = [{"id": 1, "story": "Hi !"}, {"id": 2, "story": "The cat sat ."}]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    embed_file(str(checkpoint), source, tmp_path / "out", "top", "safetensors", text_column="story")
    assert load_file(tmp_path / "out")["1"].shape == (4, 16)
    with pytest.raises(ValueError, match=r"no column with text: .*\['id', 'story'\]"):
        embed_file(str(checkpoint), source, tmp_path / "other")


def test_raw_text_is_split_into_words(checkpoint, tmp_path):
    source = tmp_path / "raw.txt"
    source.write_text("Hi, you!\n")
    embed_file(str(checkpoint), source, tmp_path / "spaces", "top", "safetensors")
    embed_file(str(checkpoint), source, tmp_path / "words", "top", "safetensors", raw=True)
    assert [len(load_file(tmp_path / name)["0"]) for name in ("spaces", "words")] == [2, 4]


def test_mix_is_the_one_a_task_head_learned(checkpoint, text, tmp_path):
    with pytest.raises(ValueError, match="has no learned mix: its class is .*Use --layers average"):
        embed_file(str(checkpoint), text, tmp_path / "out", "mix")
    head = ElmoForTokenClassification.from_pretrained(checkpoint, mix_layer_norm="allennlp")
    with torch.no_grad():
        head.mix.scalar_parameters.copy_(torch.tensor([1.0, -1.0, 0.5]))
    folder = tmp_path / "tagger"
    head.save_pretrained(folder)
    ElmoTokenizer().save_pretrained(folder)
    embed_file(str(folder), text, tmp_path / "out", "mix", "safetensors")
    found = load_file(tmp_path / "out")
    batch = ElmoTokenizer()(
        [row.split() for row in SENTENCES], is_split_into_words=True, padding=True, return_tensors="pt"
    )
    head.eval()
    with torch.no_grad():
        mixed = head._mixed(**batch, states=None)[0].numpy()
    for number, sentence in enumerate(SENTENCES):
        # The layer norm's statistics are those of the batch, which are not the same by lengths: shapes and zeros only
        # would be no test, so the batch is the same here (5 sentences fit one batch).
        np.testing.assert_allclose(
            found[str(number)], mixed[number, : len(sentence.split())], rtol=0, atol=1e-5
        )


def test_an_interrupted_run_goes_on(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "SHARD", (2, 1000))
    real, calls = embedding._embed_batch, []

    def interrupted(words, *rest):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(words, *rest)

    monkeypatch.setattr(embedding, "_embed_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_file(str(checkpoint), text, tmp_path / "out", "top", "safetensors")
    assert not (tmp_path / "out").exists()
    done = [name for name in (tmp_path / "out.partial").iterdir() if name.suffix == ".safetensors"]
    assert done
    before = len(calls)
    embed_file(str(checkpoint), text, tmp_path / "out", "top", "safetensors")
    redone = sum(len(words) for words in calls[before:])
    assert redone == len(SENTENCES) - 2 * len(done)
    assert set(load_file(tmp_path / "out")) == set(map(str, range(len(SENTENCES))))


@pytest.mark.parametrize(
    ("step", "limits", "starts"),
    [
        (1, (2, 1000), [0, 2, 4, 6]),
        (1, (1000, 5), [0, 3, 5, 6]),  # of 1, 2, 3, 1, 4, 9, 0 words
        (3, (2, 1000), [0, 3, 6]),
        (3, (1000, 5), [0, 3, 6]),
        (4, (1000, 5), [0, 4]),
        (1, (1000, 1000), [0]),
    ],
)
def test_shards_hold_few_words_and_whole_batches(step, limits, starts, monkeypatch):
    monkeypatch.setattr(embedding, "SHARD", limits)
    sentences = [["word"] * length for length in (1, 2, 3, 1, 4, 9, 0)]
    found = list(embedding._cut(sentences, step))
    assert [start for start, _ in found] == starts
    assert [sentence for _, part in found for sentence in part] == sentences
    assert list(embedding._cut([], step)) == []


def test_parts_of_another_cut_are_not_reused(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "SHARD", (2, 1000))
    monkeypatch.setitem(embedding.WRITERS, "safetensors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed_file(str(checkpoint), text, tmp_path / "out", "top", "safetensors")
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 3
    monkeypatch.undo()
    monkeypatch.setattr(embedding, "SHARD", (3, 1000))
    embed_file(str(checkpoint), text, tmp_path / "out", "top", "safetensors")
    embed_file(str(checkpoint), text, tmp_path / "fresh", "top", "safetensors")
    found, expected = load_file(tmp_path / "out"), load_file(tmp_path / "fresh")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_carried_batches_are_the_same_whatever_the_shards(checkpoint, text, tmp_path, monkeypatch):
    embed_file(str(checkpoint), text, tmp_path / "one", "top", "safetensors", stateful_batch=2)
    monkeypatch.setattr(embedding, "SHARD", (3, 1000))
    embed_file(str(checkpoint), text, tmp_path / "more", "top", "safetensors", stateful_batch=2)
    one, more = load_file(tmp_path / "one"), load_file(tmp_path / "more")
    assert one.keys() == more.keys()
    for key, vector in one.items():
        np.testing.assert_allclose(more[key], vector, rtol=0, atol=1e-6)


def test_other_work_does_not_reuse_the_parts(checkpoint, text, tmp_path, monkeypatch):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "key").write_text("another run")
    (partial / "000000000000.safetensors").write_text("not these")
    embed_file(str(checkpoint), text, tmp_path / "out", "top", "safetensors")
    assert len(load_file(tmp_path / "out")) == len(SENTENCES)


def test_a_folder_of_somebody_else_is_not_touched(checkpoint, text, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="is in the way and no work of heirloom's. Move it"):
        embed_file(str(checkpoint), text, tmp_path / "out")
    assert (tmp_path / "out.partial" / "mine").read_text() == "mine"


def test_states_are_carried_in_file_order(checkpoint, text, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "SHARD", (2, 1000))
    embed_file(str(checkpoint), text, tmp_path / "out", "top", "safetensors", stateful_batch=1)
    found = load_file(tmp_path / "out")
    model, tokenizer, states = ElmoModel.from_pretrained(checkpoint).eval(), ElmoTokenizer(), None
    for number, sentence in enumerate(SENTENCES):
        batch = tokenizer([sentence.split()], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**batch, states=states)
        states = output.states
        np.testing.assert_allclose(found[str(number)], output.last_hidden_state[0].numpy(), rtol=0, atol=1e-6)
    assert not np.allclose(found["0"], found["4"], atol=1e-4)


@pytest.mark.parametrize("place", ["shard", "output", "before"])
def test_a_full_disk_leaves_nothing_that_looks_complete(checkpoint, text, tmp_path, monkeypatch, place):
    real = embedding.save_file

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "shard":
        monkeypatch.setattr(embedding, "save_file", full)
    elif place == "output":
        monkeypatch.setitem(embedding.WRITERS, "hdf5", full)
    else:
        monkeypatch.setattr(embedding.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    with pytest.raises(
        OSError, match="the disk is full: .* was not written. Free some space and run the same command"
    ):
        embed_file(str(checkpoint), text, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert embedding.save_file is real
    embed_file(str(checkpoint), text, tmp_path / "out")
    with h5py.File(tmp_path / "out") as file:
        assert len(file) == len(SENTENCES) + 1


def test_it_is_quiet_where_progress_bars_are_off(checkpoint, text, tmp_path, capfd):
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        embed_file(str(checkpoint), text, tmp_path / "out")
    finally:
        logging.enable_progress_bar()
    assert "Embedding" not in capfd.readouterr().err
    embed_file(str(checkpoint), text, tmp_path / "again")
    assert "Embedding" in capfd.readouterr().err


def test_nothing_is_overwritten(checkpoint, text, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(FileExistsError, match="exists. Choose another name"):
        embed_file(str(checkpoint), text, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_bad_input_is_named(checkpoint, text, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist. Create it first"):
        embed_file(str(checkpoint), text, tmp_path / "nowhere" / "out")
    with pytest.raises(FileNotFoundError, match=r"nothing.txt does not exist. Give a text"):
        embed_file(str(checkpoint), tmp_path / "nothing.txt", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        embed_file(str(tmp_path), text, tmp_path / "out")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        embed_file(str(checkpoint), tmp_path / "latin.txt", tmp_path / "out")
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="is a bert checkpoint; an ELMo checkpoint is expected"):
        embed_file(str(other), text, tmp_path / "out")


def test_an_empty_file_gives_an_empty_output(checkpoint, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    for file_format in embedding.WRITERS:
        assert (
            embed_file(str(checkpoint), tmp_path / "empty.txt", tmp_path / file_format, "top", file_format)
            == 0
        )


def test_the_old_tools_files_are_reproduced(shared, tmp_path):
    from heirloom.conversion import from_bilm

    oracle = shared / "oracles" / "elmo"
    folder = tmp_path / "elmo"
    from_bilm(
        oracle / "std_2hw_skip" / "options.json", oracle / "std_2hw_skip" / "weights.hdf5"
    ).save_pretrained(folder)
    ElmoTokenizer().save_pretrained(folder)
    dumps = {
        "allennlp_elmo_all": ("all", "hdf5", 2),
        "allennlp_elmo_top": ("top", "hdf5", 2),
        "allennlp_elmo_average": ("average", "hdf5", 2),
        "bilm_layers": ("all", "hdf5-bilm", 1),
    }
    for name, (layers, file_format, size) in dumps.items():
        source, target = oracle / "dumps" / "sentences.txt", tmp_path / f"{name}.hdf5"
        embed_file(str(folder), source, target, layers, file_format, stateful_batch=size)
        with h5py.File(target) as ours, h5py.File(oracle / "dumps" / f"{name}.hdf5") as theirs:
            assert set(ours) == set(theirs)
            for key in theirs:
                if key == "sentence_to_index":
                    assert ours[key][0] == theirs[key][0]
                else:
                    np.testing.assert_allclose(ours[key][()], theirs[key][()], rtol=0, atol=1e-5)


def test_the_example_tells_characters_from_contexts(checkpoint, capsys):
    path = Path(__file__).parents[1] / "examples" / "layers_of_a_word.py"
    cosines = runpy.run_path(str(path))["main"](str(checkpoint))
    assert cosines[0] == pytest.approx(1.0, abs=1e-6)
    assert all(cosine < 0.9999 for cosine in cosines[1:])
    assert "LSTM 2" in capsys.readouterr().out


def test_bf16_is_near_and_no_part_of_a_run_in_float32(checkpoint, text, tmp_path):
    exact, half = tmp_path / "exact", tmp_path / "half"
    embed_file(str(checkpoint), text, exact, "top")
    embed_file(str(checkpoint), text, half, "top", precision="bf16")
    one, other = (np.concatenate(read(path, "hdf5")) for path in (exact, half))
    assert 1e-4 < np.linalg.norm(one - other) / np.linalg.norm(one) < 0.02
