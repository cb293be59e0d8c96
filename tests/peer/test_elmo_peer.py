"""Transformers' suite on ELMo."""

import unittest

from peer.suite import LENGTH, ROWS, WORDS, PeerTest, some_ids

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import (
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
)

SIZES = {
    "vocab_size": WORDS,
    "projection_size": 8,
    "cell_size": 12,
    "dropout": 0.0,
    "head_dropout": 0.0,
}


class OnElmo(PeerTest):
    """What both kinds share."""

    config_class = ElmoConfig
    all_model_classes = (
        ElmoModel,
        ElmoForPreTraining,
        ElmoForSequenceClassification,
        ElmoForTokenClassification,
    )

    def labels(self, model_class):
        return {"labels": some_ids(ROWS, LENGTH)} if model_class is ElmoForPreTraining else {}


class ElmoTest(OnElmo, unittest.TestCase):
    """Reads words by their characters."""

    fields = SIZES | {
        "max_characters_per_token": 10,
        "char_embedding_size": 4,
        "char_filters": [[1, 4], [2, 4]],
    }

    def inputs(self):
        return super().inputs() | {"char_ids": some_ids(ROWS, LENGTH, 10, low=1, high=257)}


class ElmoWordsTest(OnElmo, unittest.TestCase):
    """Reads words by a table."""

    fields = SIZES | {"char_embedding_size": 0, "word_embedding_size": 8}
