"""The pre-training objectives that are one line each: what they hide, in which rows, and which models learn them.

An objective is rows cut out of documents, a collator with the paper's defaults, and models. Shares, lengths and weights
stand in the dataclasses of `objectives/`; the table of `docs/objectives.md` is written from them.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from ..modeling.gathered_head import HEADS
from ..objectives.attention_masks import DataCollatorForUnifiedLM
from ..objectives.masking import (
    Budget,
    KnowledgeMasking,
    NgramMasking,
    SpanMasking,
    TokenMasking,
    WholeWordMasking,
)
from ..objectives.ngram_pairs import DataCollatorForNgramContrast, NgramPairs
from ..objectives.noise import Compose, Masking, ReplacedTokenNoise, SentencePermutation, TextInfilling
from ..objectives.permutation import DataCollatorForPermutationLanguageModeling, PermutationTargets
from ..objectives.pretraining_collators import (
    DataCollatorForDenoising,
    DataCollatorForMaskedLanguageModeling,
    DataCollatorForMass,
    DataCollatorForReplacedTokenDetection,
    DataCollatorForSpanCorruption,
    SpanBoundaryTargets,
)
from ..objectives.replacement import Replacement, TrigramShuffle
from ..objectives.sequence_noise import MassFragment, SpanCorruption
from ..objectives.text_packing import DataCollatorForCausalLanguageModeling
from ..objectives.token_lanes import DataCollatorForTokenLanes
from .objective_rows import Blocks, Contiguous, Laned, Pairs, SpanRows

Rows = Callable[..., Dataset]  # of `objective_rows.py`


@dataclass(frozen=True)
class Models:
    """Which models an objective fits.

    Args:
        auto: the Auto class of Transformers that opens them.
        types: their `model_type`.
        example: a checkpoint on the Hub, or new weights where there is none.
        ours: a class of ours that is built around them, "" for none.
    """

    auto: str
    types: tuple[str, ...]
    example: str
    ours: str = ""

    def classes(self) -> tuple[str, ...]:
        """Names of the stock classes, in the order of `types`."""
        mapping = getattr(modeling_auto, AUTO_NAMES[self.auto])
        found = [mapping[name] for name in self.types if name in mapping]
        found = [name if isinstance(name, str) else name[0] for name in found]
        return tuple(dict.fromkeys(found))


AUTO_NAMES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}

MASKED = ("bert", "roberta", *(name for name in HEADS if name not in ("bert", "roberta")))
BERT = "google-bert/bert-base-uncased"
MASKED_MODELS = Models("AutoModelForMaskedLM", MASKED, BERT)
# Not ernie, whose label of a pair is 1 where BERT's is 0.
PAIR_MODELS = Models("AutoModelForPreTraining", ("bert", "megatron-bert"), BERT)
# XLNet's published weights see both sides.
NEW_XLNET = """'{"model_type": "xlnet"}' --tokenizer xlnet/xlnet-base-cased"""
CAUSAL_TYPES = ("gpt2", "openai-gpt", "gpt_neo", "gpt_neox", "opt", "llama")


@dataclass(frozen=True)
class Objective:
    """One way to pre-train a model.

    Args:
        name: as in `--objective`.
        paper: authors, year and section.
        about: one sentence.
        models: which fit.
        rows: cuts rows out of documents.
        collator: makes batches of the rows.
        parts: the collator's arguments besides the tokenizer.
        segmented: it needs a segmenter, which says what a phrase is.
        part: attribute of our model that holds the stock model to use afterwards, "" for the model itself.
        config: fields of a new model's config, where the user does not say others.
        memory: fields that any model's config gets; see `remembering`.
    """

    name: str
    paper: str
    about: str
    models: Models
    rows: Rows
    collator: type
    parts: Mapping[str, object] = field(default_factory=dict)
    segmented: bool = False
    part: str = ""
    config: Mapping[str, object] = field(default_factory=dict)
    memory: Mapping[str, object] = field(default_factory=dict)

    @property
    def words(self) -> bool:
        """Whether rows need `word_ids`."""
        values = (self.parts.get(name) for name in ("masking", "targets", "ngrams"))
        return any(_reads_words(value) for value in values)

    @property
    def paired(self) -> bool:
        """Whether a row has two texts, for which a corpus must have several documents."""
        return isinstance(self.rows, Pairs)

    def remembering(self, mem_len: int | None, reuse_len: int | None, max_tokens: int) -> "Objective":
        """The same objective with memories from row to row.

        Args:
            mem_len: tokens that are remembered; None changes nothing.
            reuse_len: xlnet: tokens of each row that become memory; None for half of a row.
            max_tokens: of a row.

        Raises:
            ValueError: another objective than xlnet and transformer-xl, or numbers that do not fit one another.
        """
        if mem_len is None and reuse_len is None:
            return self
        if self.name not in ("xlnet", "transformer-xl"):
            raise ValueError(f"--mem_len, --reuse_len: for xlnet and transformer-xl only, not {self.name}.")
        if mem_len is None or mem_len < 1:
            raise ValueError(
                f"mem_len is {mem_len}; expected the number of tokens to remember, 384 with a reuse_len of 256 in XLNet"
            )
        if self.name == "transformer-xl":
            if reuse_len is not None:
                raise ValueError("--reuse_len: for xlnet only; transformer-xl remembers whole rows.")
            return replace(self, memory={"mem_len": mem_len})
        reuse_len = max_tokens // 2 if reuse_len is None else reuse_len
        return replace(
            self,
            rows=Laned(reuse_len),
            parts={"targets": replace(self.parts["targets"], reuse_length=reuse_len)},
            memory={"mem_len": mem_len, "reuse_len": reuse_len, "use_mems_train": True},
        )

    def make_collator(self, tokenizer: PreTrainedTokenizerBase, seed: int = 0):
        """The collator with the paper's defaults."""
        seeded = {"seed": seed} if hasattr(self.collator, "set_epoch") else {}  # others draw nothing
        return self.collator(tokenizer, **self.parts, **seeded)

    def defaults(self) -> str:
        """Rows and strategies with all numbers, as they are written in Python."""
        shown = [plain(self.rows), *(f"{name}={plain(value)}" for name, value in self.parts.items())]
        return ", ".join(shown)

    def usage(self) -> str:
        """The options of `heirloom pretrain` that ask for it."""
        more = " --segmenter jieba" if self.segmented else ""
        return f"--objective {self.name} --model {self.models.example}{more}"

    def check_model(self, model_type: str, name: str) -> None:
        """Raise a ValueError unless models of this type learn this objective.

        Args:
            model_type: of the model's config.
            name: what the user called the model.
        """
        if model_type in self.models.types:
            return
        others = [other.name for other in OBJECTIVES if model_type in other.models.types]
        hint = f" Objectives for {model_type} are {', '.join(others)}." if others else ""
        raise ValueError(
            f"objective {self.name} needs one of {', '.join(self.models.types)} ({', '.join(self.models.classes())}), but "
            f"{name} is {model_type}.{hint}"
        )


def _reads_words(strategy: object) -> bool:
    if isinstance(strategy, WholeWordMasking | SpanMasking):
        return True
    if isinstance(strategy, KnowledgeMasking):
        return "word_ids" in strategy.columns or strategy.basic == "word"
    return getattr(strategy, "unit", "token") == "word"


def plain(value: object) -> str:
    """A dataclass as one would write it, nested ones too, without what is None."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(plain, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, float):
        return f"{value:.4g}"
    if not is_dataclass(value):
        return repr(value)
    given = {one.name: getattr(value, one.name) for one in fields(value)}
    inner = [f"{name}={plain(item)}" for name, item in given.items() if item is not None]
    return f"{type(value).__name__}({', '.join(inner)})"


MASKER = DataCollatorForMaskedLanguageModeling
BERT_HIDES = {"masking": TokenMasking(), "replacement": Replacement()}
SPANS_HIDE = {"masking": SpanMasking(), "replacement": Replacement(per="span")}
ELECTRA = "google/electra-small-discriminator"
ELECTRA_HIDES = Masking(replacement=Replacement(mask=0.85, random=0.0))

OBJECTIVES = (
    Objective(
        "mlm",
        "Devlin et al. 2019, section 3.1",
        "Tell hidden tokens, without pairs of sentences.",
        MASKED_MODELS,
        Blocks(),
        MASKER,
        BERT_HIDES,
    ),
    Objective(
        "bert",
        "Devlin et al. 2019, section 3.1",
        "Tell hidden tokens, and whether the second text follows the first.",
        PAIR_MODELS,
        Pairs("nsp"),
        MASKER,
        BERT_HIDES,
    ),
    Objective(
        "roberta",
        "Liu et al. 2019, section 4",
        "Tell hidden tokens in rows that are filled with whole sentences of several documents.",
        Models("AutoModelForMaskedLM", MASKED, "FacebookAI/roberta-base"),
        Blocks(across=True),
        MASKER,
        {
            "masking": TokenMasking(Budget(rounding="random")),
            "replacement": Replacement(draw_from="ordinary"),
        },
    ),
    Objective(
        "wwm",
        "Cui et al. 2021 (BERT-wwm)",
        "Tell whole hidden words; a segmenter says what a Chinese word is.",
        MASKED_MODELS,
        Blocks(),
        MASKER,
        {"masking": WholeWordMasking(), "replacement": Replacement()},
    ),
    Objective(
        "span",
        "Joshi et al. 2020, section 3.1",
        "Tell hidden spans of words.",
        MASKED_MODELS,
        Blocks(),
        MASKER,
        SPANS_HIDE,
    ),
    Objective(
        "spanbert",
        "Joshi et al. 2020, sections 3.1 and 3.2",
        "Tell hidden spans of words, also from the two tokens around them.",
        Models("AutoModelForMaskedLM", ("spanbert", *MASKED), BERT, "SpanBertForPreTraining"),
        Blocks(),
        MASKER,
        SPANS_HIDE | {"extras": (SpanBoundaryTargets(),)},
        part="language_model",
    ),
    Objective(
        "structbert",
        "Wang et al. 2020, section 2.2",
        "Tell hidden tokens and the order of shuffled ones, and whether the second text is next, previous or random.",
        Models("AutoModelForMaskedLM", ("sentence-pair", *MASKED), BERT, "SentencePairForPreTraining"),
        Pairs("structural"),
        MASKER,
        BERT_HIDES | {"noise": TrigramShuffle()},
        part="language_model",
    ),
    Objective(
        "infoword",
        "Kong et al. 2020, section 4",
        "Tell hidden tokens, and find the n-gram that a row lacks among those of other rows.",
        Models("AutoModelForMaskedLM", ("infoword", *MASKED), BERT, "InfoWordForPreTraining"),
        Blocks(),
        DataCollatorForNgramContrast,
        BERT_HIDES | {"ngrams": NgramPairs()},
        part="language_model",
    ),
    Objective(
        "ernie1",
        "Sun et al. 2019, section 3.2",
        "Tell hidden phrases and entities, and whether the second text follows the first.",
        Models("AutoModelForPreTraining", ("ernie",), "nghuyong/ernie-1.0-base-zh"),
        Pairs("ernie"),
        MASKER,
        {"masking": KnowledgeMasking(columns=("word_ids",)), "replacement": Replacement()},
        segmented=True,
    ),
    Objective(
        "albert",
        "Lan et al. 2020, sections 3.1 and 4",
        "Tell hidden words in a row, and whether two texts are in order.",
        Models("AutoModelForPreTraining", ("albert",), "albert/albert-base-v2"),
        Pairs("sop"),
        MASKER,
        {"masking": NgramMasking(), "replacement": Replacement()},
    ),
    Objective(
        "electra",
        "Clark et al. 2020, sections 2 and 3.2",
        "Find the tokens that a small generator, which learns beside the model, has put in.",
        Models(
            "AutoModelForPreTraining", ("electra", "electra-joint"), ELECTRA, "ElectraForJointPreTraining"
        ),
        Blocks(),
        DataCollatorForReplacedTokenDetection,
        {"noise": ELECTRA_HIDES},
        part="discriminator",
    ),
    Objective(
        "rtd",
        "after Clark et al. 2020",
        "Find the tokens that are replaced at random, without a generator.",
        Models("AutoModelForPreTraining", ("electra",), ELECTRA),
        Blocks(),
        DataCollatorForReplacedTokenDetection,
        {"noise": ReplacedTokenNoise()},
    ),
    Objective(
        "bart",
        "Lewis et al. 2020, section 2.2",
        "Write the text again that lost spans and the order of its sentences.",
        Models("AutoModelForSeq2SeqLM", ("bart",), "facebook/bart-base"),
        Blocks(sentence_ids=True),
        DataCollatorForDenoising,
        {"noise": Compose((SentencePermutation(), TextInfilling()))},
    ),
    Objective(
        "t5",
        "Raffel et al. 2020, section 3.1.4",
        "Write the spans that sentinels stand for.",
        Models("AutoModelForSeq2SeqLM", ("t5",), "google-t5/t5-small"),
        SpanRows(SpanCorruption()),
        DataCollatorForSpanCorruption,
        {"corruption": SpanCorruption()},
    ),
    Objective(
        "mass",
        "Song et al. 2019, section 3.2",
        "Write the fragment that is hidden from the encoder.",
        Models("AutoModelForSeq2SeqLM", ("encoder-decoder", "bert"), BERT),
        Blocks(),
        DataCollatorForMass,
        {"fragment": MassFragment()},
    ),
    Objective(
        "xlnet",
        "Yang et al. 2019, sections 2.2 to 2.4",
        "Tell tokens one after the other in a random order.",
        Models("AutoModelForCausalLM", ("xlnet",), "xlnet/xlnet-base-cased"),
        Pairs("xlnet"),
        DataCollatorForPermutationLanguageModeling,
        {"targets": PermutationTargets()},
    ),
    Objective(
        "unilm",
        "Dong et al. 2019, section 2",
        "Tell hidden tokens from both sides, one side, or as the second text of two.",
        Models("AutoModelForPreTraining", ("bert",), BERT),
        Pairs("nsp"),
        DataCollatorForUnifiedLM,
        {
            "mix": (1 / 3, 1 / 3, 1 / 6, 1 / 6),
            "masking": NgramMasking(max_n=3, unit="token", probabilities=(0.8, 0.1, 0.1)),
        },
    ),
    Objective(
        "gpt",
        "Radford et al. 2018, section 3.1",
        "Tell the next token.",
        Models("AutoModelForCausalLM", CAUSAL_TYPES, "openai-community/gpt2"),
        Contiguous(),
        DataCollatorForCausalLanguageModeling,
    ),
    Objective(
        "transformer-xl",
        "Dai et al. 2019, section 3",
        "Tell the next token, also from what is remembered of the rows before.",
        Models("AutoModelForCausalLM", ("xlnet",), NEW_XLNET),
        Laned(),
        DataCollatorForTokenLanes,
        config={"attn_type": "uni", "mem_len": 512, "use_mems_train": True},
    ),
)


def find_objective(name: str) -> Objective:
    """The objective of a name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = {objective.name: objective for objective in OBJECTIVES}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"Objectives are {', '.join(known)}."
    raise ValueError(f"no objective {name!r}. {hint} `heirloom objectives` explains each.")


def objective_table() -> str:
    """The table of `docs/objectives.md`, Markdown."""
    lines = ["| objective | models | paper | rows and defaults | one line |", "|---|---|---|---|---|"]
    for one in OBJECTIVES:
        classes = [one.models.ours] if one.models.ours else []
        classes += one.models.classes()
        shown = ", ".join(f"`{name}`" for name in classes[:4]) + (" .." if len(classes) > 4 else "")
        lines.append(f"| `{one.name}` | {shown} | {one.paper} | `{one.defaults()}` | `{one.usage()}` |")
    return "\n".join(lines) + "\n"


__all__ = ["OBJECTIVES", "Models", "Objective", "find_objective", "objective_table", "plain"]
