"""One row of tokens for each kind of task (Radford et al. 2018, section 3.3).

    classification    _start_ text _classify_
    entailment        _start_ premise _delimiter_ hypothesis _classify_
    similarity        _start_ a _delimiter_ b _classify_  and  _start_ b _delimiter_ a _classify_
    multiple choice   _start_ context question _delimiter_ choice _classify_  for each choice

The three marks are new tokens, which nothing but a layout writes: a text that spells one out is read as text. Where it
leaves the original: text is cut by the tokenizer's `truncation_side`, and by default no shorter than it must be;
`truncation="halves"` cuts as the original does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The columns of a row that each form reads; multiple choice also takes a column `question`.
FORMS: dict[str, tuple[str, ...]] = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
    "multiple_choice": ("context", "choices"),
}
TRUNCATIONS = ("longest_first", "context", "halves")

Text = str | Sequence[int]


@dataclass(frozen=True)
class InputTemplate:
    """Marks around texts, and how texts that are too long are cut; the marks never are.

    Args:
        start: mark before a row. This and the others may also be tokens that the tokenizer has, such as "[CLS]".
        delimiter: mark between two texts.
        classify: mark after a row, whose vector the head reads.
        max_length: places of a row, marks included.
        truncation: "longest_first" shortens the longer text until they are as long; "context" only the first text
            (premise, context), the second stays whole; "halves" gives each of two texts `max_length // 2 - 2` places,
            needed or not (the original). Of several choices all see the same context, and a question stays whole.

    Raises:
        ValueError: equal marks, an unknown way to cut, or no room for text.
    """

    start: str = "_start_"
    delimiter: str = "_delimiter_"
    classify: str = "_classify_"
    max_length: int = 512
    truncation: str = "longest_first"

    def __post_init__(self):
        if len(set(self.marks)) < 3 or not all(self.marks):
            raise ValueError(
                f"start, delimiter and classify must be three different tokens, found {self.marks}. The head looks for "
                "classify, which therefore may stand nowhere else."
            )
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"truncation must be one of {TRUNCATIONS}, found {self.truncation!r}.")
        least = 6 if self.truncation == "halves" else 5
        if self.max_length < least:
            raise ValueError(
                f"max_length must be at least {least}: three marks and a token of each text, found {self.max_length}."
            )

    # Tokens

    @property
    def marks(self) -> tuple[str, str, str]:
        """The marks in the order of their new ids, which is the original's."""
        return self.start, self.delimiter, self.classify

    def prepare(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> int:
        """Add the marks to a tokenizer, and rows for them to a model's embeddings, drawn from N(0, initializer_range).

        Args:
            tokenizer: gets the marks as special tokens; does nothing for those that it has.
            model: a joint model, or a language model. Without one, call again with the model before it reads a row.

        Returns:
            How many tokens were new to the tokenizer.

        Raises:
            ValueError: a model with fewer positions than `max_length`, or one whose head reads another token.
        """
        known = tokenizer.get_vocab()
        missing = [mark for mark in self.marks if mark not in known]
        if missing:
            tokenizer.add_special_tokens(
                {"extra_special_tokens": missing}, replace_extra_special_tokens=False
            )
        size = max(tokenizer.get_vocab().values()) + 1
        if model is None:
            if missing:
                logger.warning(
                    f"{len(missing)} tokens ({', '.join(missing)}) are new: a model needs {size} embeddings. Resize it with "
                    "template.prepare(tokenizer, model), or load the resized one."
                )
            return len(missing)
        self._check_model(tokenizer, model)
        if model.get_input_embeddings().weight.shape[0] < size:
            # The mean of all words says nothing about a mark; the original draws small numbers.
            model.resize_token_embeddings(size, mean_resizing=False)
        return len(missing)

    def _check_model(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
        from ..modeling.backbones_joint_loss import position_limit

        places = position_limit(getattr(model, "language_model", model))
        if places is not None and places < self.max_length:
            raise ValueError(
                f"the model has {places} positions, found max_length={self.max_length}. Use InputTemplate(max_length="
                f"{places})."
            )
        read = getattr(model.config, "classify_token_id", None)
        wanted = self.ids(tokenizer)[2]
        if read is not None and read != wanted:
            raise ValueError(
                f"the model's head reads the vector of token {read}, but {self.classify} is token {wanted}. Make the model "
                "with **template.model_options(tokenizer), or use the tokenizer that it was trained with."
            )

    def model_options(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
        """Fields of `JointLossConfig` that make a head read the vector of `classify`.

        Args:
            tokenizer: one that has been prepared.

        Returns:
            For `from_backbone_pretrained(..., **template.model_options(tokenizer))`.
        """
        return {"pooling": "classify_token", "classify_token_id": self.ids(tokenizer)[2]}

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
        """Ids of the three marks.

        Args:
            tokenizer: one that has been prepared.

        Raises:
            ValueError: it has not been.
        """
        known = tokenizer.get_vocab()
        missing = [mark for mark in self.marks if mark not in known]
        if missing:
            raise ValueError(
                f"the tokenizer does not know {', '.join(missing)}. Call template.prepare(tokenizer, model) first."
            )
        return tuple(known[mark] for mark in self.marks)

    # Layouts

    def rows(
        self, tokenizer: PreTrainedTokenizerBase, form: str, texts: Mapping[str, Text | Sequence[Text] | None]
    ) -> list[list[int]]:
        """The rows of one example: one, or two for similarity, or as many as choices.

        Args:
            tokenizer: one that has been prepared.
            form: a key of `FORMS`.
            texts: the form's columns; each a string, or its token ids.

        Returns:
            Token ids, each row at most `max_length`.

        Raises:
            ValueError: an unknown form, something that is no text, a mark inside a text, or no room.
        """
        if form not in FORMS:
            raise ValueError(f"form must be one of {sorted(FORMS)}, found {form!r}.")
        lacking = [name for name in FORMS[form] if texts.get(name) is None]
        if lacking:
            raise ValueError(
                f"form {form!r} reads the columns {', '.join(FORMS[form])}, found nothing in {', '.join(lacking)}."
            )
        if form == "multiple_choice":
            return self.multiple_choice(tokenizer, **{n: texts.get(n) for n in (*FORMS[form], "question")})
        layout = getattr(self, form)(tokenizer, *(texts[name] for name in FORMS[form]))
        return layout if form == "similarity" else [layout]

    def classification(self, tokenizer: PreTrainedTokenizerBase, text: Text) -> list[int]:
        """`_start_ text _classify_`; arguments and errors as in `rows`."""
        start, _, classify = self.ids(tokenizer)
        text = self._encode(tokenizer, text, "text")
        return [start, *_kept(tokenizer, text, self.max_length - 2), classify]

    def entailment(self, tokenizer: PreTrainedTokenizerBase, premise: Text, hypothesis: Text) -> list[int]:
        """`_start_ premise _delimiter_ hypothesis _classify_`; arguments and errors as in `rows`."""
        return self._pairs(tokenizer, ("premise", premise), ("hypothesis", [hypothesis]))[0]

    def similarity(self, tokenizer: PreTrainedTokenizerBase, first: Text, second: Text) -> list[list[int]]:
        """The two orders of two texts, cut alike in both; arguments and errors as in `rows`."""
        start, delimiter, classify = self.ids(tokenizer)
        row = self._pairs(tokenizer, ("first", first), ("second", [second]))[0]
        middle = row.index(delimiter)
        return [row, [start, *row[middle + 1 : -1], delimiter, *row[1:middle], classify]]

    def multiple_choice(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: Text,
        choices: Sequence[Text],
        question: Text | None = None,
    ) -> list[list[int]]:
        """A row for each choice, all with the same context; arguments and errors as in `rows`."""
        if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) < 2:
            raise ValueError(f"choices must be a list of at least two texts, found {choices!r:.200}.")
        return self._pairs(tokenizer, ("context", context), ("choices", choices), question)

    def _pairs(
        self,
        tokenizer: PreTrainedTokenizerBase,
        left: tuple[str, Text],
        right: tuple[str, Sequence[Text]],
        question: Text | None = None,
    ) -> list[list[int]]:
        """One text before each of several others; names of columns stand beside them, for errors."""
        start, delimiter, classify = self.ids(tokenizer)
        first = self._encode(tokenizer, left[1], left[0])
        others = [self._encode(tokenizer, text, right[0]) for text in right[1]]
        asked = [] if question is None else self._encode(tokenizer, question, "question")
        places, other_places = self._places(len(first), max(map(len, others)), len(asked), left[0])
        first = [start, *_kept(tokenizer, first, places), *asked, delimiter]
        return [[*first, *_kept(tokenizer, text, other_places), classify] for text in others]

    def _places(self, first: int, second: int, asked: int, name: str) -> tuple[int, int]:
        """Tokens to keep of two texts that have so many, beside a question that stays whole."""
        room = self.max_length - 3 - asked
        if self.truncation == "halves":
            half = self.max_length // 2 - 2
            kept = half - asked, half
        elif first + second <= room:
            kept = first, second
        elif self.truncation == "context":
            kept = room - second, second
        else:  # a text stays whole where it takes no more than half
            cut = min(second, max(room // 2, room - first))
            kept = room - cut, cut
        if kept[0] < min(1, first) or kept[1] < min(1, second):
            advice = ' or use truncation="longest_first"' if self.truncation == "context" else ""
            raise ValueError(
                f"max_length={self.max_length} leaves no place for the {name}: the other text has {second} tokens, the "
                f"question {asked}, the marks 3. Raise max_length, shorten them{advice}."
            )
        return kept

    def _encode(self, tokenizer: PreTrainedTokenizerBase, text: Text, name: str) -> list[int]:
        if isinstance(text, str):
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
                "input_ids"
            ]
        elif isinstance(text, Sequence) and all(isinstance(token, int) for token in text):
            ids = list(text)
        else:
            raise ValueError(f"{name} must be a text or a list of token ids, found {text!r:.200}.")
        found = set(self.ids(tokenizer)).intersection(ids)
        if found:
            raise ValueError(
                f"{name} holds the marks {tokenizer.convert_ids_to_tokens(sorted(found))} themselves: {text!r:.200}. Remove "
                "them from the text, or choose other marks."
            )
        return ids


def _kept(tokenizer: PreTrainedTokenizerBase, ids: list[int], places: int) -> list[int]:
    """The part of a text that stays, at the end that `truncation_side` does not name."""
    if len(ids) <= places:
        return ids
    return ids[len(ids) - places :] if tokenizer.truncation_side == "left" else ids[:places]


__all__ = ["FORMS", "TRUNCATIONS", "InputTemplate"]
