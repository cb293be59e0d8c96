"""Tiny language models of Transformers, and tokenizers, for tests of stock encoder-decoders."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

SOURCE_WORDS, TARGET_WORDS = 40, 48
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {**SIZES, **IDS, "hidden_size": 16, "intermediate_size": 32}


def fuzz(model):
    """Numbers as far from a fresh model's as a trained one's: fresh gains of 1 would hide a second normalisation."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def bert(words=SOURCE_WORDS):
    return fuzz(BertForMaskedLM(BertConfig(vocab_size=words, **BERT)))


def roberta():
    return fuzz(RobertaForMaskedLM(RobertaConfig(vocab_size=SOURCE_WORDS, **BERT)))


def gpt2(words=TARGET_WORDS, n_embd=24, **options):
    options = {"bos_token_id": 1, "eos_token_id": 2} | options
    return fuzz(
        GPT2LMHeadModel(
            GPT2Config(vocab_size=words, n_embd=n_embd, n_layer=2, n_head=2, n_positions=64, **options)
        )
    )


def bert_lm(**options):
    return fuzz(BertLMHeadModel(BertConfig(vocab_size=TARGET_WORDS, is_decoder=True, **BERT | options)))


def tokenizer(words, special=("[PAD]", "[BOS]", "[EOS]"), prefix="w", **names):
    vocabulary = {word: number for number, word in enumerate(special)}
    vocabulary |= {f"{prefix}{number}": number for number in range(len(vocabulary), words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=f"{prefix}{words - 1}"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = names or {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save(model, folder, *tokenizers):
    for each in (model, *tokenizers):
        each.save_pretrained(folder)
    return folder
