"""The one table of config, models and Auto classes: registration and every checkpoint's `auto_map` come from it.

Values read `file.Class`, as `config.json` wants them; the files lie in this folder, and beside the weights in a checkpoint.
"""

AUTO_MAP: dict[str, dict[str, str]] = {
    "elmo": {
        "AutoConfig": "configuration_elmo.ElmoConfig",
        "AutoModel": "modeling_elmo.ElmoModel",
        "AutoModelForPreTraining": "modeling_elmo.ElmoForPreTraining",
        "AutoModelForSequenceClassification": "modeling_elmo.ElmoForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_elmo.ElmoForTokenClassification",
    },
    "lstm-lm": {
        "AutoConfig": "configuration_lstm_lm.LstmLMConfig",
        "AutoModel": "modeling_lstm_lm.LstmLMModel",
        "AutoModelForCausalLM": "modeling_lstm_lm.LstmLMForCausalLM",
    },
}

AUTO_TOKENIZERS: dict[str, str] = {"elmo": "tokenization_elmo.ElmoTokenizer"}
