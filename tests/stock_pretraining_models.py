"""Tiny stock models for pre-training, and collators and rows that fit them."""

import copy

import numpy as np
import torch
from stock_lms import fuzz, tokenizer
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForPreTraining,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    CamembertConfig,
    CamembertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from heirloom.objectives.noise import Compose, ReplacedTokenNoise, TokenDeletion
from heirloom.objectives.permutation import DataCollatorForPermutationLanguageModeling, PermutationTargets
from heirloom.objectives.pretraining_collators import (
    DataCollatorForDenoising,
    DataCollatorForMaskedLanguageModeling,
    DataCollatorForMass,
    DataCollatorForReplacedTokenDetection,
    DataCollatorForSpanCorruption,
)
from heirloom.objectives.text_packing import DataCollatorForCausalLanguageModeling

WORDS = 60
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "<extra_id_1>", "<extra_id_0>")
NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
WORDPIECES = tokenizer(WORDS, SPECIAL, **NAMES)
LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
IDS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {**LAYERS, **IDS, "max_position_embeddings": 40}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SEQ2SEQ = {"d_model": 16, "decoder_start_token_id": 2, "vocab_size": WORDS, "pad_token_id": 0}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "forced_eos_token_id": 2}

MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**COMMON, **STILL)),
    "bert pairs": lambda: BertForPreTraining(BertConfig(**COMMON, **STILL)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**COMMON, **STILL, type_vocab_size=1)),
    "xlm-roberta": lambda: XLMRobertaForMaskedLM(XLMRobertaConfig(**COMMON, **STILL)),
    "camembert": lambda: CamembertForMaskedLM(CamembertConfig(**COMMON, **STILL)),
    "mpnet": lambda: MPNetForMaskedLM(MPNetConfig(**COMMON, **STILL)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**COMMON, **STILL, embedding_size=8)),
    "albert pairs": lambda: AlbertForPreTraining(
        AlbertConfig(**COMMON, **STILL, embedding_size=8, classifier_dropout_prob=0.0)
    ),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**COMMON, **STILL, embedding_size=8)),
    "discriminator": lambda: ElectraForPreTraining(ElectraConfig(**COMMON, **STILL, embedding_size=8)),
    "ernie": lambda: ErnieForMaskedLM(ErnieConfig(**COMMON, **STILL)),
    "ernie pairs": lambda: ErnieForPreTraining(ErnieConfig(**COMMON, **STILL)),
    "megatron": lambda: MegatronBertForPreTraining(MegatronBertConfig(**COMMON, **STILL)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=WORDS, dim=16, hidden_dim=24, n_layers=1, n_heads=2, dropout=0.0, attention_dropout=0.0
        )
    ),
    "deberta-v2": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**COMMON, **STILL)),
    "deberta-v2 new": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**COMMON, **STILL, legacy=False)),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**COMMON, cls_token_id=1, sep_token_id=2, attn_implementation="eager")
    ),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SEQ2SEQ, **BART, max_position_embeddings=40)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(**SEQ2SEQ, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=0.0)
    ),
    "mass": lambda: EncoderDecoderModel(
        EncoderDecoderConfig.from_encoder_decoder_configs(
            BertConfig(**COMMON, **STILL), BertConfig(**COMMON, **STILL)
        )
    ),
    "xlnet": lambda: XLNetLMHeadModel(
        XLNetConfig(vocab_size=WORDS, d_model=16, n_layer=1, n_head=2, d_inner=24, dropout=0.0)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=40,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
}
COLLATORS = {
    "discriminator": DataCollatorForReplacedTokenDetection(WORDPIECES, ReplacedTokenNoise()),
    "bart": DataCollatorForDenoising(WORDPIECES, Compose((TokenDeletion(0.2),))),
    "t5": DataCollatorForSpanCorruption(WORDPIECES),
    "mass": DataCollatorForMass(WORDPIECES),
    "xlnet": DataCollatorForPermutationLanguageModeling(WORDPIECES, PermutationTargets(unit="token")),
    "gpt2": DataCollatorForCausalLanguageModeling(WORDPIECES),
}
PAIRS = {"bert pairs": "next_sentence_label", "ernie pairs": "next_sentence_label"}
PAIRS |= {"megatron": "next_sentence_label", "albert pairs": "sentence_order_label"}
GATHERED = [name for name in MODELS if name not in COLLATORS]


def make(name):
    torch.manual_seed(1)
    return fuzz(MODELS[name]())


def collator_of(name):
    default = DataCollatorForMaskedLanguageModeling(WORDPIECES)
    return copy.copy(COLLATORS.get(name, default))


def rows_of(name, lengths=(4, 9, 30, 12, 25, 5, 18, 7)):
    """Rows of very different lengths, so that means of batch means would be wrong; some pairs without a label."""
    if name == "xlnet":  # of fewer tokens, a target may see none, and then attends to all alike, padding too
        lengths = [length + 8 for length in lengths]
    rng, rows = np.random.default_rng(5), []
    for number, length in enumerate(lengths):
        ids = rng.integers(len(SPECIAL), WORDS, length)
        ids[0], ids[-1] = 1, 2
        rows.append({"input_ids": ids.tolist()})
        if name in PAIRS:
            rows[-1] |= {"token_type_ids": [int(place > length // 2) for place in range(length)]}
            rows[-1][PAIRS[name]] = (0, 1, 1, -100)[number % 4]
    return rows


def batch_of(name):
    return collator_of(name)(rows_of(name))


def plain_sgd(folder, rows, **more) -> TrainingArguments:
    """Options of a Trainer that logs each step and changes no weight, unless `more` says so; rows of a batch."""
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "learning_rate": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**arguments | more)
