"""Pre-training a stock model with one of `objectives.py`: documents, tokenizer, model, data set, collator, training.

Text files are in BERT's format: a sentence a line, a blank line between documents. In a table each row is a document, a
text with a sentence a line or a list of sentences.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    EarlyStoppingCallback,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from ..modeling.backbones_joint_loss import position_limit
from ..modeling.configuration_electra_joint import ElectraJointConfig
from ..modeling.configuration_infoword import InfoWordConfig
from ..modeling.configuration_sentence_pair import SentencePairConfig
from ..modeling.configuration_spanbert import SpanBertConfig
from ..modeling.modeling_electra_joint import ElectraForJointPreTraining
from ..modeling.modeling_infoword import InfoWordForPreTraining
from ..modeling.modeling_sentence_pair import SentencePairForPreTraining
from ..modeling.modeling_spanbert import SpanBertForPreTraining
from ..objectives.documents import Documents
from ..objectives.word_ids import FirstOf, Gazetteer, JiebaSegmenter, Segmenter
from .arguments import PretrainArguments
from .checkpoints import load_whole
from .objective_rows import Laned
from .objectives import Objective, find_objective
from .recurrence import check_memories
from .stock_pretraining import StockPretrainingTrainer
from .text_files import TextFile, open_shards
from .trainer import train_evaluate_save

logger = logging.get_logger(__name__)

OURS = {  # by name: the model and its config
    "SpanBertForPreTraining": (SpanBertForPreTraining, SpanBertConfig),
    "InfoWordForPreTraining": (InfoWordForPreTraining, InfoWordConfig),
    "SentencePairForPreTraining": (SentencePairForPreTraining, SentencePairConfig),
    "ElectraForJointPreTraining": (ElectraForJointPreTraining, ElectraJointConfig),
}
HELD_OUT = 0.02  # of the documents, where no validation file is given
LONGEST = 512
READ = (
    "objective",
    "model",
    "tokenizer",
    "train_file",
    "validation_file",
    "text_column",
    "max_tokens",
    "segmenter",
    "mem_len",
    "reuse_len",
    "early_stopping_patience",
)

Sentences = list[list[str]]  # of each document


# Documents


def read_documents(sources: Sequence[str], text_column: str | None = None, split: str = "train") -> Sentences:
    """Read a corpus.

    Args:
        sources: files, patterns, folders or data sets of the Hub.
        text_column: of tables.
        split: of data sets of the Hub.

    Returns:
        Documents as lists of sentences; none is empty.

    Raises:
        FileNotFoundError: nothing of such a name.
        ValueError: no text.
    """
    found = []
    for shard in open_shards(sources, text_column, keep_blank=True, split=split):
        found += _parted(shard) if isinstance(shard, TextFile) else map(_listed, shard)
    documents = [document for document in found if document]
    if not documents:
        raise ValueError(
            f"{', '.join(map(str, sources))} holds no text; expected a sentence a line and a blank line between documents."
        )
    return documents


def _parted(lines: Iterable[str]) -> Sentences:
    documents = [[]]
    for line in lines:
        if line.strip():
            documents[-1].append(line.strip())
        elif documents[-1]:
            documents.append([])
    return documents


def _listed(row: str | list[str]) -> list[str]:
    lines = row.splitlines() if isinstance(row, str) else row
    return [line.strip() for line in lines if line.strip()]


def held_out(documents: Sentences, seed: int) -> tuple[Sentences, Sentences]:
    """Documents for training and for evaluation: one in fifty, at least two of four or more; of fewer, the last sentences.

    Raises:
        ValueError: a single sentence.
    """
    if len(documents) >= 4:
        order = np.random.default_rng(seed).permutation(len(documents))
        count = max(2, round(HELD_OUT * len(documents)))
        chosen = set(order[:count].tolist())
        sides = [[], []]
        for number, document in enumerate(documents):
            sides[number in chosen].append(document)
        return sides[0], sides[1]
    cuts = [len(document) - max(1, round(HELD_OUT * len(document))) for document in documents]
    train = [document[:cut] for document, cut in zip(documents, cuts, strict=True) if cut]
    rest = [document[cut:] for document, cut in zip(documents, cuts, strict=True) if cut]
    if not train:
        raise ValueError(
            f"the text has {len(documents)} sentence(s), of which none can be held out. Name a --validation_file."
        )
    return train, rest


def open_segmenter(name: str) -> Segmenter | None:
    """A segmenter of `--segmenter`: jieba, or gazetteer:FILE with a phrase a line; None for words between spaces.

    Several with + between them are one, of which an earlier one's finds stay whole: gazetteer:entities.txt+jieba.

    Raises:
        ValueError: another name.
        FileNotFoundError: no such file of phrases.
        ImportError: jieba is not installed.
    """
    if not name:
        return None
    if name == "jieba":
        return JiebaSegmenter()
    kind, _, file = name.partition(":")
    whole = kind == "gazetteer" and Path(file).is_file()
    if "+" in name and not whole:
        return FirstOf([open_segmenter(part or "nothing") for part in name.split("+")])
    if kind != "gazetteer" or not file:
        raise ValueError(
            f"segmenter must be jieba or gazetteer:FILE, or some of them with + between, got {name!r}."
        )
    if not whole:
        raise FileNotFoundError(f"{file} does not exist. Give a file with a phrase or an entity a line.")
    return Gazetteer(map(str.strip, Path(file).read_text("utf-8").splitlines()))


def encode(
    objective: Objective,
    documents: Sentences,
    tokenizer: PreTrainedTokenizerBase,
    segmenter: Segmenter | None = None,
) -> Documents:
    """Ids of documents, with words where the objective needs them.

    Raises:
        ValueError: an objective over phrases without a segmenter.
    """
    if objective.segmented and segmenter is None:
        raise ValueError(
            f"objective {objective.name} hides phrases and entities, so it must know them: give --segmenter jieba, or "
            "gazetteer:FILE with one a line."
        )
    return Documents.of(documents, tokenizer, words=objective.words, segmenter=segmenter)


# Model


def open_tokenizer(arguments: PretrainArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that is named, else the model's.

    Raises:
        ValueError: none is named, or it cannot be opened.
    """
    name = arguments.tokenizer or ("" if _is_json(arguments.model) else arguments.model)
    if not name:
        raise ValueError(
            "new weights need a tokenizer: name a folder or one of the Hub in --tokenizer, for instance "
            "google-bert/bert-base-uncased"
        )
    return open_any_tokenizer(name)


def open_any_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of a folder or of the Hub.

    Raises:
        ValueError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot open a tokenizer in {name}: {error}") from error


def _is_json(model: str) -> bool:
    return model.lstrip().startswith("{")


def new_config(
    text: str, tokenizer: PreTrainedTokenizerBase, usual: Mapping[str, object] | None = None
) -> PreTrainedConfig:
    """A config from JSON with `model_type` and sizes; ids come from the tokenizer.

    Args:
        text: JSON.
        tokenizer: of the model.
        usual: fields where the JSON does not say others.

    Raises:
        ValueError: no JSON, no known model type, or fields that are unknown or contradict each other.
    """
    try:
        fields = json.loads(text)
        kind = fields.pop("model_type")
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(
            f'expected a config as JSON with a model_type, such as {{"model_type": "bert"}}, got {text[:60]!r}'
        ) from error
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), CONFIG_MAPPING, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"--model names the model_type {kind!r}, which Transformers does not know.{hint}")
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    begin = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": begin, "eos_token_id": end}
    if kind == "bart":
        ids |= {"decoder_start_token_id": end, "forced_eos_token_id": end}
    if kind == "t5":
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    known = {name: value for name, value in ids.items() if value is not None}
    with _one_message(text):
        config = AutoConfig.for_model(
            kind, **{"vocab_size": len(tokenizer)} | known | dict(usual or {}) | fields
        )
        _check_names(kind, fields)
    return config


@contextmanager
def _one_message(text: str) -> Iterator[None]:
    """Whatever Transformers raises over a config's fields, as one message."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"no model can be made of --model {text[:200]}: {type(error).__name__}: {said}"
        ) from error


def _check_names(kind: str, fields: Mapping[str, object]) -> None:
    """Raise a ValueError for a field that a config of this type does not have; it would be kept and never read."""
    usual = AutoConfig.for_model(kind)
    for name in fields:
        if not hasattr(usual, name):
            near = difflib.get_close_matches(name, usual.to_dict(), n=1)
            raise ValueError(f"{kind} has no field {name!r}." + (f" Did you mean {near[0]}?" if near else ""))


def open_model(objective: Objective, source: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model that learns the objective.

    Args:
        objective: of `objectives.py`.
        source: a checkpoint, or a config's fields as JSON for new weights.
        tokenizer: gives a new model its ids.

    Raises:
        ValueError: no model, one that does not fit the objective, or a checkpoint whose body is not whole.
        OSError: no such checkpoint.
    """
    if not source:
        raise ValueError(
            f"objective {objective.name} needs a model: name a checkpoint in --model, or give a config's fields as JSON"
        )
    new = _is_json(source)
    config = new_config(source, tokenizer, objective.config) if new else AutoConfig.from_pretrained(source)
    objective.check_model(config.model_type, "the config" if new else source)
    for name, value in objective.memory.items():  # read when a model is made, and never again
        setattr(config, name, value)
    if isinstance(objective.rows, Laned):
        check_memories(config, objective.rows.reuse_len)
    with _one_message(source) if new else nullcontext():
        return _opened(objective, config, None if new else source, tokenizer)


def _opened(
    objective: Objective, config: PreTrainedConfig, source: str | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """The model of a checkpoint, or of a config if `source` is None."""
    if objective.models.ours:
        return _ours(objective.models.ours, config, source)
    if objective.name == "mass" and config.model_type != "encoder-decoder":
        return _two_of_one(config, source, tokenizer)
    auto = getattr(modeling_auto, objective.models.auto)
    return auto.from_config(config) if source is None else load_whole(auto, source, True, config=config)


def _two_of_one(
    config: PreTrainedConfig, source: str | None, tokenizer: PreTrainedTokenizerBase
) -> EncoderDecoderModel:
    """An encoder-decoder whose two sides are the same BERT, with new attention between them."""
    if source is None:
        model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(config, config))
    else:
        load_whole(modeling_auto.AutoModelForMaskedLM, source, True)  # refuses gaps
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(source, source)
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _ours(name: str, config: PreTrainedConfig, source: str | None) -> PreTrainedModel:
    """A model of ours around a stock one, or a checkpoint of it."""
    model, kind = OURS[name]
    if source is None:
        held = "discriminator_config" if kind is ElectraJointConfig else "text_config"
        return model(kind(**{held: config}))
    if config.model_type == kind.model_type:
        return load_whole(model, source)
    if kind is not ElectraJointConfig:
        load_whole(modeling_auto.AutoModelForMaskedLM, source, True)  # refuses gaps
        return model.from_encoder(source)  # warns where the language model's head is new
    discriminator = load_whole(modeling_auto.AutoModelForPreTraining, source, True)
    return ElectraForJointPreTraining(
        ElectraJointConfig(discriminator_config=discriminator.config), discriminator
    )


def check_fit(objective: Objective, source: str) -> None:
    """Raise a ValueError if `source` is a checkpoint that does not learn the objective; a bare tokenizer is fine."""
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError):
        return
    objective.check_model(config.model_type, source)


def longest_row(model: PreTrainedModel, wanted: int | None) -> int:
    """Tokens of a row: what is wanted, or what the model can read, up to 512.

    Raises:
        ValueError: none, or more than the model can read.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(
            f"max_tokens is {wanted}; expected 1 or more. Leave it out for what fits, up to {LONGEST}."
        )
    limit = position_limit(model)
    if wanted is not None and limit is not None and wanted > limit:
        raise ValueError(f"max_tokens is {wanted}, but the model has {limit} positions.")
    return wanted or min(LONGEST, limit or LONGEST)


# Training


def pretrain_stock(
    arguments: PretrainArguments, training_arguments: TrainingArguments
) -> StockPretrainingTrainer:
    """Train a stock model with an objective on text, and save it with its tokenizer.

    Where the objective wraps the stock model (SpanBERT, ELECTRA), the stock model lies in a folder of its own too.

    Args:
        arguments: objective, model, text.
        training_arguments: Trainer's; the checkpoint lands in `output_dir`.

    Returns:
        The Trainer after training and evaluation.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: an unknown objective, a model that does not fit it, no text, or options of other models.
    """
    objective = find_objective(arguments.objective).remembering(
        arguments.mem_len, arguments.reuse_len, arguments.max_tokens or LONGEST
    )
    _check_options(arguments, training_arguments)
    segmenter = open_segmenter(arguments.segmenter)
    documents = read_documents(arguments.train_file, arguments.text_column)
    if arguments.validation_file:
        validation = read_documents(arguments.validation_file, arguments.text_column, "validation")
    else:
        documents, validation = held_out(documents, training_arguments.seed)
    tokenizer = open_tokenizer(arguments)
    set_seed(training_arguments.seed)
    model = open_model(objective, arguments.model, tokenizer)
    longest, seed = longest_row(model, arguments.max_tokens), training_arguments.seed
    train_rows, rows = (
        objective.rows(encode(objective, side, tokenizer, segmenter), tokenizer, longest, seed)
        for side in (documents, validation)
    )
    logger.info(
        f"{type(model).__name__} with {model.num_parameters():,} parameters, {len(train_rows):,} rows"
    )
    trainer = StockPretrainingTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_rows,
        eval_dataset=rows,
        data_collator=objective.make_collator(tokenizer, seed),
        processing_class=tokenizer,
    )
    if arguments.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(arguments.early_stopping_patience))
    train_evaluate_save(trainer)
    if objective.part and trainer.is_world_process_zero():
        folder = Path(training_arguments.output_dir) / objective.part
        getattr(trainer.accelerator.unwrap_model(trainer.model), objective.part).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return trainer


def _check_options(arguments: PretrainArguments, training_arguments: TrainingArguments) -> None:
    if not arguments.train_file:
        raise ValueError("train_file is empty: name the text to train on, e.g. --train_file corpus.txt")
    usual = PretrainArguments()
    others = [
        f"--{one.name}"
        for one in dataclasses.fields(arguments)
        if one.name not in READ and getattr(arguments, one.name) != getattr(usual, one.name)
    ]
    if others:
        raise ValueError(
            f"{', '.join(others)}: for ELMo and LSTM language models only. Leave out with --objective; with new weights, "
            "sizes stand in --model."
        )
    if arguments.early_stopping_patience is not None and not training_arguments.load_best_model_at_end:
        raise ValueError(
            "early_stopping_patience needs load_best_model_at_end: true, with eval_strategy and save_strategy alike."
        )


__all__ = [
    "check_fit",
    "encode",
    "held_out",
    "longest_row",
    "new_config",
    "open_any_tokenizer",
    "open_model",
    "open_segmenter",
    "open_tokenizer",
    "pretrain_stock",
    "read_documents",
]
