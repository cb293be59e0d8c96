"""Transformers' suite on task heads that train a language model too."""

import unittest

import torch
from peer.suite import LENGTH, ROWS, WORDS, PeerTest, nested, some_ids
from transformers import BertConfig, GPT2Config

from heirloom.modeling.configuration_joint_loss import JointLossConfig
from heirloom.modeling.configuration_multi_task import MultiTaskConfig, complete_task
from heirloom.modeling.modeling_joint_loss import (
    JointLossForMultipleChoice,
    JointLossForSequenceClassification,
    JointLossForSimilarity,
    JointLossForTokenClassification,
)
from heirloom.modeling.modeling_multi_task import MultiTaskModel

GPT2 = GPT2Config(
    vocab_size=WORDS,
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_positions=32,
    bos_token_id=1,
    eos_token_id=2,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
)
BERT = BertConfig(
    vocab_size=WORDS,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


class OnJointLoss(PeerTest):
    """What the three share."""

    config_class = JointLossConfig
    all_model_classes = (
        JointLossForMultipleChoice,
        JointLossForSequenceClassification,
        JointLossForTokenClassification,
    )
    common_properties = ()


class JointLossTest(OnJointLoss, unittest.TestCase):
    """On GPT-2."""

    fields = nested(JointLossConfig, text_config=GPT2, classifier_dropout=0.0)


class JointLossMaskedTest(OnJointLoss, unittest.TestCase):
    """On BERT."""

    fields = nested(JointLossConfig, text_config=BERT, lm_objective="masked", classifier_dropout=0.0)

    def labels(self, model_class):
        middle = (3,) if model_class is JointLossForMultipleChoice else ()
        return {"lm_targets": some_ids(ROWS, *middle, LENGTH)}


class JointLossSimilarityTest(OnJointLoss, unittest.TestCase):
    """Two texts a row."""

    fields = JointLossTest.fields
    all_model_classes = (JointLossForSimilarity,)

    def inputs(self):
        return {
            "input_ids": some_ids(ROWS, 2, LENGTH),
            "attention_mask": torch.ones(ROWS, 2, LENGTH, dtype=torch.long),
        }


class MultiTaskTest(PeerTest, unittest.TestCase):
    config_class = MultiTaskConfig
    all_model_classes = (MultiTaskModel,)
    common_properties = ()
    fields = nested(
        MultiTaskConfig,
        text_config=BERT,
        lm_objective="masked",
        classifier_dropout=0.0,
        tasks=[complete_task({"name": "one", "kind": "classification", "num_labels": 3})],
    )

    def inputs(self):
        return PeerTest.inputs(self) | {"task_id": torch.zeros(ROWS, dtype=torch.long)}

    def labels(self, model_class):
        return {"labels": torch.zeros(ROWS, dtype=torch.long)}
