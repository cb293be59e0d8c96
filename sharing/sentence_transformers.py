"""ELMo as the first module of a sentence-transformers model; needs the extra `sentence-transformers`.

    words = ElmoWords.load("runs/bilm")
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())])

A saved model is loaded by `SentenceTransformer(folder, trust_remote_code=True)`, as that library wants it for modules that are
not its own. Such a folder is an ELMo checkpoint too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ..modeling.modeling_elmo import ElmoModel
from ..modeling.scalar_mix import ScalarMix

try:
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "this module needs sentence-transformers 6.2 or newer. pip install 'heirloom-lm[sentence-transformers]'."
    ) from error

MIX = "scalar_mix.safetensors"


class ElmoWords(InputModule):
    """Texts to word vectors: a scalar mix of all layers, the plain mean until it is trained (Peters et al. 2018, eq. 1).

    Args:
        model: the biLM.
        tokenizer: the model's.
    """

    config_keys: list[str] = []  # noqa: RUF012  the checkpoint's own config.json says all

    def __init__(self, model: ElmoModel, tokenizer: Any):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.mix = ScalarMix(model.config.num_hidden_layers + 1)

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **kwargs: Any) -> dict:
        """Ids of texts, (B, T, ...).

        Args:
            inputs: B texts.
            prompt: put before each of them.
            **kwargs: not read.

        Returns:
            `attention_mask` (B, T), and `char_ids`, `input_ids` as the model wants them.
        """
        texts = list(inputs) if prompt is None else self._prepend_prompt(list(inputs), prompt)
        return dict(self.tokenizer(texts, padding=True, return_tensors="pt"))

    def forward(self, features: dict, **kwargs: Any) -> dict:
        """Add `token_embeddings` (B, T, 2 P) to the features."""
        names = "input_ids", "char_ids", "attention_mask"
        batch = {name: features[name] for name in names if name in features}
        layers = self.model(**batch, output_hidden_states=True).hidden_states
        return features | {"token_embeddings": self.mix(layers, batch["attention_mask"].bool())}

    def get_embedding_dimension(self) -> int:
        """2 P."""
        return self.model.config.hidden_size

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write a checkpoint with the mix beside it.

        Args:
            output_path: a folder.
            *args: not read.
            safe_serialization: likewise; weights are always safetensors.
            **kwargs: likewise.
        """
        self.model.save_pretrained(output_path)
        self.tokenizer.save_pretrained(output_path)
        mix = {name: tensor.detach().cpu().contiguous() for name, tensor in self.mix.state_dict().items()}
        save_file(mix, Path(output_path) / MIX)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> "ElmoWords":
        """Read what `save` wrote, or any ELMo checkpoint.

        Args:
            model_name_or_path: a folder, or a name on the Hub.
            subfolder: of it.
            token: of the Hub.
            cache_folder: as in `SentenceTransformer`.
            revision: of a repository on the Hub.
            local_files_only: do not ask the Hub.
            **kwargs: not read.

        Returns:
            The module.
        """
        hub = {"token": token, "cache_folder": cache_folder, "revision": revision}
        folder = cls.load_dir_path(model_name_or_path, subfolder, local_files_only=local_files_only, **hub)
        module = cls(
            ElmoModel.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
        )
        if (Path(folder) / MIX).is_file():
            module.mix.load_state_dict(load_file(Path(folder) / MIX))
        return module


__all__ = ["ElmoWords"]
