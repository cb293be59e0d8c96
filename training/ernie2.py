"""ERNIE 2.0: pre-training tasks that are added one after another (Sun et al. 2020, sections 3.1 and 4.2).

From documents come five tasks: knowledge masking, capitalization and token-document relation about words, sentence
reordering and sentence distance about structure. Two more of the paper need what users know: IR relevance (0 clicked, 1 shown
and not clicked, 2 random) and discourse relation (a class for each pair of sentences). Each is one more task of kind
"classification", whose rows are what a tokenizer makes of the two texts, with `labels`:

    tasks = [*ernie2_tasks(), {"name": "ir_relevance", "kind": "classification", "num_labels": 3}]
    rows["ir_relevance"] = [{**tokenizer(query, title, truncation=True), "labels": label} for query, title, label in clicks]

Where it leaves the original: heads over a whole text read the vector of [CLS] itself, as `MultiTaskModel` does, without a layer
between; pairs and orders are drawn once and not anew each time; a language model without task embeddings does without.
"""

import copy
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..modeling.modeling_multi_task import MultiTaskModel
from ..objectives.documents import Documents
from ..objectives.masking import KnowledgeMasking
from ..objectives.multi_task import ContinualSchedule, MultiTaskDataset
from ..objectives.pretraining_collators import DataCollatorForMaskedLanguageModeling
from ..objectives.reordering import SentenceReorderingDataset, orders_of
from ..objectives.sentence_pairs import SentencePairDataset
from ..objectives.token_labels import token_document_blocks
from ..objectives.tokenized_tasks import TokenizedTaskCollator, capitalization_blocks
from ..objectives.word_ids import Segmenter
from .multi_task import MultiTaskTrainer
from .objective_rows import Blocks


def ernie2_tasks(segments: int = 3) -> list[dict]:
    """The tasks that come from text alone, in the order in which they are added, for `MultiTaskModel`.

    Args:
        segments: m, most parts of a paragraph in reordering, which has 1! + .. + m! classes.

    Returns:
        Tasks as in `MultiTaskConfig.tasks`.
    """
    return [
        {"name": "knowledge_masking", "kind": "masked_lm"},
        {"name": "capitalization", "kind": "tokens", "num_labels": 2},
        {"name": "token_document", "kind": "tokens", "num_labels": 2},
        {"name": "sentence_reordering", "kind": "classification", "num_labels": len(orders_of(segments))},
        {"name": "sentence_distance", "kind": "classification", "num_labels": 3},
    ]


def ernie2_rows(
    documents: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    segmenter: Segmenter | None = None,
    max_tokens: int = 512,
    segments: int = 3,
    seed: int = 0,
) -> dict[str, Sequence[Mapping]]:
    """Rows of the tasks of `ernie2_tasks`.

    Args:
        documents: lists of sentences, texts; two documents at least.
        tokenizer: a fast one with the special tokens.
        segmenter: says what a phrase or an entity is, which is hidden as a whole; None for words between spaces.
        max_tokens: longest row with the special tokens.
        segments: as in `ernie2_tasks`.
        seed: of pairs and orders.

    Returns:
        Rows by the tasks' names.

    Raises:
        ValueError: sentences that are not texts, too few documents, or a tokenizer that does not fit.
    """
    capitals = capitalization_blocks(documents, tokenizer, max_tokens)
    corpus = Documents.of(documents, tokenizer, words=True, segmenter=segmenter)
    named = {"max_length": max_tokens, "label_name": "labels", "seed": seed}
    return {
        "knowledge_masking": Blocks()(corpus, tokenizer, max_tokens, seed),
        "capitalization": capitals,
        "token_document": token_document_blocks(corpus, tokenizer, max_tokens),
        "sentence_reordering": SentenceReorderingDataset(corpus, tokenizer, segments, **named),
        "sentence_distance": SentencePairDataset(corpus, tokenizer, "distance", **named),
    }


def ernie2_trainer(
    model: MultiTaskModel,
    rows: Mapping[str, Sequence[Mapping]],
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    total: int = 50_000,
    carry: int = 10_000,
    held_out: Mapping[str, Sequence[Mapping]] | None = None,
) -> MultiTaskTrainer:
    """A Trainer for the stages of `ContinualSchedule`, one for each task.

    Each step is of one task. A language model with task embeddings (ERNIE with `use_task_id`) gets each task's number in the
    model as its row there, 0 for the first; of these it needs one for each task.

    Args:
        model: with a task for each key of `rows`.
        rows: of `ernie2_rows` and of the user's own tasks; tasks are added in this order.
        tokenizer: of the rows.
        args: of Trainer. A training is all of the schedule once, or its first `max_steps`.
        total: steps of each task.
        carry: steps of an old task in each new stage.
        held_out: rows for evaluation by task.

    Returns:
        The Trainer; its log has each task's loss.

    Raises:
        ValueError: an unknown task, too few steps for the stages, or too few task embeddings.
    """
    config, tasks = model.config.text_config, model.config.tasks
    embedded = bool(getattr(config, "use_task_id", False))
    if embedded and config.task_type_vocab_size < len(tasks):
        raise ValueError(
            f"the model has {len(tasks)} tasks, but its language model has {config.task_type_vocab_size} task embeddings. Make "
            f"one with task_type_vocab_size={len(tasks)}, or load it with use_task_id=False."
        )
    args = copy.copy(args)
    if args.max_steps <= 0:
        args.num_train_epochs = 1
    hides = KnowledgeMasking(columns=("word_ids",))
    masker = DataCollatorForMaskedLanguageModeling(tokenizer, hides, seed=args.seed)
    collate = TokenizedTaskCollator(tokenizer, tasks, masker, task_types=embedded)
    batches = MultiTaskDataset(
        rows,
        collate,
        args.per_device_train_batch_size,
        sampling=ContinualSchedule(tuple(rows), total, carry),
        seed=args.seed,
        accumulate=args.gradient_accumulation_steps,
        rank=args.process_index,
        world_size=args.world_size,
    )
    return MultiTaskTrainer(
        model,
        args,
        train_dataset=batches,
        eval_dataset=held_out,
        data_collator=collate,
        processing_class=tokenizer,
    )


__all__ = ["ernie2_rows", "ernie2_tasks", "ernie2_trainer"]
