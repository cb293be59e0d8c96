"""What the tests of all models share: Transformers' mixin told about our classes, and a small tester for each.

Imports Transformers' own `tests`, which `run` has put on the path.
"""

import json
from unittest import mock

import torch
from peer.exceptions import EXCEPTIONS, must_fail
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from heirloom.modeling.auto_map import ALSO, AUTO_MAP

ROWS, LENGTH, WORDS = 4, 7, 99
NAMES = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
}


def name_models() -> None:
    """The mixin knows by these tables of names what labels a class needs, and which classes can be trained."""
    for model_type, places in AUTO_MAP.items():
        for auto_class, place in places.items():
            if auto_class in NAMES:
                names = [place, *ALSO.get(model_type, {}).get(auto_class, [])]
                names = [name.rsplit(".", 1)[1] for name in names]
                getattr(modeling_auto, NAMES[auto_class])[model_type] = (
                    tuple(names) if names[1:] else names[0]
                )


name_models()


def some_ids(*shape: int, low: int = 3, high: int = WORDS) -> torch.Tensor:
    """Random ids without special tokens."""
    return torch.randint(low, high, shape)


def nested(config_class: type, **fields) -> dict:
    """Fields whose nested config is written out in full, as `test_config` wants them."""
    written = json.loads(config_class(**fields).to_json_string())
    return {name: written[name] if name.endswith("_config") else value for name, value in fields.items()}


class Tester:
    """Config, inputs and sizes, as the mixin asks for them."""

    batch_size, seq_length = ROWS, LENGTH
    num_hidden_layers, num_attention_heads, hidden_size = 2, 2, 16
    num_choices = 3
    is_training = True

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return self.parent.config_class(**self.parent.fields)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.parent.inputs()


class PeerTest(ModelTesterMixin):
    """Sub-classes give a config's fields and inputs; where the name of a class says too little, also its labels."""

    config_class: type
    fields: dict
    common_properties = ("hidden_size", "num_hidden_layers")
    has_attentions = False
    test_can_init_all_missing_weights_before_2023 = (
        True  # it looks for a year of copyright, which our files lack
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for (owner, test), (words, reason) in EXCEPTIONS.items():
            if owner == cls.__name__:  # no class inherits from such a one, or it would inherit its exceptions
                setattr(cls, f"excepted_{test}", getattr(cls, test))
                setattr(cls, test, must_fail(test, words, reason))

    def setUp(self):
        self.model_tester = Tester(self)

    def inputs(self) -> dict:
        return {
            "input_ids": some_ids(ROWS, LENGTH),
            "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long),
        }

    def labels(self, model_class: type) -> dict:
        """What `model_class` needs for a loss, if the mixin does not know."""
        return {}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        with torch.random.fork_rng():
            torch.manual_seed(1)  # tests ask twice and compare
            return inputs | self.labels(model_class) if return_labels else inputs

    def test_resize_tokens_embeddings(self):
        """In evaluation, since some of our models refuse to train without labels, and with the attribute that it shows."""
        self.model_tester.is_training = False
        with mock.patch.object(PreTrainedModel, "vocab_size", None, create=True):
            super().test_resize_tokens_embeddings()

    def test_config(self):
        tester = ConfigTester(
            self,
            self.config_class,
            has_text_modality=False,
            common_properties=list(self.common_properties),
            **self.fields,
        )
        tester.run_common_tests()


__all__ = ["LENGTH", "ROWS", "WORDS", "GenerationTesterMixin", "PeerTest", "nested", "some_ids"]
