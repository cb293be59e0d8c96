"""Joint training of an encoder-decoder and its language models, from files to a checkpoint (Ramachandran, Liu & Le 2017)."""

import copy
from dataclasses import fields
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ..modeling.seq2seq_losses import StockSeq2SeqLosses
from ..objectives.seq2seq import ParallelCollator, TokenRows
from .checkpoints import load_whole
from .forgetting import (
    CROSS_ATTENTION,
    FISHER,
    Freezing,
    Penalty,
    ewc,
    fisher_diagonal,
    fisher_in_seq2seq,
    fisher_of_language_model,
    inherited_names,
    l2sp,
    load_fisher,
    save_fisher,
)
from .generated_text import NAMES, GenerationScores
from .parallel_text import (
    Limits,
    PairEncoder,
    TokenizerPair,
    encode_pairs,
    open_tokenizers,
    read_pairs,
    read_sentences,
    sentences_of,
)
from .seq2seq_arguments import Seq2SeqArguments
from .seq2seq_trainer import SIDES, JointSeq2SeqTrainer, MonolingualText, StepDecay
from .text_metrics import need_libraries
from .trainer import train_evaluate_save

logger = logging.get_logger(__name__)

HELD_OUT = 0.02  # of the pairs, where no validation files are given
MARKS = 2  # around a monolingual sentence
GENERATION = ("predict_with_generate", "generation_max_length", "generation_num_beams")


def train_seq2seq(arguments: Seq2SeqArguments, training_arguments: TrainingArguments) -> JointSeq2SeqTrainer:
    """Train an encoder-decoder on pairs, and go on training its language models, or hold them; save it with its tokenizers.

    Args:
        arguments: checkpoint, data, and what keeps the model from forgetting.
        training_arguments: Trainer's; the checkpoint lands in `output_dir`.

    Returns:
        The Trainer after training; `trainer.state.log_history` ends with the evaluation.

    Raises:
        FileNotFoundError: a file, checkpoint or tokenizer that is not there.
        ValueError: pairs that are not aligned, empty or too long, or options that contradict each other.
    """
    _check(arguments, training_arguments)
    set_seed(training_arguments.seed)
    model = open_model(arguments, training_arguments.label_smoothing_factor)
    tokenizers = open_tokenizers(arguments.model, arguments.source_tokenizer, arguments.target_tokenizer)
    _check_vocabularies(model, tokenizers)
    encode = PairEncoder(tokenizers, model.config.decoder_start_token_id)
    limits = Limits(
        arguments.max_source_tokens, arguments.max_target_tokens, arguments.too_long, arguments.empty_pairs
    ).within(model.config)
    train, validation = _read(arguments, training_arguments.seed)
    rows = [
        encode_pairs(pairs, encode, limits, what)
        for pairs, what in ((train, "train"), (validation, "validation"))
    ]
    settings = _seq2seq_arguments(arguments, training_arguments, limits)
    texts, measured = _monolingual_texts(arguments, model, encode, limits, validation)
    logger.info(f"{type(model).__name__} with {model.num_parameters():,} parameters, {len(rows[0]):,} pairs")
    trainer = JointSeq2SeqTrainer(
        model=model,
        args=settings,
        train_dataset=rows[0],
        eval_dataset=rows[1],
        data_collator=ParallelCollator(tokenizers.source.pad_token_id or 0),
        processing_class=tokenizers,
        monolingual=texts,
        forgetting=_against_forgetting(arguments, training_arguments, model, encode, measured),
        step_decay=StepDecay(arguments.lr_decay_every, arguments.lr_decay_after, arguments.lr_decay_factor)
        if arguments.lr_decay_every
        else None,
        lm_weight_schedule=arguments.lm_weight_schedule,
        compute_metrics=_scores(arguments, model, tokenizers, rows[1])
        if settings.predict_with_generate
        else None,
    )
    if arguments.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(arguments.early_stopping_patience))
    train_evaluate_save(trainer)
    return trainer


def _check(arguments: Seq2SeqArguments, training_arguments: TrainingArguments) -> None:
    if not arguments.model:
        raise ValueError(
            "model is empty: make an encoder-decoder of two language models with `heirloom convert seq2seq` and name its "
            "folder in --model"
        )
    if arguments.early_stopping_patience is not None and not training_arguments.load_best_model_at_end:
        raise ValueError(
            "early_stopping_patience needs load_best_model_at_end: true, with eval_strategy and save_strategy alike."
        )
    given = [side for side in SIDES if getattr(arguments, f"{side}_monolingual")]
    if arguments.forgetting == "lm_loss" and not given:
        raise ValueError(
            "forgetting is lm_loss, which needs text: give --source_monolingual, --target_monolingual or both, or say "
            "--forgetting none."
        )
    if arguments.forgetting in ("none", "l2sp", "freeze") and given:
        raise ValueError(
            f"forgetting is {arguments.forgetting}, which trains on no monolingual text, found {given[0]}_monolingual. Leave "
            f"it out, or name it as {given[0]}_monolingual_validation to measure on it."
        )
    if arguments.lm_weight_schedule != "constant" and arguments.forgetting != "lm_loss":
        raise ValueError(
            f"lm_weight_schedule is of the language models' losses, found {arguments.lm_weight_schedule} with forgetting "
            f"{arguments.forgetting}. Leave it out."
        )
    _check_generation(arguments, training_arguments)
    kind = str(getattr(training_arguments.lr_scheduler_type, "value", training_arguments.lr_scheduler_type))
    if arguments.lr_decay_every and kind not in ("linear", "constant", "constant_with_warmup"):
        raise ValueError(
            f"lr_decay_every is a schedule of its own, found lr_scheduler_type {kind}. Leave one of them out."
        )


def _check_generation(arguments: Seq2SeqArguments, training_arguments: TrainingArguments) -> None:
    generates = arguments.predict_with_generate or getattr(training_arguments, "predict_with_generate", False)
    if generates:
        need_libraries(arguments.metrics)
    best = (training_arguments.metric_for_best_model or "").removeprefix("eval_")
    if best not in NAMES.values():
        return
    if not generates:
        raise ValueError(
            f"metric_for_best_model is {best}, of generated targets. Say predict_with_generate: true, or leave it out."
        )
    if not best.startswith(tuple(arguments.metrics)):
        raise ValueError(
            f"metric_for_best_model is {best}, but metrics are {arguments.metrics}. Name it there too."
        )


# Model


def open_model(arguments: Seq2SeqArguments, label_smoothing: float = 0.0) -> PreTrainedModel:
    """The checkpoint, or a new model of its sizes.

    Args:
        arguments: `model`, `from_scratch`, and what a config of ours says about losses.
        label_smoothing: 0 leaves what the checkpoint says.

    Returns:
        The model.

    Raises:
        FileNotFoundError: a local folder without a checkpoint.
        ValueError: a checkpoint of another kind, one that is not whole, or one that nothing tells how targets begin.
    """
    name = arguments.model
    looks_local = Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name} holds no config.json; expected the folder of a checkpoint.")
    config = AutoConfig.from_pretrained(name)
    if not config.is_encoder_decoder:
        raise ValueError(
            f"{name} is a {config.model_type}, no encoder-decoder. Make one of two language models with `heirloom convert "
            "seq2seq`."
        )
    if config.model_type == "lstm-seq2seq":
        config = AutoConfig.from_pretrained(name, **_own_fields(arguments, label_smoothing))
    elif arguments.dropout is not None:
        raise ValueError(f"dropout is for an lstm-seq2seq, found a {config.model_type}. Leave it out.")
    if config.decoder_start_token_id is None:
        raise ValueError(
            f"{name} has no decoder_start_token_id, which stands before a target's first token. Set it in config and "
            "generation_config."
        )
    if arguments.from_scratch:
        return AutoModelForSeq2SeqLM.from_config(config)
    return load_whole(AutoModelForSeq2SeqLM, name, config=config, dtype=torch.float32)


def _own_fields(arguments: Seq2SeqArguments, label_smoothing: float) -> dict:
    found = {f"{side}_lm_loss_weight": getattr(arguments, f"{side}_lm_weight") for side in SIDES}
    if label_smoothing:
        found["label_smoothing"] = label_smoothing
    if arguments.dropout is not None:
        found["dropout"] = arguments.dropout
    return found


def _check_vocabularies(model: PreTrainedModel, tokenizers: TokenizerPair) -> None:
    config = model.config
    sizes = {
        "source": getattr(config, "source_vocab_size", None) or _vocabulary_size(config, "encoder"),
        "target": _vocabulary_size(config, "decoder"),
    }
    for side, size in sizes.items():
        found = len(getattr(tokenizers, side))
        if found > size:
            raise ValueError(
                f"the {side}'s tokenizer has {found} tokens, the model reads {size}. Use the tokenizer that the language "
                f"model was trained with: --{side}_tokenizer."
            )


def _vocabulary_size(config: PreTrainedConfig, half: str) -> int:
    return getattr(config, half, config).vocab_size


def _seq2seq_arguments(
    arguments: Seq2SeqArguments, training_arguments: TrainingArguments, limits: Limits
) -> Seq2SeqTrainingArguments:
    """Trainer's own kind, with what our options say of generation."""
    found = copy.copy(training_arguments)
    if not isinstance(found, Seq2SeqTrainingArguments):
        names = [field.name for field in fields(TrainingArguments) if field.init]
        found = Seq2SeqTrainingArguments(**{name: getattr(training_arguments, name) for name in names})
    for name in GENERATION:
        setattr(found, name, getattr(arguments, name) or getattr(found, name))
    if found.generation_max_length is None:
        found.generation_max_length = limits.max_target_tokens + 1
    return found


def _scores(
    arguments: Seq2SeqArguments, model: PreTrainedModel, tokenizers: TokenizerPair, rows: Dataset
) -> GenerationScores:
    """What counts the validation pairs' scores."""
    ends = model.generation_config.eos_token_id
    ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    return GenerationScores(tokenizers.target, ends, rows["labels"], rows["target"], arguments.metrics)


# Data


def _read(arguments: Seq2SeqArguments, seed: int) -> tuple[Dataset, Dataset]:
    columns = {"source_column": arguments.source_column, "target_column": arguments.target_column}
    train = read_pairs(arguments.train_source, arguments.train_target, arguments.train_file, **columns)
    files = arguments.validation_source, arguments.validation_target, arguments.validation_file
    if any(files):
        validation = read_pairs(*files, **columns, what="validation")
    else:
        parts = train.train_test_split(max(1, round(HELD_OUT * len(train))), seed=seed)
        train, validation = parts["train"], parts["test"]
    if arguments.train_pairs:
        train = train.select(range(min(arguments.train_pairs, len(train))))
    return train, validation


def _monolingual_texts(
    arguments: Seq2SeqArguments,
    model: PreTrainedModel,
    encode: PairEncoder,
    limits: Limits,
    validation: Dataset,
) -> tuple[list[MonolingualText], dict[str, TokenRows]]:
    """What the Trainer reads, and the text of each side for other uses."""
    ours, texts, given = model.config.model_type == "lstm-seq2seq", [], {}
    for side in SIDES:
        files = getattr(arguments, f"{side}_monolingual")
        held_out = getattr(arguments, f"{side}_monolingual_validation")
        if not (files or held_out or _holds_language_model(model, side)):
            continue

        def to_ids(texts, side=side):
            return encode.sentences(side, texts)

        most = getattr(limits, f"max_{side}_tokens") - MARKS
        if files:
            given[side] = read_sentences(files, to_ids, most)
        if held_out:
            measured = read_sentences(held_out, to_ids, most)
        else:
            measured = sentences_of(filter(str.strip, validation[side]), to_ids, most)
        texts.append(
            MonolingualText(
                collate=encode.collator(side),
                train=given.get(side) if arguments.forgetting == "lm_loss" else None,
                validation=measured,
                batch_size=getattr(arguments, f"{side}_monolingual_batch_size"),
                weight=None if ours else getattr(arguments, f"{side}_lm_weight"),
            )
        )
    return texts, given


def _holds_language_model(model: PreTrainedModel, side: str) -> bool:
    if hasattr(model, "count_lm_targets"):
        return side == "target" or model.encoder_lm_head is not None
    if side == "source":
        return False
    try:
        StockSeq2SeqLosses(model).check_language_model()
    except ValueError:
        return False
    return True


# Forgetting


def _against_forgetting(
    arguments: Seq2SeqArguments,
    training_arguments: TrainingArguments,
    model: PreTrainedModel,
    encode: PairEncoder,
    texts: dict[str, TokenRows],
) -> Penalty | Freezing | None:
    if arguments.forgetting in ("lm_loss", "none"):
        return None
    names = inherited_names(model, arguments.inherited)
    if arguments.forgetting == "freeze":
        return Freezing(names, arguments.freeze_steps)
    if arguments.forgetting == "l2sp":
        return l2sp(model, names, arguments.forgetting_weight)
    with training_arguments.main_process_first():  # which measures, the others read what it stored
        fisher = _fisher(arguments, model, encode, texts)
    if training_arguments.process_index == 0:
        folder = Path(training_arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_fisher(fisher, folder / FISHER, arguments.fisher_sentences)
    return ewc(model, fisher, arguments.forgetting_weight, names)


def _fisher(
    arguments: Seq2SeqArguments, model: PreTrainedModel, encode: PairEncoder, texts: dict[str, TokenRows]
) -> dict[str, torch.Tensor]:
    """The diagonal by the model's names: as stored beside the language models, or measured on their text."""
    found: dict[str, torch.Tensor] = {}
    for side in SIDES:
        folder = getattr(arguments, f"{side}_fisher")
        some = _some(texts[side], arguments.fisher_sentences) if side in texts else None
        if folder:
            if some is not None and Path(folder).is_dir() and not (Path(folder) / FISHER).is_file():
                marks = encode.collator(side)
                fisher_of_language_model(folder, some, marks.begin, marks.end)
            part = fisher_in_seq2seq(load_fisher(folder), side, model)
        elif some is not None:
            part = fisher_of_side(model, some, encode.collator(side))
        else:
            continue
        found |= {name: found.get(name, 0.0) + tensor for name, tensor in part.items()}
    if not found:
        raise ValueError(
            "forgetting is ewc, which needs Fisher diagonals: give the language models' folders as --source_fisher and "
            "--target_fisher, or their text as --source_monolingual and --target_monolingual."
        )
    return found


def _some(rows: TokenRows, count: int) -> list[list[int]]:
    """So many sentences, from all over the text."""
    count = min(count, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def fisher_of_side(model: PreTrainedModel, sentences, collate) -> dict[str, torch.Tensor]:
    """Measure the Fisher diagonal of the language model in an encoder-decoder.

    Args:
        model: ours, or a stock one for the target.
        sentences: lists of ids without marks.
        collate: makes a batch of them, and says which side.

    Returns:
        Diagonal by the names of the model's parameters.
    """
    losses = model if hasattr(model, "count_lm_targets") else StockSeq2SeqLosses(model)
    side = collate.side

    def summed_loss(sentence):
        batch = {name: tensor.to(model.device) for name, tensor in collate([sentence]).items()}
        outputs = losses(**batch, **{f"num_{side}_lm_items": 1})
        return outputs[f"{side}_lm_loss"], losses.count_lm_targets(batch)[f"num_{side}_lm_items"]

    diagonal = fisher_diagonal(model, sentences, summed_loss)
    # Cross-attention takes part in an EncoderDecoderModel, but is no language model's.
    return {name: value for name, value in diagonal.items() if not CROSS_ATTENTION.search(name)}


__all__ = ["fisher_of_side", "open_model", "train_seq2seq"]
