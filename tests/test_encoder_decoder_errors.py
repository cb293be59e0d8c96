"""Two stock language models to a stock encoder-decoder: which are taken for such, and which are refused."""

import pytest
from stock_lms import BERT, SOURCE_WORDS, TARGET_WORDS, bert, bert_lm, fuzz, gpt2, save, tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BigBirdConfig,
    BigBirdForCausalLM,
    GPT2Config,
    GPT2Model,
    GPTBigCodeConfig,
    GPTBigCodeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from heirloom.conversion.encoder_decoder import convert_stock, encoder_decoder
from heirloom.conversion.stock_models import is_stock
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore")  # notes are warnings, tested by their words below

# Which of both kinds


def test_the_kind_is_found_by_the_models(tmp_path):
    stock = save(bert(), tmp_path / "stock")
    lstm = tmp_path / "lstm"
    LstmLMForCausalLM(
        LstmLMConfig(vocab_size=10, embedding_size=4, cell_size=4, num_hidden_layers=1)
    ).save_pretrained(lstm)
    assert is_stock(stock, stock)
    for pair in ((lstm, lstm), (lstm, None), (None, lstm), (None, None)):
        assert not is_stock(*pair)
    for pair in ((stock, lstm), (lstm, stock)):
        with pytest.raises(ValueError, match="one is heirloom's, the other Transformers' own.*the same kind"):
            is_stock(*pair)
    with pytest.raises(ValueError, match="is alone. Expected both --source and --target"):
        is_stock(stock, None)
    with pytest.raises(ValueError, match="'lstm-lm', which is not of Transformers"):
        encoder_decoder(lstm, gpt2())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="source .*empty holds no config.json"):
        is_stock(tmp_path / "empty", stock)
    with pytest.raises(FileNotFoundError, match="target .*nowhere does not exist, expected a checkpoint"):
        is_stock(stock, tmp_path / "nowhere")


# What is refused


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=TARGET_WORDS, **BERT))


def big_bird():
    config = BigBirdConfig(vocab_size=TARGET_WORDS, is_decoder=True, attention_type="original_full", **BERT)
    return fuzz(BigBirdForCausalLM(config))


def megatron():
    """Its cross-attention takes the target's length for the source's."""
    return fuzz(MegatronBertForCausalLM(MegatronBertConfig(vocab_size=TARGET_WORDS, is_decoder=True, **BERT)))


def big_code(multi_query):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "multi_query": multi_query}
    return GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=TARGET_WORDS, bos_token_id=1, eos_token_id=2, **sizes)
    )


def vit():
    return ViTModel(
        ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32
        )
    )


BAD = {
    "no cross-attention": (
        bert,
        llama,
        "LlamaForCausalLM has no cross-attention: it cannot read a source. Expected GPT-2",
    ),
    "not causal": (bert, lambda: bert(TARGET_WORDS), "is no causal language model.*is_decoder=True"),
    "no head": (
        bert,
        lambda: BertModel(BertConfig(vocab_size=TARGET_WORDS, is_decoder=True, **BERT)),
        "lacks language-model weights: .*Expected a checkpoint of BertLMHeadModel",
    ),
    "no head, GPT-2": (
        bert,
        lambda: GPT2Model(
            GPT2Config(
                vocab_size=TARGET_WORDS, n_embd=24, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2
            )
        ),
        "lacks language-model weights",
    ),
    "no language model": (bert, vit, "'vit', of which Transformers has no causal language model"),
    "target is an encoder-decoder": (bert, t5, "target .*is an encoder-decoder already \\('t5'\\)"),
    "source is an encoder-decoder": (t5, gpt2, "source .*is an encoder-decoder already \\('t5'\\)"),
    "source sees": (vit, gpt2, "'vit', which reads no text"),
    "no start": (
        bert,
        lambda: bert_lm(bos_token_id=None, eos_token_id=None),
        "has no id for decoder_start and eos within its 48 words.*target_tokenizer",
    ),
    "reads the source elsewhere": (bert, big_bird, "cannot be kept: with cross-attention switched off"),
    "one head of keys": (bert, lambda: big_code(True), "cannot have cross-attention: .*Expected GPT-2"),
    "one length for both": (bert, megatron, "cannot read a source: .*Expected GPT-2"),
    "broken in Transformers": (bert, lambda: big_code(False), "cannot read a source: .*Expected GPT-2"),
}


@pytest.mark.parametrize(("source", "target", "words"), BAD.values(), ids=BAD.keys())
def test_models_that_cannot_be_used(source, target, words):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        encoder_decoder(source(), target())


def test_a_headless_folder_is_refused(tmp_path):
    """From a folder, Transformers would only report the missing head, and make it random."""
    headless = BertModel(BertConfig(vocab_size=TARGET_WORDS, is_decoder=True, **BERT))
    with pytest.raises(ValueError, match="target .*lacks language-model weights: cls.predictions"):
        convert_stock(save(bert(), tmp_path / "a"), save(headless, tmp_path / "b"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_refused(tmp_path):
    folder = save(bert(), tmp_path / "a")
    with pytest.raises(FileExistsError, match="is there already and not empty"):
        convert_stock(folder, folder, folder)
    with pytest.raises(FileNotFoundError, match="source .*nowhere does not exist"):
        convert_stock(tmp_path / "nowhere", folder, tmp_path / "out")


def test_a_tokenizer_of_another_vocabulary():
    with pytest.raises(ValueError, match="source's tokenizer has 41 ids, but source .* has 40 words"):
        encoder_decoder(bert(), gpt2(), tokenizer(SOURCE_WORDS + 1))
    with pytest.raises(ValueError, match="target's tokenizer has 49 ids, but target .* has 48 words"):
        encoder_decoder(bert(), gpt2(), None, tokenizer(TARGET_WORDS + 1))
    with pytest.raises(ValueError, match="target's tokenizer has 20 ids, but target .* has 200 words"):
        encoder_decoder(bert(), gpt2(200), None, tokenizer(20))
    with pytest.warns(UserWarning, match="has 48 words, its tokenizer 45 ids: the last are never read"):
        encoder_decoder(bert(), gpt2(), None, tokenizer(45))
    swapped = tokenizer(TARGET_WORDS, ("[EOS]", "[PAD]", "[BOS]"))
    with pytest.raises(ValueError, match="target's tokenizer has bos_token_id 2, but target .* has 1"):
        encoder_decoder(bert(), gpt2(), None, swapped)
