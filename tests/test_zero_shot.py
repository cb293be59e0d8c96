"""Zero-shot ranking: the loop over single tokens, borders that tokens go over, models' positions, and clear errors."""

import inspect
import math

import pytest
import torch
from reference import zero_shot_naive as naive
from stock_lms import bert, bert_lm, fuzz, gpt2, tokenizer
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.sharing.zero_shot import ZeroShotScorer

WORDS = 30
SPACED = tokenizer(WORDS)
ENDED = tokenizer(WORDS, pad_token="[PAD]", eos_token="[EOS]")
CONTEXTS = ["w4 w5 w6", "w7", "w9 w8 w20 w21 w3 w4 w5", "w22 w23"]
CANDIDATES = ["w10 w11 w12 w4", "w13", "w14 w15", "w13 w13"]


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return fuzz(LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=64, **sizes)))


def opt():
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 24, "num_hidden_layers": 2}
    places = {"num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    return fuzz(OPTForCausalLM(OPTConfig(vocab_size=WORDS, **sizes, **places)))


def stock(kind, **options):
    """A small model of another kind of Transformers."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model(
        kind, vocab_size=WORDS, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2, **options
    )
    return fuzz(AutoModelForCausalLM.from_config(config))


def sliding(window):
    return stock("mistral", num_key_value_heads=2, max_position_embeddings=64, sliding_window=window)


def lstm_lm(**options):
    config = LstmLMConfig(
        vocab_size=WORDS, embedding_size=8, cell_size=12, bos_token_id=1, eos_token_id=2, **options
    )
    return fuzz(LstmLMForCausalLM(config))


MODELS = {
    "gpt2": lambda: gpt2(WORDS),
    "llama": llama,
    "opt": opt,
    "sliding window": lambda: sliding(4),
    "bert lm": bert_lm,
    "lstm": lambda: lstm_lm(projection_size=8),
    "lstm adaptive": lambda: lstm_lm(softmax="adaptive", adaptive_cutoffs=[10]),
}


def scores(ranked):
    """In the order of the candidates."""
    return [one.score for one in sorted(ranked, key=lambda one: one.index)]


@pytest.mark.parametrize("words", [SPACED, ENDED], ids=["bos", "eos"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_loops(name, words):
    torch.manual_seed(3)
    model = MODELS[name]().double().train()
    modes = [module.training for module in model.modules()]
    contexts = [*CONTEXTS, "", "w22 w23 w24 w25 w26 w3 w4"]
    for kind in ("sum", "mean", "pmi"):
        found = ZeroShotScorer(model, words, batch_size=3).rank(contexts, CANDIDATES, kind, "w19 w18")
        assert [module.training for module in model.modules()] == modes
        model.eval()
        for context, ranked in zip(contexts, found, strict=True):
            expected = [naive.score(model, words, context, one, kind, "w19 w18") for one in CANDIDATES]
            assert scores(ranked) == pytest.approx(expected, abs=1e-5)
            assert [one.score for one in ranked] == sorted(scores(ranked), reverse=True)
            assert all(one.text == CANDIDATES[one.index] for one in ranked)
            assert [one.tokens for one in sorted(ranked, key=lambda one: one.index)] == [4, 1, 2, 2]
        model.train()


def calls(model):
    """Ids' shapes and lengths of masks of each call of a model, as they come."""
    seen = []

    def note(_, given, named):
        seen.append((tuple(given[0].shape), named["attention_mask"].shape[1]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize("name", ["gpt2", "opt", "lstm", "sliding window"])
def test_a_long_context_is_read_once(name):
    torch.manual_seed(4)
    model = MODELS[name]()
    scorer = ZeroShotScorer(model, SPACED, batch_size=3)
    seen = calls(model)
    long, other, third = (" ".join(f"w{start + number % 9}" for number in range(20)) for start in (4, 14, 20))
    contexts = [long, other, CONTEXTS[0], long, third]
    options = [CANDIDATES, ["w3", "w5 w6 w7"], CANDIDATES[:2], ["w9"], ["w9"]]
    found = scorer.rank(contexts, options, "sum")
    # Whole: a candidate that is alone, and two behind the short [BOS] w4 w5 w6.
    assert seen[0] == ((3, 21), 21)
    # [BOS] and the context without its last word; that word with all of a candidate but its last one.
    assert seen[1:] == [((2, 20), 20), ((3, 4), 24), ((3, 2), 22), ((1, 1), 21)]
    scorer.reuses_context = False
    seen.clear()
    again = scorer.rank(contexts, options, "sum")
    assert {shape[1] == wide for shape, wide in seen} == {True}
    for ours, whole in zip(found, again, strict=True):
        assert [one.index for one in ours] == [one.index for one in whole]
        assert scores(ours) == pytest.approx(scores(whole), abs=1e-5)


def prophet():
    layers = {
        f"num_{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")
    }
    sizes = {"hidden_size": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
    config = ProphetNetConfig(vocab_size=WORDS, **layers, **sizes, is_decoder=True, is_encoder_decoder=False)
    return fuzz(ProphetNetForCausalLM(config))


def dynamic(kind):
    """Rotations that change with the length of a row, or do not."""
    config = llama().config
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    return fuzz(LlamaForCausalLM(config))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (llama, True),
        (lambda: sliding(1), False),
        (lambda: stock("openai-gpt"), False),  # has no cache
        (prophet, False),  # takes one token at a time
        (lambda: stock("roberta", is_decoder=True, max_position_embeddings=64), False),
        (lambda: stock("mamba", state_size=4), False),
        (lambda: dynamic("dynamic"), False),
        (lambda: dynamic("linear"), True),
        (lambda: stock("gpt2", max_position_embeddings=3), False),
    ],
)
def test_caches_that_are_not_exact_are_not_used(model, expected):
    torch.manual_seed(8)
    model = model()
    assert ZeroShotScorer(model, SPACED).reuses_context is expected


def test_a_cache_that_goes_on_otherwise_is_not_used(monkeypatch):
    """What a cache says of itself is not believed."""
    torch.manual_seed(9)
    model = gpt2(WORDS)
    forward = type(model).forward

    def from_place_0(self, input_ids, **named):
        places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return forward(self, input_ids, position_ids=places, **named)

    from_place_0.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), "forward", from_place_0)
    assert not ZeroShotScorer(model, SPACED).reuses_context


@pytest.mark.parametrize("name", ["gpt2", "lstm"])
def test_all_words_together_are_certain(name):
    torch.manual_seed(1)
    names = SPACED.convert_ids_to_tokens(list(range(WORDS)))
    (ranked,) = ZeroShotScorer(MODELS[name](), SPACED).rank(["w4 w5"], names, "sum")
    assert sum(math.exp(one.score) for one in ranked) == pytest.approx(1, abs=1e-5)


def test_each_context_may_have_its_own_candidates():
    torch.manual_seed(2)
    scorer = ZeroShotScorer(gpt2(WORDS), SPACED)
    found = scorer.rank(CONTEXTS[:2], [["w5", "w6 w7"], ["w8"]])
    assert [len(ranked) for ranked in found] == [2, 1]
    alone = scorer.rank(CONTEXTS[1:2], ["w8", "w9 w9"])[0]
    assert found[1][0].score == pytest.approx(scores(alone)[0], abs=1e-5)
    (both,) = scorer.rank(["w4"], ["w5", "w5"])
    assert [one.index for one in both] == [0, 1]
    assert scorer.rank([], ["w4"]) == []


def bytes_of(*merges):
    """Characters that join over spaces, as byte-pair tokenizers join a space with the word behind it."""
    letters = list("abcdno ")
    pieces = [*letters, *("".join(merge) for merge in merges)]
    words = models.BPE({piece: number for number, piece in enumerate(["<s>", *pieces])}, list(merges))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="<s>")


def test_a_space_at_the_end_of_the_context_changes_nothing():
    """It belongs to the word behind it."""
    torch.manual_seed(5)
    words = bytes_of((" ", "a"), (" ", "b"), (" a", "c"))
    model = gpt2(len(words))
    scorer, ids = ZeroShotScorer(model, words), words.convert_tokens_to_ids
    expected = [
        naive.log_probability(model, ids(["<s>", "d", "o"]), ids(own)) for own in ([" ac"], [" b", "c", "n"])
    ]
    for context, candidates in (
        ("do", ["ac", "bcn"]),
        ("do ", ["ac", "bcn"]),
        ("do", [" ac", " bcn"]),
    ):
        (ranked,) = scorer.rank([context], candidates, "sum")
        assert scores(ranked) == pytest.approx(expected, abs=1e-5)
        assert [one.tokens for one in sorted(ranked, key=lambda one: one.index)] == [1, 3]


def test_all_candidates_stand_behind_the_same_tokens():
    """One of them joins with the context's end, so that its end is scored for both."""
    torch.manual_seed(6)
    words = bytes_of(("o", "n"))
    model = gpt2(len(words))
    (ranked,) = ZeroShotScorer(model, words, separator="").rank(["do"], ["n", "c"], "sum")
    ids = words.convert_tokens_to_ids
    expected = [naive.log_probability(model, ids(["<s>", "d"]), ids(own)) for own in (["on"], ["o", "c"])]
    assert scores(ranked) == pytest.approx(expected, abs=1e-5)


def test_long_contexts_lose_their_beginning_and_all_candidates_see_the_same():
    torch.manual_seed(7)
    model = gpt2(WORDS)  # 64 positions
    names = [f"w{3 + number % 20}" for number in range(90)]
    scorer, candidates = ZeroShotScorer(model, SPACED), ["w4", "w5 w6 w7"]
    (ranked,) = scorer.rank([" ".join(names)], candidates, "sum")
    kept = SPACED(" ".join(names[-62:]), add_special_tokens=False)[
        "input_ids"
    ]  # 62 + 3 tokens, the last no input
    expected = [naive.log_probability(model, kept, SPACED(one)["input_ids"]) for one in candidates]
    assert scores(ranked) == pytest.approx(expected, abs=1e-5)
    scorer.rank(["w3"], [" ".join(names[:64])])
    with pytest.raises(
        ValueError, match="a candidate of 65 tokens does not fit into the model's 64 positions"
    ):
        scorer.rank(["w3"], [" ".join(names[:65])])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("w4", ["w5"]), "contexts must be a list, found the text 'w4'"),
        ((["w4"], "w5"), "candidates must be a list, found the text 'w5'"),
        ((["w4"], ["w5"], "median"), "normalization must be one of .*found 'median'"),
        ((["w4"], []), "each context needs a candidate at least"),
        ((["w4", "w5"], [["w5"], []]), "for context 1"),
        ((["w4"], [["w5"], ["w6"]]), "for each of the 1 contexts; found 2 entries"),
        ((["w4"], ["w5", ["w6"]]), "for each of the 1 contexts"),
        ((["w4"], ["w5", ""]), "tokens of their own, found '' behind 'w4'"),
    ],
)
def test_bad_questions(arguments, words):
    with pytest.raises(ValueError, match=words):
        ZeroShotScorer(gpt2(WORDS), SPACED).rank(*arguments)


def test_models_and_tokenizers_that_do_not_fit():
    with pytest.raises(
        ValueError, match="BertForMaskedLM, whose predictions change with tokens to the right"
    ):
        ZeroShotScorer(bert(WORDS), SPACED)
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=30, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="found T5ForConditionalGeneration, which reads something else"):
        ZeroShotScorer(t5, SPACED)
    with pytest.raises(ValueError, match="found GPT2Model, which makes no logits"):
        ZeroShotScorer(gpt2(WORDS).transformer, SPACED)
    with pytest.raises(ValueError, match="the id 29, but the model has 20 words"):
        ZeroShotScorer(gpt2(20), SPACED).rank(["w4"], ["w29"])
    bare = tokenizer(WORDS, pad_token="[PAD]")
    with pytest.raises(ValueError, match="nothing stands before the first scored token of 'w4'"):
        ZeroShotScorer(gpt2(WORDS), bare).rank([""], ["w4"])
    with pytest.raises(ValueError, match="batch_size must be 1 or more, found 0"):
        ZeroShotScorer(gpt2(WORDS), SPACED, batch_size=0)
