"""The cache of words' vectors: exact, bounded, emptied by every change, and not a part of the model."""

import copy
import gc
import pickle
import threading

import pytest
import torch

from heirloom.modeling import word_cache as module
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import ElmoModel
from heirloom.modeling.word_cache import WordCache, parameter_state, word_cache
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

SENTENCES = [["the", "cat", "sat"], ["the", "dog", "sat", "there"], ["a", "cat"]]
KINDS = {
    "characters": {},
    "words and characters": {"word_embedding_size": 5, "vocab_size": 40},
}


def make(kind="characters", **options) -> ElmoModel:
    torch.manual_seed(0)
    sizes = {
        "char_filters": [[1, 4], [3, 6]],
        "char_embedding_size": 4,
        "projection_size": 8,
        "cell_size": 16,
    }
    return ElmoModel(ElmoConfig(**sizes, **KINDS[kind], **options)).eval()


def batch(sentences=SENTENCES, kind="characters") -> dict:
    made = dict(ElmoTokenizer()(sentences, is_split_into_words=True, padding=True, return_tensors="pt"))
    words = sorted({word for sentence in sentences for word in sentence})
    if kind != "characters":
        ids = [[3 + words.index(word) for word in sentence] for sentence in sentences]
        longest = max(map(len, ids))
        made["input_ids"] = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    return made


@torch.no_grad()
def layers(model, inputs) -> torch.Tensor:
    return torch.stack(model(**inputs, output_hidden_states=True).hidden_states)


def kept(model) -> int:
    return len(word_cache(model.token_encoder, model.token_encoder.cached_words))


def count_encoded(model) -> list[int]:
    """Grows by the number of words of every batch that is really encoded."""
    encode, counts = model.token_encoder._encode, []

    def counted(words):
        counts.append(len(words))
        return encode(words)

    model.token_encoder._encode = counted
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_reading_encodes_nothing_and_gives_the_same(kind):
    model, inputs = make(kind), batch(kind=kind)
    model.token_encoder.cached_words = 0
    expected = layers(model, inputs)
    model.token_encoder.cached_words = 100
    counts = count_encoded(model)
    for _ in range(2):
        torch.testing.assert_close(layers(model, inputs), expected, rtol=0, atol=1e-6)
    distinct = len({word for sentence in SENTENCES for word in sentence}) + 2  # and both marks
    assert counts == [distinct]
    assert kept(model) == distinct
    layers(model, batch([["the", "new", "cat"]], kind=kind))
    assert counts[1:] == [3 if kind != "characters" else 1]  # other word ids there, so other words


def test_word_parts_of_a_word_count_too():
    model, inputs = make("words and characters"), batch(kind="words and characters")
    before = layers(model, inputs)
    inputs["input_ids"] = torch.where(inputs["input_ids"] > 0, inputs["input_ids"] + 9, 0)
    after = layers(model, inputs)
    assert (before - after).abs().max() > 1e-3
    model.token_encoder.cached_words = 0
    torch.testing.assert_close(after, layers(model, inputs), rtol=0, atol=1e-6)


CHANGES = {
    "in place": lambda model: model.token_encoder.projection.weight.mul_(2),
    "through data": lambda model: model.token_encoder.projection.weight.data.mul_(2),
    "new data": lambda model: setattr(
        model.token_encoder.projection.weight, "data", model.token_encoder.projection.weight * 2
    ),
    "new parameter": lambda model: setattr(
        model.token_encoder.projection,
        "weight",
        torch.nn.Parameter(model.token_encoder.projection.weight * 2),
    ),
    "loaded": lambda model: model.load_state_dict(
        {name: value * 2 if name.endswith("projection.weight") else value for name, value in model.state_dict().items()}
    ),
    "double": lambda model: model.double(),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_parameter_empties_it(change):
    model, inputs = make(), batch()
    before = layers(model, inputs)
    with torch.no_grad():
        CHANGES[change](model)
    after = layers(model, inputs)
    model.token_encoder.cached_words = 0
    torch.testing.assert_close(after, layers(model, inputs), rtol=0, atol=1e-6)
    if change != "double":
        assert (after - before).abs().max() > 1e-3


def test_nothing_is_kept_in_training_with_gradients_or_under_autocast():
    model, inputs = make(), batch()
    model(**inputs)
    model.train()
    with torch.no_grad():
        model(**inputs)
        model.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**inputs)
    assert kept(model) == 0
    layers(model, inputs)
    assert kept(model) > 0


def test_it_works_in_inference_mode_and_keeps_nothing_of_parameters_made_there():
    model, inputs = make(), batch()
    with torch.inference_mode():
        first = model(**inputs).last_hidden_state.clone()
        assert kept(model) > 0
        torch.testing.assert_close(model(**inputs).last_hidden_state, first, rtol=0, atol=0)
        born = make()
        born(**inputs)
    assert parameter_state(born.token_encoder) is None
    assert kept(born) == 0
    model(**inputs).last_hidden_state.sum().backward()  # vectors kept there do not reach a training


def test_readings_with_and_without_inference_mode_share_it():
    model, first, second = make(), batch([["a", "b"]]), batch([["b", "c"]])
    expected = [layers(copy.deepcopy(model), inputs) for inputs in (first, second)]
    modes = (torch.inference_mode, torch.no_grad, torch.inference_mode)
    for mode, inputs, wanted in zip(modes, (first, second, first), (*expected, expected[0]), strict=True):
        with mode():
            found = torch.stack(model(**inputs, output_hidden_states=True).hidden_states)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert kept(model) == 5


def test_the_words_unseen_for_the_longest_time_make_room():
    cache, encoded = WordCache(3), []

    def encode(words):
        encoded.extend(words[:, 0].tolist())
        return words.float()

    def read(*names):
        words = torch.tensor([[name] for name in names])
        found = cache(words, words[:, 0], (0,), encode)
        assert found.tolist() == words.tolist()

    read(1, 2, 3)
    read(1)
    read(4)  # in the place of 2
    read(1, 3, 4)
    assert encoded == [1, 2, 3, 4]
    read(2)  # in the place of 1
    read(4, 3, 2)
    assert encoded == [1, 2, 3, 4, 2]
    read(5, 6, 7, 8, 9)  # more than fit
    assert len(cache) == 3
    read(7, 8, 9)
    assert encoded[5:] == [5, 6, 7, 8, 9]


def test_words_with_the_same_key_are_told_apart():
    cache = WordCache(4)
    keys = torch.tensor([7])
    for name in (1, 2, 1, 2):
        assert cache(torch.tensor([[name]]), keys, (0,), lambda words: words.float()).item() == name
    assert len(cache) == 1


def test_no_copy_pickle_or_checkpoint_holds_it(tmp_path):
    model, inputs = make(), batch()
    size = len(pickle.dumps(model.state_dict()))
    expected = layers(model, inputs)
    copied = copy.deepcopy(model)
    assert kept(copied) == 0
    torch.testing.assert_close(layers(copied, inputs), expected, rtol=0, atol=1e-6)
    assert len(pickle.dumps(model.state_dict())) == size
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        layers(ElmoModel.from_pretrained(tmp_path), inputs), expected, rtol=0, atol=1e-6
    )


def test_it_dies_with_its_model():
    gc.collect()
    before, model = len(module._caches), make()
    layers(model, batch())
    assert len(module._caches) == before + 1
    del model
    gc.collect()
    assert len(module._caches) == before


def test_threads_read_at_once():
    model = make()
    model.token_encoder.cached_words = 4
    texts = [batch([[f"w{n}", f"w{n + 1}", "the"]]) for n in range(20)]
    expected = [layers(copy.deepcopy(model), text) for text in texts]
    results = {}

    def read(number):
        results[number] = [layers(model, text) for text in texts]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for found in results.values():
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert len(results) == 3
