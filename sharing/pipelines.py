"""`pipeline("translation")` and `pipeline("summarization")`, which Transformers 5 dropped, with the answers of version 4;
and `pipeline("lexical-substitution")`, the words that a biLM expects in a gap.

Registered when Transformers' pipelines are imported after or before heirloom; for our models and for stock ones.

Letters: B rows, N sequences a row, S source positions, T target positions.
"""

import torch
from transformers import AutoModelForPreTraining, AutoModelForSeq2SeqLM
from transformers import pipelines as stock_pipelines
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from ..training.parallel_text import TokenizerPair, has_own_tokenizer
from .lines import is_blank
from .scoring import lexical_substitutes
from .seq2seq_checkpoints import (
    check_seq2seq,
    decode,
    encode,
    end_ids,
    load_tokenizers,
    longest_target,
    padded,
    source_limit,
    until_end,
)

GAP = "___"


class Seq2SeqTextPipeline(Pipeline):
    """Texts in, texts out.

    What `generate()` takes may be given to the pipeline or to a call, as may `truncation=True`, which cuts sources that are
    too long, and `prefix`, by default the one of the checkpoint. Blank texts stay blank.
    """

    _pipeline_calls_generate = (
        False  # defaults come from `Translator`, the same in every version of Transformers
    )
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = None  # may fail: a checkpoint may hold two
    answer = "generated_text"

    def __init__(self, model, tokenizer=None, target_tokenizer=None, **kwargs):
        check_seq2seq(model.config, model.name_or_path or type(model).__name__)
        folder = model.name_or_path
        if tokenizer is None or (target_tokenizer is None and folder and has_own_tokenizer(folder, "source")):
            tokenizer, target_tokenizer = load_tokenizers(folder)
        self.target_tokenizer = tokenizer if target_tokenizer is None else target_tokenizer
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def _sanitize_parameters(self, truncation=None, prefix=None, **generate_kwargs):
        before = {"truncation": truncation, "prefix": prefix}
        return {name: value for name, value in before.items() if value is not None}, generate_kwargs, {}

    def __call__(self, inputs, *args, **kwargs):
        """Answer a text, a list of texts, or whatever else pipelines take.

        Args:
            inputs: a text, or several.
            *args: as in `Pipeline`.
            **kwargs: likewise; also what `generate()` takes.

        Returns:
            Of a text a list of `num_return_sequences` dictionaries with the answer; of texts a list of such lists, or, with
            one sequence each, of dictionaries.
        """
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if inputs == []:
            return []
        found = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(row) == 1 for row in found):
            return [row[0] for row in found]
        return found

    def preprocess(self, text: str, truncation: bool = False, prefix: str | None = None) -> dict:
        """Ids and mask (1, S) of a text; the mask of a blank one is 0."""
        if not isinstance(text, str):
            raise ValueError(f"a text is expected, found {type(text).__name__} {text!r:.60}.")
        limit = source_limit(self.model.config, self.tokenizer) if truncation else None
        prefix = self._prefix() if prefix is None else prefix
        ids = (
            [] if is_blank(text) else encode(self.model.config, self.tokenizer, [prefix + text], limit)[0][0]
        )
        input_ids, mask = padded([ids or [0]], 0, "cpu")
        return {"input_ids": input_ids, "attention_mask": mask if ids else torch.zeros_like(mask)}

    def _prefix(self) -> str:
        """What the checkpoint wants before each text, such as T5's `summarize: `."""
        tasks = getattr(self.model.config, "task_specific_params", None) or {}
        return (tasks.get(self.task) or {}).get("prefix") or getattr(self.model.config, "prefix", None) or ""

    def _forward(self, inputs: dict, **generate_kwargs) -> dict:
        """Sequences (B, N, T), which hold nothing but ends where there is no text."""
        own = ("max_new_tokens", "max_length", "generation_config", "max_time", "stopping_criteria")
        limit = None if set(own) & generate_kwargs.keys() else longest_target(self.model, None)
        options = generate_kwargs if limit is None else generate_kwargs | {"max_new_tokens": limit}
        known = inputs["attention_mask"].any(1)  # (B,)
        end = min(end_ids(self.model), default=self.target_tokenizer.pad_token_id or 0)
        if not known.any():
            sequences = (
                options.get("num_return_sequences") or self.model.generation_config.num_return_sequences
            )
            return {"output_ids": torch.full((len(known), sequences or 1, 1), end)}
        found = self.model.generate(
            input_ids=inputs["input_ids"][known], attention_mask=inputs["attention_mask"][known], **options
        )
        found = getattr(found, "sequences", found)
        found = found.reshape(int(known.sum()), -1, found.shape[1])
        output_ids = found.new_full((len(known), *found.shape[1:]), end)
        output_ids[known] = found
        return {"output_ids": output_ids}

    def postprocess(self, outputs: dict) -> list[dict[str, str]]:
        """Dictionaries with the answers to one text."""
        ends = end_ids(self.model)
        rows = [until_end(row[1:], ends) for row in outputs["output_ids"][0].tolist()]
        return [{self.answer: decode(self.target_tokenizer, row)} for row in rows]

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Write model and tokenizers, so that `pipeline` and `heirloom translate` read them again.

        Args:
            save_directory: a folder.
            **kwargs: as in the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        TokenizerPair(self.tokenizer, self.target_tokenizer).save_pretrained(save_directory)


class TranslationPipeline(Seq2SeqTextPipeline):
    """Answers with `translation_text`."""

    answer = "translation_text"


class SummarizationPipeline(Seq2SeqTextPipeline):
    """Answers with `summary_text`."""

    answer = "summary_text"


class SubstitutionPipeline(Pipeline):
    """A text with a gap `___` in, words for the gap out, with the keys of "fill-mask".

    Needs an ELMo with its softmax. `top_k` (10) may be given to the pipeline or to a call.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def _sanitize_parameters(self, top_k=None):
        return {}, {} if top_k is None else {"top_k": top_k}, {}

    def preprocess(self, text: str) -> dict:
        """Words of the text, and the place of the gap among them."""
        parts = text.split(GAP) if isinstance(text, str) else []
        if len(parts) != 2:
            raise ValueError(f"a text with one gap {GAP} is expected, found {text!r:.80}.")
        left, right = (self.tokenizer.tokenize(part) for part in parts)
        return {"words": [*left, GAP, *right], "index": len(left)}

    def _forward(self, inputs: dict, top_k: int = 10) -> dict:
        # The model reads both sides of the place, never what stands there.
        found = lexical_substitutes(self.model, self.tokenizer, inputs["words"], inputs["index"], top_k)
        return inputs | {"found": found}

    def postprocess(self, outputs: dict) -> list[dict]:
        """Dictionaries with `score` (a probability), `token_str` and `sequence`, the most probable first."""
        words, index = outputs["words"], outputs["index"]
        return [
            {
                "score": score,
                "token_str": word,
                "sequence": " ".join([*words[:index], word, *words[index + 1 :]]),
            }
            for word, score in outputs["found"]
        ]


PIPELINES = {"translation": TranslationPipeline, "summarization": SummarizationPipeline}


def register_pipelines() -> None:
    """Make these tasks known to Transformers, unless someone else did."""
    refused = getattr(
        stock_pipelines, "REMOVED_TASKS", {}
    )  # 5.23 refuses these names before it looks them up
    for task, pipeline_class in PIPELINES.items():
        refused.pop(task, None)
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, AutoModelForSeq2SeqLM, type="text")
    if "lexical-substitution" not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            "lexical-substitution", SubstitutionPipeline, AutoModelForPreTraining, type="text"
        )


__all__ = ["SubstitutionPipeline", "SummarizationPipeline", "TranslationPipeline", "register_pipelines"]
