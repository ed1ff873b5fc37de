"""RoBERTa as a text encoder: the states of its tokens."""

from __future__ import annotations

from pathlib import Path

import torch

from qamdetr.features.base import EncoderOptions, TextStream, stream, weights_fingerprint
from qamdetr.features.hub import TOKENIZER, WEIGHTS, Hub, HubTokenizer, load_network, network_settings
from qamdetr.types import TextFeatures

_HUB = Hub(
    "FacebookAI/roberta-base",
    "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
    501,
    ("config.json", "tokenizer.json", "model.safetensors"),
    (("config.json",), TOKENIZER, WEIGHTS),
)


@stream("roberta", dim=768, hub=_HUB, label="RoBERTa")
class Roberta(TextStream):
    """The text stream `roberta`: last hidden states, those of `<s>` and `</s>` included."""

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        from transformers import RobertaModel

        model = load_network(self.name, RobertaModel, folder, add_pooling_layer=False)
        config = model.config
        # Positions count from behind the padding's.
        max_tokens = config.max_position_embeddings - config.pad_token_id - 1
        self._tokenizer = HubTokenizer(folder, self.name, max_tokens=max_tokens, vocab_size=config.vocab_size)
        self.fingerprint = weights_fingerprint(
            "roberta-1", model.state_dict(), self._tokenizer.probe, str(options.dtype), network_settings(config)
        )
        self.model = model.to(options.device, options.dtype)
        self.dim = int(config.hidden_size)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; see `TextStream`."""
        return self._tokenizer.states(self.model, query)[0]
