"""bilm-tf's files to heirloom and back, over all the forms that they are found in."""

import json
import warnings

import numpy as np
import pytest
import torch
from reference.bilm_files import random_weights, state_dict, tiny_options
from weights import ORACLE, read_arrays, write_arrays, write_bilm_files, write_vocabulary

from heirloom import ElmoForPreTraining, ElmoForTokenClassification, ElmoModel, ElmoTokenizer
from heirloom.conversion import from_bilm, to_bilm
from heirloom.conversion.bilm import read_bilm
from heirloom.conversion.saving import save_bilm, save_checkpoint

CASES = sorted(path.parent.name for path in ORACLE.glob("*/expected.npz"))
needs_oracle = pytest.mark.skipif(not CASES, reason="the oracle files (../shared/oracles/elmo) are not here")
DEEP = {"lstm_dim": 6, "lstm_projection_dim": 6}
VARIATIONS = {  # options that differ, then arguments of random_weights
    "published": ({}, {}),
    "one layer": ({"lstm_n_layers": 1}, {}),
    "four layers": ({"lstm_n_layers": 4}, {}),
    "no highway": ({"cnn_n_highway": 0}, {}),
    "no token projection": ({"lstm_projection_dim": 9, "cnn_filters": [[1, 4], [2, 5]]}, {}),
    "cells not projected": (DEEP, {}),
    "tanh": ({"cnn_activation": "tanh"}, {}),
    "no residual": ({"lstm_use_skip_connections": False}, {}),
    "no clips": ({"lstm_cell_clip": None, "lstm_proj_clip": None}, {}),
    "300 characters": ({"cnn_n_characters": 301}, {"char_rows": 300}),
    "62 characters": ({"cnn_n_characters": 62}, {"char_rows": 62}),
    "261 in options": ({"cnn_n_characters": 261}, {}),
    "10 characters a word": ({"cnn_max_characters_per_token": 10}, {}),
    "softmax": ({"n_tokens_vocab": 7}, {"words": 7}),
    "word mode": ({"char_cnn": None, "n_tokens_vocab": 7}, {"words": 7, "word_size": 6}),
}


def make(folder, changes=(), drawing=(), **more):
    options = tiny_options(**dict(changes))
    arrays = random_weights(options, **dict(drawing), dtype=np.float32)
    softmax = {name: arrays.pop(name) for name in list(arrays) if name.startswith("softmax/")}
    options = {name: value for name, value in options.items() if value is not None} | more
    return write_bilm_files(folder, options, arrays, softmax), arrays | softmax, options


def quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_bilm(*args, **kwargs)


def written(folder):
    arrays = read_arrays(folder / "weights.hdf5")
    if (folder / "softmax.hdf5").exists():
        arrays |= read_arrays(folder / "softmax.hdf5")
    return arrays


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == np.asarray(array, np.float32).tobytes(), name


@needs_oracle
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_oracle_and_back(case, tmp_path):
    torch.set_num_threads(1)  # the models are too small for more
    folder = ORACLE / case
    model = from_bilm(folder / "options.json", folder / "weights.hdf5")
    expected, expected64 = np.load(folder / "expected.npz"), np.load(folder / "expected64.npz")
    for dtype, file, atol in ((torch.float32, expected, 1e-5), (torch.float64, expected64, 1e-6)):
        model.to(dtype)
        states = None
        for step, batch in enumerate("abcad"):
            ids = torch.tensor(expected[f"ids/{batch}"])
            mask = torch.tensor(expected[f"mask_full/{batch}"]).sum(1) - 2
            mask = torch.arange(ids.shape[1]) < mask[:, None]
            run = {"output_hidden_states": True, "keep_boundaries": True}
            fresh = model(char_ids=ids, attention_mask=mask, **run)
            carried = model(char_ids=ids, attention_mask=mask, states=states, **run)
            states = carried.states
            for kind, outputs in ((f"stateless/{batch}", fresh), (f"stateful/{step}", carried)):
                found = {f"{kind}/layer{k}": layer for k, layer in enumerate(outputs.hidden_states)}
                found |= {f"{kind}/h": outputs.states[0], f"{kind}/c": outputs.states[1]}
                for key, value in found.items():
                    if key in file:
                        np.testing.assert_allclose(value.detach().numpy(), file[key], rtol=0, atol=atol)
    to_bilm(model.float(), tmp_path)
    assert_same_bits(written(tmp_path), read_arrays(folder / "weights.hdf5"))


@needs_oracle
@pytest.mark.parametrize("run", ["char_full", "char_sampled", "word_full"])
@pytest.mark.parametrize("state", ["init", "final"])
def test_training_files_hold_their_own_softmax(run, state, tmp_path):
    folder = ORACLE / "training" / run
    vocab = ORACLE / "training" / "vocab.txt"
    model = from_bilm(folder / "options.json", folder / f"{state}.hdf5", vocab=vocab)
    assert isinstance(model, ElmoForPreTraining)
    assert (model.config.vocab_size, model.config.bos_token_id, model.config.dropout) == (25, 1, 0.0)
    to_bilm(model, tmp_path, vocab=vocab)
    assert_same_bits(written(tmp_path), read_arrays(folder / f"{state}.hdf5"))
    assert (tmp_path / "vocab.txt").read_bytes() == vocab.read_bytes()


@pytest.mark.parametrize("variation", VARIATIONS)
def test_variations_and_back(variation, tmp_path):
    paths, arrays, options = make(tmp_path / "original", *VARIATIONS[variation])
    model = quietly(**paths)
    assert not model.training
    assert model.dtype == torch.float32
    assert isinstance(model, ElmoForPreTraining if "softmax" in paths else ElmoModel)
    expected = state_dict(arrays)
    found = {name.removeprefix("elmo."): weight for name, weight in model.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight.float()), name

    to_bilm(model, tmp_path / "back")
    assert_same_bits(written(tmp_path / "back"), arrays)
    back = json.loads((tmp_path / "back" / "options.json").read_text())
    if "char_cnn" in options:
        options["char_cnn"]["n_characters"] = len(arrays["char_embed"]) + 1
        options.pop("n_tokens_vocab", None)
    assert back == options
    softmax = tmp_path / "back" / "softmax.hdf5"
    again = quietly(
        tmp_path / "back" / "options.json",
        tmp_path / "back" / "weights.hdf5",
        softmax if softmax.exists() else None,
    )
    assert again.config.to_dict() == model.config.to_dict()


def test_missing_options_have_the_defaults_of_the_original(tmp_path):
    paths, _, options = make(tmp_path, {"lstm_n_layers": 1, "cnn_n_highway": 0})
    for key in ("n_layers", "cell_clip", "proj_clip", "use_skip_connections"):
        del options["lstm"][key]
    for key in ("n_highway", "n_characters"):
        del options["char_cnn"][key]
    config = from_bilm(options, paths["weights"]).config
    assert (config.num_hidden_layers, config.num_highway_layers) == (1, 0)
    assert (config.cell_clip, config.proj_clip, config.use_skip_connections) == (None, None, False)
    assert (config.forget_bias, config.char_vocab_size) == (1.0, 262)


def test_a_clip_of_zero_is_none_with_a_warning(tmp_path):
    paths, _, _ = make(tmp_path, {"lstm_cell_clip": 0})
    with pytest.warns(UserWarning, match=r"lstm\.cell_clip is 0, which is taken as no clipping"):
        assert from_bilm(**paths).config.cell_clip is None


def test_training_keys_are_known_others_are_named(tmp_path):
    known = {
        "n_epochs": 10,
        "batch_size": 1,
        "bidirectional": True,
        "all_clip_norm_val": 10.0,
        "dropout": 0.2,
    }
    paths, _, options = make(tmp_path, **known)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_bilm(**paths).config.dropout == 0.2
    options["lstm"]["celclip"] = options["colour"] = 3
    with pytest.warns(UserWarning, match=r"unknown options are ignored: \['colour', 'lstm\.celclip'\]"):
        from_bilm(options, paths["weights"])


def test_marks_of_small_inventories_are_the_last_rows(tmp_path):
    paths, _, _ = make(tmp_path / "a", {}, {"char_rows": 62})
    with pytest.warns(UserWarning, match=r"62 rows, fewer than the 261.*last five rows \(ids 58\.\.62\)"):
        config = from_bilm(**paths).config
    marks = [getattr(config, f"{mark}_char_id") for mark in ("bos", "eos", "bow", "eow", "pad")]
    assert marks == [58, 59, 60, 61, 62]
    paths, _, _ = make(tmp_path / "b", {}, {"char_rows": 300})
    with pytest.warns(UserWarning, match="n_characters is 262, char_embed has 300 rows; the rows decide"):
        config = from_bilm(**paths).config
    assert (config.char_vocab_size, config.bos_char_id, config.pad_char_id) == (301, 257, 261)


NAMINGS = {
    "one layer's own form": lambda name: name.replace("/MultiRNNCell/Cell0", ""),
    "lm/": lambda name: f"lm/{name}",
    "TensorFlow's variables": lambda name: (
        "lm/"
        + name.replace("/RNN/MultiRNNCell/Cell", "/rnn/multi_rnn_cell/cell_")
        .replace("LSTMCell/W_0", "lstm_cell/kernel")
        .replace("LSTMCell/B", "lstm_cell/bias")
        .replace("LSTMCell/W_P_0", "lstm_cell/projection/kernel")
        + ":0"
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_other_names_of_the_datasets(naming, tmp_path):
    paths, arrays, _ = make(tmp_path, {"lstm_n_layers": 1})
    write_arrays(paths["weights"], {NAMINGS[naming](name): array for name, array in arrays.items()})
    to_bilm(from_bilm(**paths), tmp_path / "back")
    assert_same_bits(written(tmp_path / "back"), arrays)


@pytest.mark.parametrize("beside", [False, True])
def test_a_softmax_in_the_weights(beside, tmp_path):
    paths, arrays, _ = make(tmp_path, {}, {"words": 7})
    write_arrays(paths["weights"], arrays)
    if not beside:
        model = from_bilm(paths["options"], paths["weights"])
    else:
        other = {"softmax/W": arrays["softmax/W"] + 1, "softmax/b": arrays["softmax/b"] + 1}
        write_arrays(paths["softmax"], other)
        arrays |= other
        with pytest.warns(
            UserWarning, match="softmax/W is left unread: the softmax is taken from softmax.hdf5"
        ):
            model = from_bilm(**paths)
    assert isinstance(model, ElmoForPreTraining)
    assert torch.equal(model.softmax.weight[1:], torch.tensor(arrays["softmax/W"]))
    assert not model.softmax.weight[0].any()
    assert not model.softmax.bias[0]


def test_a_softmax_that_is_the_word_table(tmp_path):
    """share_embedding_softmax: such files hold the softmax's bias only."""
    paths, arrays, _ = make(tmp_path, *VARIATIONS["word mode"], share_embedding_softmax=True)
    arrays.pop("softmax/W")
    write_arrays(paths["weights"], arrays)
    with pytest.warns(UserWarning, match="embedding is used for it"):
        model = from_bilm(paths["options"], paths["weights"])
    table = model.elmo.token_encoder.word_embeddings.weight
    assert torch.equal(table[1:], torch.tensor(arrays["embedding"]))
    assert model.softmax.weight is table  # training goes on tied
    assert model.config.tie_word_embeddings

    to_bilm(model, tmp_path / "back")
    assert_same_bits(written(tmp_path / "back"), arrays)
    options = json.loads((tmp_path / "back" / "options.json").read_text())
    assert options["share_embedding_softmax"] is True
    back = {name: tmp_path / "back" / f"{name}.hdf5" for name in ("weights", "softmax")}
    again = quietly(tmp_path / "back" / "options.json", **back)
    assert again.config.to_dict() == model.config.to_dict()
    assert again.softmax.weight is again.elmo.token_encoder.word_embeddings.weight


def test_a_tied_model_is_verified_both_ways(tmp_path):
    paths, arrays, _ = make(tmp_path, *VARIATIONS["word mode"])
    arrays.pop("softmax/W")
    write_arrays(paths["weights"], arrays)
    conversion = read_bilm(paths["options"], paths["weights"])
    rows = save_checkpoint(conversion, tmp_path / "checkpoint")
    model = ElmoForPreTraining.from_pretrained(tmp_path / "checkpoint")
    assert model.softmax.weight is model.elmo.token_encoder.word_embeddings.weight
    with torch.no_grad():
        model.softmax.weight[1:] += 1
    again, _ = save_bilm(model, tmp_path / "back")
    assert {row.group for row in again} == {row.group for row in rows} >= {"embedding", "softmax"}
    arrays["embedding"] = arrays["embedding"] + 1
    assert_same_bits(written(tmp_path / "back"), arrays)


def test_an_adaptive_softmax_has_no_place_in_the_format(tmp_path):
    config = quietly(**make(tmp_path, *VARIATIONS["softmax"])[0]).config
    config.softmax, config.adaptive_cutoffs = "adaptive", [3]
    with pytest.warns(UserWarning, match="no place for an adaptive softmax; only the biLM was written"):
        to_bilm(ElmoForPreTraining(config), tmp_path / "back")
    assert not (tmp_path / "back" / "softmax.hdf5").exists()


def test_a_dumped_word_table_beside_characters_is_reported(tmp_path):
    paths, arrays, _ = make(tmp_path)
    write_arrays(paths["weights"], arrays | {"embedding": np.zeros((9, 6), np.float32)})
    with pytest.warns(UserWarning, match="embedding is left unread.*dumped table of word vectors"):
        assert from_bilm(**paths).config.vocab_size == 4


def test_a_projection_between_equal_sizes_is_kept(tmp_path):
    paths, arrays, _ = make(tmp_path, *VARIATIONS["no token projection"])
    draw = np.random.default_rng(1).standard_normal
    arrays |= {"CNN_proj/W_proj": draw((9, 9)), "CNN_proj/b_proj": draw(9)}
    write_arrays(paths["weights"], arrays)
    model = from_bilm(**paths)
    assert model.config.use_token_projection
    with pytest.warns(UserWarning, match="AllenNLP reads it, bilm-tf leaves such a layer out"):
        to_bilm(model, tmp_path / "back")
    assert_same_bits(written(tmp_path / "back"), arrays)


def test_half_precision_is_exact_and_double_is_told(tmp_path):
    paths, arrays, _ = make(tmp_path)
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    write_arrays(paths["weights"], halves)
    to_bilm(from_bilm(**paths), tmp_path / "back")
    assert_same_bits(written(tmp_path / "back"), halves)
    import h5py

    with h5py.File(paths["weights"], "a") as file:
        del file["CNN/b_cnn_0"]
        file["CNN/b_cnn_0"] = np.full(4, 0.1, np.float64)
    with pytest.warns(UserWarning, match=r"float64 rounded to float32 in \['CNN/b_cnn_0'\]"):
        from_bilm(**paths)


def test_a_vocabulary_sets_sizes_and_marks(tmp_path):
    paths, _, _ = make(tmp_path)
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("the\n<UNK>\n</S>\n<S>\n!!!MAXTERMID\n!\n", encoding="utf-8")
    model = from_bilm(**paths, vocab=vocab)
    assert (model.config.vocab_size, model.config.bos_token_id, model.config.eos_token_id) == (6, 4, 3)
    words = ["the", "<UNK>", "</S>", "<S>", "!"]
    assert from_bilm(**paths, vocab=words).config.vocab_size == 6
    to_bilm(model, tmp_path / "back", vocab=ElmoTokenizer(vocab_file=str(vocab)))
    assert (tmp_path / "back" / "vocab.txt").read_text() == "the\n<UNK>\n</S>\n<S>\n!\n"


def test_another_forget_bias_is_folded_and_told(tmp_path):
    paths, arrays, _ = make(tmp_path)
    model = from_bilm(**paths)
    model.config.forget_bias = 0.0
    with torch.no_grad():
        for layer in [*model.lstm.forward_layers, *model.lstm.backward_layers]:
            layer.forget_bias = 0.0
            layer.bias[10:20] += 1.0
    with pytest.warns(UserWarning, match=r"forget bias is 0.*largest rounding difference \d"):
        to_bilm(model, tmp_path / "back")
    found = written(tmp_path / "back")
    for name, array in arrays.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=2e-7)


def test_a_task_heads_bilm_is_written(tmp_path):
    paths, arrays, _ = make(tmp_path)
    model = from_bilm(**paths)
    tagger = ElmoForTokenClassification(model.config)
    tagger.elmo.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"no place for the task head; not written: \['classifier', 'mix'\]"):
        to_bilm(tagger, tmp_path / "back")
    assert_same_bits(written(tmp_path / "back"), arrays)


def test_files_are_not_replaced(tmp_path):
    paths, _, _ = make(tmp_path)
    before = paths["weights"].read_bytes()
    with pytest.raises(FileExistsError, match=r"options\.json is there already. Choose another folder"):
        to_bilm(from_bilm(**paths), tmp_path)
    assert paths["weights"].read_bytes() == before


def test_the_softmax_scores_words(tmp_path):
    paths, _, _ = make(tmp_path, {}, {"words": 7})
    model = from_bilm(**paths, vocab=write_vocabulary(tmp_path / "vocab.txt", 7))
    batch = ElmoTokenizer(vocab_file=str(tmp_path / "vocab.txt"))(
        [["word0", "word1"], ["word2"]], is_split_into_words=True, padding=True, return_tensors="pt"
    )
    assert torch.isfinite(model(**batch, labels=batch["input_ids"]).loss)
