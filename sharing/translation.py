"""Texts through an encoder-decoder: ours, or any of Transformers, for translation, summaries and the like.

Texts are read in chunks, each sorted by length, so that batches have little padding and long files need little memory. A
source is what its tokenizer makes of it when called, as in training. Blank texts never reach the model and stay blank.

Letters: B rows, S source positions, T target positions, V words.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from ..training.plots import plot_attention
from .lines import is_blank, new_text_file, one_line, read_lines, refuse_existing
from .quiet import quiet_libraries
from .scoring import evaluating
from .seq2seq_checkpoints import (
    check_seq2seq,
    decode,
    encode,
    end_ids,
    load,
    longest_target,
    padded,
    positions_of,
    token_texts,
    until_end,
    vocabulary_size,
)

logger = logging.get_logger(__name__)

CHUNK = 2048  # texts of a file that are held, and sorted by length
SCORES = 2**27  # scores that generate() may hold: those of every word at every step
PICTURES = 5  # sentences that get a heat map


@dataclass(frozen=True)
class Hypothesis:
    """What the model made of a text.

    Args:
        text: without special tokens; an unknown word shows as the tokenizer writes it.
        score: sum of the tokens' log-likelihoods in nats, divided by their number to the power of `length_penalty`, as
            `generate()` scores beams; None if scores were not asked for.
        token_ids: of the target, with the token of its end if there is one.
    """

    text: str
    score: float | None
    token_ids: tuple[int, ...] = ()


class Translator:
    """A model, its tokenizers and how to search; it counts what it had to cut.

    Args:
        model: an encoder-decoder that can generate.
        source_tokenizer: of what it reads.
        target_tokenizer: of what it writes; None if one is for both.
        num_beams: hypotheses that are kept at each step; None asks the model's generation config.
        n_best: how many of them to return.
        scores: tell scores, too. Batches may be smaller then, since `generate()` keeps all numbers.
        batch_size: texts at a time, of similar lengths.
        max_new_tokens: of a target; None asks the generation config, or else is 256 or as many as the decoder has positions.
        length_penalty: exponent of the length that divides a score; 0 for none. None asks the generation config.
        max_source_tokens: cut longer sources; None refuses those that the model cannot read.

    Raises:
        ValueError: a model of another kind, or options that contradict it or each other.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer | None = None,
        num_beams: int | None = None,
        n_best: int = 1,
        scores: bool = False,
        batch_size: int = 32,
        max_new_tokens: int | None = None,
        length_penalty: float | None = None,
        max_source_tokens: int | None = None,
    ):
        check_seq2seq(model.config, type(model).__name__)
        self.model, self.source_tokenizer = model, source_tokenizer
        self.target_tokenizer = source_tokenizer if target_tokenizer is None else target_tokenizer
        defaults = model.generation_config
        self.num_beams = (defaults.num_beams or 1) if num_beams is None else num_beams
        self.n_best, self.scores, self.batch_size = n_best, scores, batch_size
        given = (self.num_beams, n_best, batch_size, max_new_tokens, max_source_tokens)
        for name, value in zip(
            ("num_beams", "n_best", "batch_size", "max_new_tokens", "max_source_tokens"), given, strict=True
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, found {value}. Raise it.")
        if n_best > self.num_beams:
            raise ValueError(
                f"the {n_best} best need at least as many beams, found num_beams {self.num_beams}. Raise num_beams."
            )
        told = defaults.length_penalty if length_penalty is None else length_penalty
        self.length_penalty = 1.0 if told is None else told
        if not math.isfinite(self.length_penalty):
            raise ValueError(
                f"length_penalty must be a finite number, found {self.length_penalty}. Change it."
            )
        self.max_new_tokens = longest_target(model, max_new_tokens)
        self.max_source_tokens, positions = max_source_tokens, positions_of(model.config, "encoder")
        if positions is not None and (max_source_tokens or 0) > positions:
            raise ValueError(
                f"the model reads {positions} source tokens at most, found max_source_tokens {max_source_tokens}. "
                "Lower it."
            )
        self.truncated = self.unfinished = 0

    def encode(self, texts: Sequence[str], first: int = 1) -> list[list[int]]:
        """Ids of sources, as `encode` makes them; what it cuts is counted."""
        rows, cut = encode(self.model.config, self.source_tokenizer, texts, self.max_source_tokens, first)
        self.truncated += cut
        return rows

    def __call__(
        self, texts: Sequence[str], first: int = 1, advance: Callable[[int], object] = int
    ) -> list[list[Hypothesis]]:
        """Translate texts, all of which are held.

        Args:
            texts: the sources.
            first: number of the first one, for messages.
            advance: told of every batch how many texts it had.

        Returns:
            The best hypotheses of each text, best first.
        """
        rows = self.encode(texts, first)
        blank = [not row or is_blank(text) for row, text in zip(rows, texts, strict=True)]
        found = {
            number: [Hypothesis("", 0.0 if self.scores else None)] * self.n_best
            for number in range(len(rows))
        }
        order = sorted(
            (number for number in range(len(rows)) if not blank[number]), key=lambda n: -len(rows[n])
        )
        advance(len(rows) - len(order))
        with evaluating(self.model):
            for numbers in self._batches(order):
                sources = [rows[number] for number in numbers]
                found |= dict(zip(numbers, self._translate(sources), strict=True))
                advance(len(numbers))
        return [found[number] for number in range(len(rows))]

    def _batches(self, order: list[int]) -> Iterator[list[int]]:
        size = self.batch_size
        if self.scores:
            words, defaults = (
                vocabulary_size(self.model.config, "decoder") or 2**16,
                self.model.generation_config,
            )
            longest = self.max_new_tokens or defaults.max_new_tokens or defaults.max_length
            size = min(size, max(1, SCORES // (self.num_beams * words * longest)))
        return (order[start : start + size] for start in range(0, len(order), size))

    def _translate(self, sources: list[list[int]]) -> list[list[Hypothesis]]:
        """One batch."""
        ids, mask = padded(sources, self.source_tokenizer.pad_token_id or 0, self.model.device)
        options = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        if self.num_beams > 1:
            options["length_penalty"] = self.length_penalty  # without beams it only makes generate() warn
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=self.num_beams,
            num_return_sequences=self.n_best,
            return_dict_in_generate=True,
            output_scores=self.scores,
            **options,
        )
        ends = end_ids(self.model)
        rows = [until_end(row, ends) for row in output.sequences[:, 1:].tolist()]
        scores = self._scores(output, rows) if self.scores else [None] * len(rows)
        found = [
            Hypothesis(decode(self.target_tokenizer, row), score, tuple(row))
            for row, score in zip(rows, scores, strict=True)
        ]
        groups = [found[start : start + self.n_best] for start in range(0, len(found), self.n_best)]
        self.unfinished += sum(not ends & set(group[0].token_ids) for group in groups)
        return groups

    def _scores(self, output, rows: list[list[int]]) -> list[float]:
        if self.num_beams > 1:
            return output.sequences_scores.tolist()
        totals = torch.zeros(len(rows), dtype=torch.float64)
        for step, logits in enumerate(output.scores):  # (B, V) each
            alive = [number for number, row in enumerate(rows) if step < len(row)]
            tokens = torch.tensor([[rows[number][step]] for number in alive], device=logits.device)
            logs = logits[alive].float().log_softmax(1).gather(1, tokens)
            totals[alive] += logs.squeeze(1).double().cpu()
        return [
            total / max(1, len(row)) ** self.length_penalty
            for total, row in zip(totals.tolist(), rows, strict=True)
        ]

    def notes(self) -> list[str]:
        """What was cut so far, in words."""
        found = []
        if self.truncated:
            found.append(f"sources cut to {self.max_source_tokens} tokens: {self.truncated:,}")
        if self.unfinished:
            limit = f"{self.max_new_tokens} tokens" if self.max_new_tokens else "the longest length"
            found.append(f"targets cut at {limit}, before their end: {self.unfinished:,}")
        return found


def translate(
    model: PreTrainedModel,
    source_tokenizer: Tokenizer,
    target_tokenizer: Tokenizer | None,
    texts: Sequence[str],
    num_beams: int | None = None,
    n_best: int = 1,
    scores: bool = False,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    length_penalty: float | None = None,
    max_source_tokens: int | None = None,
) -> list[list[Hypothesis]]:
    """Translate texts; what was cut is warned of.

    Args:
        model: an encoder-decoder, ours or of Transformers.
        source_tokenizer: of what it reads.
        target_tokenizer: of what it writes; None if one is for both.
        texts: the sources; a blank one has blank hypotheses.
        num_beams: as in `Translator`; so are all others.
        n_best: how many hypotheses a text.
        scores: tell their scores.
        batch_size: texts at a time.
        max_new_tokens: of a target.
        length_penalty: exponent of the length.
        max_source_tokens: cut longer sources.

    Returns:
        The best hypotheses of each text, best first, in the order of the texts.

    Raises:
        ValueError: a single text, a source that is too long, a model of another kind, or contradicting options.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts must be a list, found the text {texts[:40]!r}. Put it into a list.")
    translator = Translator(
        model,
        source_tokenizer,
        target_tokenizer,
        num_beams,
        n_best,
        scores,
        batch_size,
        max_new_tokens,
        length_penalty,
        max_source_tokens,
    )
    found = []
    for start in range(0, len(texts), CHUNK):
        found += translator(texts[start : start + CHUNK], start + 1)
    for note in translator.notes():
        logger.warning(f"{note}.")
    return found


def attend(model: PreTrainedModel, source_ids: Sequence[int], target_ids: Sequence[int]) -> Tensor:
    """How much each target token looked at each source token when it was predicted.

    Args:
        model: an encoder-decoder.
        source_ids: S ids, as its tokenizer makes them.
        target_ids: T ids without the decoder's start, as in `Hypothesis`.

    Returns:
        (T, S), rows sum to 1: the mean over all layers and heads.

    Raises:
        ValueError: no ids, or a model that tells no attention.
    """
    if not len(source_ids) or not len(target_ids):
        raise ValueError(
            f"ids of both sides are expected, found {len(source_ids)} of the source and {len(target_ids)} of the target."
        )
    start = model.generation_config.decoder_start_token_id
    start = model.config.decoder_start_token_id if start is None else start
    ids = torch.tensor([list(source_ids)], device=model.device)
    before = torch.tensor([[start, *target_ids[:-1]]], device=model.device)
    with evaluating(model), _telling_attention(model):
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=before,
            output_attentions=True,
            use_cache=False,
        )
    layers = [layer for layer in output.cross_attentions or () if layer is not None]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} tells no cross_attentions; a model with attention is expected."
        )
    return torch.stack([layer[0].float().mean(0) for layer in layers]).mean(0).cpu()


@contextlib.contextmanager
def _telling_attention(model: PreTrainedModel) -> Iterator[None]:
    """Fused kernels tell no attention; those halves of a model that use one get the plain one for a while."""
    halves = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [(half, half.config._attn_implementation) for half in halves]
    fused = [(half, name) for half, name in before if name not in (None, "eager")]
    try:
        for half, _ in fused:
            half.set_attn_implementation("eager")
        yield
    finally:
        for half, name in fused:
            half.set_attn_implementation(name)


def translate_file(
    checkpoint: str,
    source: str,
    output: Path | None = None,
    text_column: str | None = None,
    attention: Path | None = None,
    **options,
) -> list[str]:
    """Translate a file, in its order and in little memory.

    Args:
        checkpoint: an encoder-decoder; folder or Hub name.
        source: whatever `open_shards` opens, or "-" for standard input.
        output: the file to write, must not exist; None means standard output. A line holds one hypothesis, after its score
            and a tab if there are scores; a text has as many lines as hypotheses, a blank one too.
        text_column: column of a table.
        attention: a new folder for heat maps of the first sentences.
        **options: of `Translator`.

    Returns:
        A summary.

    Raises:
        FileExistsError: the output exists, or the folder holds something.
        FileNotFoundError: no such checkpoint, input or output folder.
        ValueError: another model, a source that is too long, or a text that is no UTF-8.
    """
    refuse_existing(output)
    if attention is not None and attention.exists() and (not attention.is_dir() or any(attention.iterdir())):
        raise FileExistsError(f"{attention} exists. Choose another folder, or delete it.")
    lines = read_lines(source, text_column)
    with quiet_libraries():
        model, source_tokenizer, target_tokenizer = load(checkpoint)
    translator = Translator(model, source_tokenizer, target_tokenizer, **options)
    count = blank = pictures = 0
    with (
        new_text_file(output) as file,
        logging.tqdm(desc="Translating", unit=" sentences", disable=output is None) as bar,
    ):
        while chunk := list(islice(lines, CHUNK)):
            for text, found in zip(chunk, translator(chunk, count + 1, bar.update), strict=True):
                count += 1
                blank += is_blank(text)
                file.writelines(_line(hypothesis) for hypothesis in found)
                if attention is not None and pictures < PICTURES and found[0].token_ids:
                    _draw(translator, text, found[0], attention / f"{count:05d}.png")
                    pictures += 1
            file.flush()
    summary = [f"{count:,} sentences, {blank:,} of them blank", *translator.notes()]
    return summary + ([f"{pictures} heat maps in {attention}"] if attention is not None else [])


def _line(hypothesis: Hypothesis) -> str:
    score = "" if hypothesis.score is None else f"{hypothesis.score:.6f}\t"
    return f"{score}{one_line(hypothesis.text)}\n"


def _draw(translator: Translator, text: str, hypothesis: Hypothesis, picture: Path) -> None:
    """Write a sentence's heat map."""
    source = translator.encode([text])[0]
    weights = attend(translator.model, source, hypothesis.token_ids)
    names = (
        token_texts(translator.source_tokenizer, source),
        token_texts(translator.target_tokenizer, hypothesis.token_ids),
    )
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_attention(weights.numpy(), *names).savefig(picture)


__all__ = ["Hypothesis", "Translator", "attend", "translate", "translate_file"]
