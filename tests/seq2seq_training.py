"""Tiny encoder-decoders, ours and stock, with pairs, texts, files and trainings of a second: what tests of joint training share."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    TrainingArguments,
)

from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration
from heirloom.objectives.seq2seq import (
    MonolingualCollator,
    ParallelCollator,
)
from heirloom.sharing.runs import run_seq2seq
from heirloom.training.seq2seq import train_seq2seq
from heirloom.training.seq2seq_arguments import Seq2SeqArguments
from heirloom.training.seq2seq_trainer import JointSeq2SeqTrainer, MonolingualText
from heirloom.training.tokenizers import train_tokenizer
from heirloom.training.trainer import train_evaluate_save

WORDS = 23
TRANSFORMER = {
    "vocab_size": WORDS,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}
OURS = {
    "vocab_size": WORDS,
    "embedding_size": 6,
    "cell_size": 8,
    "upper_size": 6,
    "num_hidden_layers": 2,
    "dropout": 0.0,
    "initializer_range": 0.4,
}


def ours(**changes):
    return LstmSeq2SeqForConditionalGeneration(LstmSeq2SeqConfig(**OURS | changes))


def bert_to_gpt2():
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "initializer_range": 0.3,
    }
    encoder = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    decoder = GPT2Config(
        vocab_size=WORDS,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=1,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = (
        1,
        1,
        1,
    )  # GPT-2 pads with its end
    return EncoderDecoderModel(config=config)


def bart():
    return BartForConditionalGeneration(BartConfig(**TRANSFORMER))


def t5():
    sizes = {"vocab_size": WORDS, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(**sizes, dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0, eos_token_id=1)
    )


def marian():
    return MarianMTModel(MarianConfig(**TRANSFORMER, forced_eos_token_id=None))


STOCK = {"bert to gpt2": bert_to_gpt2, "bart": bart, "t5": t5, "marian": marian}
MODELS = {"ours": ours, **STOCK}


def ids(count: int, seed: int, longest: int = 9) -> list[list[int]]:
    """Sentences of very different lengths, so that means of batch means would be wrong."""
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=chance).tolist()
    return [torch.randint(3, WORDS, (length,), generator=chance).tolist() for length in lengths]


def pairs(count: int = 16, seed: int = 0) -> list[dict]:
    sources, targets = ids(count, seed), ids(count, seed + 1)
    return [
        {"input_ids": source, "labels": [*target, 1]} for source, target in zip(sources, targets, strict=True)
    ]


def texts(sides=("source", "target"), batch_size: int | None = None, **changes) -> list[MonolingualText]:
    return [
        MonolingualText(
            **{
                "collate": MonolingualCollator(side, [1], [1]),
                "train": ids(40, 10 + number),
                "validation": ids(7, 20 + number),
                "batch_size": batch_size,
            }
            | changes
        )
        for number, side in enumerate(sides)
    ]


def settings(folder, kind=Seq2SeqTrainingArguments, **changes):
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return kind(output_dir=str(folder), **given | changes)


class Gradients(TrainerCallback):
    def __init__(self):
        self.of_steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of_steps.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )


def make(
    model,
    folder,
    monolingual=(),
    kind=JointSeq2SeqTrainer,
    forgetting=None,
    lm_weight_schedule="constant",
    data_collator=None,
    eval_data_collator=None,
    **changes,
):
    gradients = Gradients()
    own = {"monolingual": monolingual, "forgetting": forgetting, "lm_weight_schedule": lm_weight_schedule}
    own = {} if kind is Seq2SeqTrainer else own | {"eval_data_collator": eval_data_collator}
    trainer = kind(
        model=model,
        args=settings(folder, **changes),
        train_dataset=pairs(),
        eval_dataset=pairs(10, 7),
        data_collator=data_collator or ParallelCollator(),
        callbacks=[gradients],
        **own,
    )
    return trainer, gradients


def run(name: str, folder, batch: int, accumulate: int, monolingual=(), kind=JointSeq2SeqTrainer, **changes):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    own = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
    trainer, gradients = make(model, folder, monolingual, kind, **own, **changes)
    trainer.train()
    return [log for log in trainer.state.log_history if "loss" in log], gradients.of_steps


def rows_of(batch: dict, side: str) -> list[list[int]]:
    """The sentences of a monolingual batch with their marks."""
    rows = zip(batch[f"{side}_lm_input_ids"], batch[f"{side}_lm_attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in rows]


def sides_of(name: str) -> tuple[str, ...]:
    return ("source", "target") if name == "ours" else ("target",)


LINES = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "the",
    "old",
    "house",
    "where",
    "it",
    "slept",
    "until",
    "morning",
    "came",
]


def sentences(count: int, seed: int, shift: int = 0) -> list[str]:
    chance = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length, start = torch.randint(1, 9, (2,), generator=chance).tolist()
        found.append(" ".join(LINES[(start + step + shift) % len(LINES)] for step in range(length)))
    return found


def make_files(folder: Path) -> Path:
    """Pairs, monolingual text, and models with a joint and with separate vocabularies."""
    for name, count, seed, shift in (
        ("train.en", 40, 0, 0),
        ("train.de", 40, 0, 5),
        ("val.en", 11, 1, 0),
        ("val.de", 11, 1, 5),
        ("mono.en", 50, 2, 0),
        ("mono.de", 60, 3, 0),
    ):
        (folder / name).write_text("\n".join(sentences(count, seed, shift)) + "\n")
    tokenizer = train_tokenizer(LINES * 2, "word", 60)[0]
    torch.manual_seed(0)
    model = ours(vocab_size=len(tokenizer), dropout=0.2)
    tokenizer.save_pretrained(folder / "joint")
    model.save_pretrained(folder / "joint")
    other = train_tokenizer(LINES[:12] * 2, "word", 60)[0]
    tokenizer.save_pretrained(folder / "separate" / "target_tokenizer")
    other.save_pretrained(folder / "separate" / "source_tokenizer")
    ours(vocab_size=len(tokenizer), encoder_vocab_size=len(other), encoder_pad_token_id=0).save_pretrained(
        folder / "separate"
    )
    return folder


def options(files: Path, **changes) -> Seq2SeqArguments:
    given = {
        "model": str(files / "joint"),
        "train_source": [str(files / "train.en")],
        "train_target": [str(files / "train.de")],
        "validation_source": [str(files / "val.en")],
        "validation_target": [str(files / "val.de")],
        "source_monolingual": [str(files / "mono.en")],
        "target_monolingual": [str(files / "mono.de")],
        "source_monolingual_batch_size": 3,
    }
    return Seq2SeqArguments(**given | changes)


def plain(folder, **changes) -> TrainingArguments:
    own = {"optim": "adamw_torch", "learning_rate": 0.02, "train_sampling_strategy": "random", "max_steps": 8}
    return settings(folder, TrainingArguments, **own | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def both(files: Path, folder: Path, processes: int) -> None:
    """The trainings of the test over processes, in each of them."""
    size = 4 // processes
    own = {"per_device_train_batch_size": size, "per_device_eval_batch_size": 3, "max_steps": 4}
    own |= {"gradient_accumulation_steps": 2, "optim": "sgd", "learning_rate": 0.3}
    own |= {"ddp_backend": "gloo"} if processes > 1 else {}
    text = {"source_monolingual_batch_size": 6 // processes, "target_monolingual_batch_size": 4 // processes}
    arguments = options(files, dropout=0.0, **text)
    run_seq2seq(arguments, plain(folder / f"ours {processes}", **own))
    arguments = options(files, dropout=0.0, forgetting="ewc", forgetting_weight=5.0)
    train_seq2seq(arguments, plain(folder / f"ewc {processes}", **own))
    torch.manual_seed(0)
    trainer = JointSeq2SeqTrainer(
        model=bert_to_gpt2(),
        args=settings(folder / f"bert to gpt2 {processes}", **own),
        train_dataset=pairs(),
        eval_dataset=pairs(11, 7),
        data_collator=ParallelCollator(),
        monolingual=texts(("target",), size),
    )
    train_evaluate_save(trainer)
