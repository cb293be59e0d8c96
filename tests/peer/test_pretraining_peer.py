"""Transformers' suite on models that pre-train with several losses."""

import unittest

import torch
from peer.suite import LENGTH, ROWS, WORDS, PeerTest, nested, some_ids
from transformers import BertConfig, ElectraConfig

from heirloom.modeling.configuration_electra_joint import ElectraJointConfig
from heirloom.modeling.configuration_ernie_thu import ErnieThuConfig
from heirloom.modeling.configuration_infoword import InfoWordConfig
from heirloom.modeling.configuration_sentence_pair import SentencePairConfig
from heirloom.modeling.configuration_spanbert import SpanBertConfig
from heirloom.modeling.modeling_electra_joint import ElectraForJointPreTraining
from heirloom.modeling.modeling_ernie_thu import ErnieThuForPreTraining, ErnieThuModel
from heirloom.modeling.modeling_infoword import InfoWordForPreTraining
from heirloom.modeling.modeling_sentence_pair import SentencePairForPreTraining
from heirloom.modeling.modeling_spanbert import SpanBertForPreTraining

SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BERT = BertConfig(**SIZES)


def targets() -> torch.Tensor:
    """(B, T) labels at two places of each row."""
    labels = torch.full((ROWS, LENGTH), -100)
    labels[:, 2:4] = some_ids(ROWS, 2)
    return labels


class ElectraJointTest(PeerTest, unittest.TestCase):
    config_class = ElectraJointConfig
    all_model_classes = (ElectraForJointPreTraining,)
    common_properties = ()
    fields = nested(
        ElectraJointConfig,
        discriminator_config=ElectraConfig(**SIZES, embedding_size=8),
        generator_config=ElectraConfig(
            **SIZES | {"hidden_size": 8, "num_attention_heads": 1}, embedding_size=8
        ),
    )

    def labels(self, model_class):
        return {"labels": targets()}


class SpanBertTest(PeerTest, unittest.TestCase):
    config_class = SpanBertConfig
    all_model_classes = (SpanBertForPreTraining,)
    common_properties = ()
    fields = nested(SpanBertConfig, text_config=BERT, span_position_size=6, max_span_positions=4)

    def labels(self, model_class):
        rows = torch.arange(ROWS)
        spans = torch.stack([rows, rows * 0 + 1, rows * 0 + 4, rows % 2, rows + 5], 1)  # (P, 5)
        return {"labels": targets(), "span_boundary_targets": spans}


class SentencePairTest(PeerTest, unittest.TestCase):
    config_class = SentencePairConfig
    all_model_classes = (SentencePairForPreTraining,)
    common_properties = ()
    fields = nested(SentencePairConfig, text_config=BERT)

    def labels(self, model_class):
        return {"labels": targets(), "next_sentence_label": torch.arange(ROWS) % 3}


class InfoWordTest(PeerTest, unittest.TestCase):
    config_class = InfoWordConfig
    all_model_classes = (InfoWordForPreTraining,)
    common_properties = ()
    fields = nested(InfoWordConfig, text_config=BERT)

    def labels(self, model_class):
        return {
            "labels": targets(),
            "ngram_context_ids": some_ids(ROWS, LENGTH),
            "ngram_ids": some_ids(ROWS, 4),
            "ngram_mask": torch.ones(ROWS, 4, dtype=torch.long),
        }


class ErnieThuTest(PeerTest, unittest.TestCase):
    config_class = ErnieThuConfig
    all_model_classes = (ErnieThuModel, ErnieThuForPreTraining)
    fields = SIZES | {"num_text_layers": 1, "entity_size": 8, "num_entity_heads": 2}

    def inputs(self):
        entities = torch.full((ROWS, LENGTH), -1)
        entities[:, 1] = torch.arange(ROWS)
        return PeerTest.inputs(self) | {"entities": entities, "entity_vectors": torch.randn(ROWS, 8)}

    def labels(self, model_class):
        if model_class is ErnieThuModel:
            return {}
        entity_labels = torch.full((ROWS, LENGTH), -100)
        entity_labels[:, 1] = torch.arange(ROWS)
        return {
            "labels": targets(),
            "next_sentence_label": torch.arange(ROWS) % 2,
            "entity_labels": entity_labels,
        }
