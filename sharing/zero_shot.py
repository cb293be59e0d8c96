"""Which of several texts a language model would rather go on with: answers without training.

Brown et al. 2020, section 2.4: a candidate's score is its log probability behind the context, as it is, for each of its
tokens, or against its log probability behind a text that says nothing.

Context and candidate are tokenized as one text, since a tokenizer may join what stands on both sides of the border. The
score begins at the first token that is not the same for the context alone and for the context with every candidate, so all
candidates of a context are expected behind the same tokens. Where no token goes over the border, these are the context's.

These tokens are read once for all candidates where the model hands out what it remembers of them: keys and values of each
token, or the states of our LSTM.

Letters: B rows, L positions, K positions whose logits are made, N scored tokens, V words.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging

from ..modeling.backbones_joint_loss import position_limit
from ..modeling.recurrent_cache import RecurrentLayer
from .scoring import evaluating

logger = logging.get_logger(__name__)

NORMALIZATIONS = ("mean", "sum", "pmi")

# Caches that hold all that later tokens look at, as it is, so that rows may go on from copies.
EXACT_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, RecurrentLayer)
# Rows by which a cache is tried. The ids are the usual ones of padding, by which RoBERTa counts its positions otherwise
# with a cache than without.
PREFIX, NEXT = [0, 1], [[1, 1], [0, 0]]

# How models say that they take one token at a time behind a cache, or none of several.
REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

Row = tuple[tuple[int, ...], int]  # ids, and how many of them at the end are scored


@dataclass(frozen=True)
class RankedCandidate:
    """A candidate and how well it goes on.

    Args:
        index: its place among the candidates of its context.
        text: the candidate.
        score: nats; the more the better.
        tokens: how many were scored.
    """

    index: int
    text: str
    score: float
    tokens: int


class ZeroShotScorer:
    """Ranks texts by a causal language model, stock or our LSTM's.

    `reuses_context` says whether long contexts are read once for all their candidates: where the model has a cache, and
    goes on from it as it would from the tokens, which is tried. Set it to False to read every row whole.

    Args:
        model: returns logits of each next token.
        tokenizer: the model's.
        batch_size: rows at a time, a context with a candidate each.
        separator: stands between a context and a candidate where neither brings a space; "" for Chinese.

    Raises:
        ValueError: a model that sees tokens to the right, that has an encoder, or that makes no logits.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, batch_size: int = 16, separator: str = " "
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, found {batch_size}. Raise it.")
        self.model, self.tokenizer, self.batch_size, self.separator = model, tokenizer, batch_size, separator
        self._accepted = set(inspect.signature(model.forward).parameters)
        config = model.config.get_text_config()
        self._places = position_limit(model) or getattr(config, "max_position_embeddings", None)
        self._check_model()
        self.reuses_context = self._has_exact_cache()

    def rank(
        self,
        contexts: Sequence[str],
        candidates: Sequence[str] | Sequence[Sequence[str]],
        normalization: str = "mean",
        unconditional: str = "Answer:",
    ) -> list[list[RankedCandidate]]:
        """Rank the candidates of each context.

        A context that leaves no room loses its beginning; all its candidates then see the same rest of it.

        Args:
            contexts: texts to go on with. An empty one needs a tokenizer with a token that begins or ends texts.
            candidates: the same for all contexts, or a list for each.
            normalization: "sum" is log p(candidate | context); "mean" divides it by the candidate's tokens; "pmi"
                subtracts log p(candidate | unconditional), which takes away what is common in any context.
            unconditional: the context of "pmi" that says nothing of the question.

        Returns:
            For each context its candidates, the best first; of equals the earlier one.

        Raises:
            ValueError: a text where a list is expected, no or empty candidates, an unknown normalization, ids that the
                model does not have, or a candidate that is longer than the model's positions.
        """
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {NORMALIZATIONS}, found {normalization!r}.")
        choices = _choices(contexts, candidates)
        groups = [self._rows(context, own) for context, own in zip(contexts, choices, strict=True)]
        against = []
        if normalization == "pmi":
            against = [self._rows(unconditional, own) for own in choices]
        sums = self._sums([row for group in (*groups, *against) for row in group])
        ranked = []
        for number, (own, rows) in enumerate(zip(choices, groups, strict=True)):
            scores = [sums[row] for row in rows]
            if normalization == "mean":
                scores = [score / row[1] for score, row in zip(scores, rows, strict=True)]
            elif normalization == "pmi":
                scores = [score - sums[row] for score, row in zip(scores, against[number], strict=True)]
            found = [
                RankedCandidate(index, text, score, row[1])
                for index, (text, score, row) in enumerate(zip(own, scores, rows, strict=True))
            ]
            ranked.append(sorted(found, key=lambda one: -one.score))
        return ranked

    # Rows

    def _rows(self, context: str, candidates: Sequence[str]) -> list[Row]:
        """A row for each candidate of a context."""
        texts = [_joined(context, candidate, self.separator) for candidate in candidates]
        alone, *wholes = (
            self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            for text in (context, *texts)
        )
        border = min(_common(alone, whole) for whole in wholes)
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        if not begin and not border:
            if self.tokenizer.eos_token_id is None:
                raise ValueError(
                    f"nothing stands before the first scored token of {texts[0]!r:.80}, and the tokenizer has no bos_token "
                    "and no eos_token. Give a longer context, or set one of them."
                )
            begin = [self.tokenizer.eos_token_id]
        shared, longest = begin + alone[:border], max(len(whole) for whole in wholes) - border
        if self._places is not None:  # the last token is only a target
            room = self._places + 1 - longest
            if room < 1:
                raise ValueError(
                    f"a candidate of {longest} tokens does not fit into the model's {self._places} positions. Shorten it."
                )
            shared = shared[-room:]
        rows = [((*shared, *whole[border:]), len(whole) - border) for whole in wholes]
        for text, (ids, scored) in zip(candidates, rows, strict=True):
            if not scored:
                raise ValueError(
                    f"candidates must have tokens of their own, found {text!r} behind {context!r:.80}. Leave it out."
                )
            self._check_ids(ids)
        return rows

    # Scores

    def _sums(self, rows: Sequence[Row]) -> dict[Row, float]:
        """Summed log probabilities of each row's scored tokens; equal rows are read once."""
        behind: dict[tuple[int, ...], list[Row]] = {}
        for row in sorted(set(rows), key=lambda row: (-len(row[0]), row)):
            behind.setdefault(row[0][: -row[1]], []).append(row)
        # A short context is not worth a call of its own.
        shared = {
            prefix: own
            for prefix, own in behind.items()
            if self.reuses_context and len(own) > 1 and len(prefix) > own[0][1]
        }
        whole = [row for prefix, own in behind.items() if prefix not in shared for row in own]
        whole.sort(key=lambda row: -len(row[0]))
        sums = {}
        with evaluating(self.model):
            for some in self._slices(whole):
                sums |= self._batch(some)
            for _, prefixes in groupby(sorted(shared, key=len), key=len):
                for some in self._slices(list(prefixes)):
                    sums |= self._behind(some, [shared[prefix] for prefix in some])
        return sums

    def _slices(self, rows: list) -> list[list]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    def _behind(self, prefixes: list[tuple[int, ...]], groups: list[list[Row]]) -> dict[Row, float]:
        """Sums of rows behind prefixes of one length, each of which is read once."""
        read = torch.tensor([prefix[:-1] for prefix in prefixes], device=self.model.device)
        cache = self._remembered(read)
        rows = [(number, row) for number, own in enumerate(groups) for row in own]
        rows.sort(key=lambda one: -one[1][1])
        sums = {}
        for some in self._slices(rows):
            own = copy.deepcopy(cache)  # a call adds its tokens to it
            own.batch_select_indices(torch.tensor([number for number, _ in some], device=self.model.device))
            sums |= self._batch([row for _, row in some], own, read.shape[1])
        return sums

    def _batch(self, rows: list[Row], cache: Cache | None = None, read: int = 0) -> dict[Row, float]:
        """Sums of rows, whose first tokens a cache may already have read."""
        device = self.model.device
        ids = pad_sequence([torch.tensor(row[read:-1]) for row, _ in rows], batch_first=True)  # (B, L)
        lengths = torch.tensor([len(row) - 1 - read for row, _ in rows])
        places = torch.arange(ids.shape[1])
        mask = places < lengths[:, None]
        scored = mask & (places >= (lengths - torch.tensor([count for _, count in rows]))[:, None])
        targets = torch.tensor([token for row, count in rows for token in row[-count:]])  # (N,)
        some = scored.any(0).nonzero().squeeze(1)  # (K,)
        logits = self._logits(ids.to(device), mask.long().to(device), some.to(device), cache, read)
        chosen = logits[scored[:, some].to(device)]  # (N, V)
        logs = chosen.to(torch.promote_types(chosen.dtype, torch.float32)).log_softmax(-1)
        each = logs.gather(1, targets.to(device)[:, None]).squeeze(1).double().cpu()
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, scored.nonzero()[:, 0], each)
        return dict(zip(rows, sums.tolist(), strict=True))

    def _logits(
        self, ids: Tensor, mask: Tensor, places: Tensor, cache: Cache | None = None, read: int = 0
    ) -> Tensor:
        """(B, K, V) of some places of ids (B, L), behind tokens that a cache has read."""
        options = {"use_cache": cache is not None} if "use_cache" in self._accepted else {}
        if cache is not None:
            options["past_key_values"] = cache
            mask = torch.cat([mask.new_ones(len(mask), read), mask], 1)
        if "logits_to_keep" in self._accepted:
            return self.model(ids, attention_mask=mask, logits_to_keep=places, **options).logits
        return self.model(ids, attention_mask=mask, **options).logits[:, places]

    def _remembered(self, ids: Tensor) -> Cache | None:
        """What the model hands out behind rows (B, L) without padding."""
        options = {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}
        found = self.model(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
        return getattr(found, "past_key_values", None)

    def _has_exact_cache(self) -> bool:
        """Whether rows may go on from copies of one that was read before."""
        if not {"use_cache", "past_key_values"} <= self._accepted or _changes_with_length(self.model.config):
            return False
        if self._places is not None and self._places < len(PREFIX) + len(NEXT[0]):
            return False
        try:
            with evaluating(self.model):
                return self._goes_on()
        except REFUSALS as error:  # nothing is lost: rows are read whole
            logger.info(f"{type(self.model).__name__} does not go on from its cache: {error}")
            return False

    def _goes_on(self) -> bool:
        """Whether logits behind a cache are those behind the tokens."""
        before, after = (torch.tensor(some, device=self.model.device) for some in ([PREFIX], NEXT))
        mask = torch.ones_like(after)
        mask[1, -1] = 0
        places = torch.arange(after.shape[1], device=self.model.device)
        cache = self._remembered(before)
        if not all(map(_is_exact, getattr(cache, "layers", [None]))):
            return False
        cache.batch_select_indices(torch.zeros(len(after), dtype=torch.long, device=after.device))
        found = self._logits(after, mask, places, cache, before.shape[1])[mask.bool()]
        whole = torch.cat([before.expand(len(after), -1), after], 1)
        full = torch.cat([torch.ones_like(whole[:, : before.shape[1]]), mask], 1)
        expected = self._logits(whole, full, places + before.shape[1])[mask.bool()]
        near = torch.finfo(found.dtype).eps ** 0.5 * expected.abs().max()
        return bool((found - expected).abs().max() <= near)

    # Checks

    def _check_model(self) -> None:
        name, wanted = (
            type(self.model).__name__,
            "a causal language model (GPT2LMHeadModel, LstmLMForCausalLM ...)",
        )
        if self.model.config.is_encoder_decoder or "input_ids" not in self._accepted:
            raise ValueError(
                f"expected {wanted}, found {name}, which reads something else than one row of ids."
            )
        pairs = torch.tensor([[0, 1], [0, 2]], device=self.model.device)
        with evaluating(self.model):
            found = self.model(pairs, attention_mask=torch.ones_like(pairs))
        logits = getattr(found, "logits", None)
        if logits is None or logits.dim() != 3:
            raise ValueError(f"expected {wanted}, found {name}, which makes no logits of tokens (B, L, V).")
        if not torch.allclose(logits[0, 0], logits[1, 0], rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"expected {wanted}, found {name}, whose predictions change with tokens to the right. A BERT needs "
                "is_decoder=True and training as a language model."
            )

    def _check_ids(self, ids: Sequence[int]) -> None:
        words = self.model.get_input_embeddings().weight.shape[0]
        if max(ids) >= words:
            raise ValueError(
                f"the tokenizer makes the id {max(ids)}, but the model has {words} words. Use the tokenizer of this model."
            )


def _is_exact(layer) -> bool:
    """Whether rows may go on from copies of a cache's layer; a window of one token keeps all tokens in Transformers."""
    return type(layer) in EXACT_LAYERS and getattr(layer, "sliding_window", 2) > 1


def _changes_with_length(config: PreTrainedConfig) -> bool:
    """Whether keys of the first tokens depend on how many follow them."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]  # or one for each kind of layer
    return any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def _choices(contexts: Sequence[str], candidates: Sequence) -> list[Sequence[str]]:
    """The candidates of each context."""
    for name, texts in (("contexts", contexts), ("candidates", candidates)):
        if isinstance(texts, str):
            raise ValueError(f"{name} must be a list, found the text {texts[:40]!r}. Put it into a list.")
    shared = all(isinstance(one, str) for one in candidates)
    if not shared and (any(isinstance(one, str) for one in candidates) or len(candidates) != len(contexts)):
        raise ValueError(
            f"candidates must be texts, or a list of texts for each of the {len(contexts)} contexts; found "
            f"{len(candidates)} entries: {candidates!r:.80}."
        )
    choices = [candidates] * len(contexts) if shared else list(candidates)
    for number, own in enumerate(choices):
        if not len(own) or not all(isinstance(text, str) for text in own):
            raise ValueError(
                f"each context needs a candidate at least, and all must be texts; found {own!r:.80} for context {number}."
            )
    return choices


def _joined(context: str, candidate: str, separator: str) -> str:
    spaced = not context or context[-1].isspace() or candidate[:1].isspace()
    return context + ("" if spaced else separator) + candidate


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows have in common from the left."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


__all__ = ["NORMALIZATIONS", "RankedCandidate", "ZeroShotScorer"]
