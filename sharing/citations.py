"""Which papers a run has to cite, and their BibTeX in `model_cards/citations.bib`."""

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FILE = Path(__file__).resolve().parent.parent / "model_cards" / "citations.bib"
SOFTMAX = {"sampled": "jean-etal-2015-using", "adaptive": "grave-etal-2017-efficient"}
LANGUAGE_MODELS = {"elmo": "peters-etal-2018-deep", "lstm-lm": "zaremba-etal-2014-recurrent"}
FORGETTING = {
    "ewc": ["kirkpatrick-etal-2017-overcoming", "varis-bojar-2019-unsupervised"],
    "l2sp": ["li-etal-2018-explicit"],
}
OBJECTIVES = {
    "mlm": "devlin-etal-2019-bert",
    "bert": "devlin-etal-2019-bert",
    "roberta": "liu-etal-2019-roberta",
    "wwm": "cui-etal-2021-pre",
    "span": "joshi-etal-2020-spanbert",
    "spanbert": "joshi-etal-2020-spanbert",
    "structbert": "wang-etal-2020-structbert",
    "infoword": "kong-etal-2020-mutual",
    "ernie1": "sun-etal-2019-ernie",
    "albert": "lan-etal-2020-albert",
    "electra": "clark-etal-2020-electra",
    "rtd": "clark-etal-2020-electra",
    "bart": "lewis-etal-2020-bart",
    "t5": "raffel-etal-2020-exploring",
    "mass": "song-etal-2019-mass",
    "xlnet": "yang-etal-2019-xlnet",
    "unilm": "dong-etal-2019-unified",
    "gpt": "radford-etal-2018-improving",
    "transformer-xl": "dai-etal-2019-transformer",
}


def bibtex(key: str) -> str:
    """The entry of a paper.

    Args:
        key: its name in `citations.bib`.

    Returns:
        BibTeX without a line end.

    Raises:
        ValueError: no such entry.
    """
    entries = _entries()
    if key not in entries:
        raise ValueError(f"expected one of {sorted(entries)} as a citation, found {key!r}.")
    return entries[key]


@cache
def _entries() -> dict[str, str]:
    pieces = [piece.strip() for piece in re.split(r"^(?=@)", FILE.read_text(encoding="utf-8"), flags=re.M)]
    return {re.match(r"@\w+\{([^,]+),", piece)[1]: piece for piece in pieces if piece}


def citations_of(config: "PreTrainedConfig", options: dict) -> list[str]:
    """Papers of the methods that a run used, besides that of its model, which the template cites.

    Args:
        config: of the model.
        options: the verb's own, by name.

    Returns:
        Keys for `bibtex`.
    """
    inner = getattr(config, "text_config", None)
    found = [LANGUAGE_MODELS.get(getattr(inner, "model_type", ""))]
    found.append(SOFTMAX.get(getattr(config, "softmax", "full")))
    if options.get("layer_lr_decay", 1.0) != 1.0 or options.get("unfreeze_every_epochs") is not None:
        found.append("howard-ruder-2018-universal")
    if options.get("kl_weight"):
        found.append("li-hoiem-2016-learning")
    found += FORGETTING.get(options.get("forgetting"), [])
    found.append(OBJECTIVES.get(options.get("objective")))
    return [key for key in found if key]


__all__ = ["bibtex", "citations_of"]
