"""RoBERTa as a text encoder: the states of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qamdetr.features.base import EncoderOptions, OpenedStream, weights_fingerprint
from qamdetr.features.hub import load_network, network_settings
from qamdetr.features.hub_text import HubTokenizer
from qamdetr.types import TextFeatures

NAME = "roberta"
_CODE = "roberta-1"


class RobertaEncoder:
    """The text stream `roberta`: last hidden states, those of `<s>` and `</s>` included."""

    name = NAME

    def __init__(self, model: Any, tokenizer: HubTokenizer, options: EncoderOptions) -> None:  # noqa: ANN401 - Transformers has no types
        """Take over `model`, a `RobertaModel`."""
        self.model = model.to(options.device, options.dtype).eval()
        self.dim = int(model.config.hidden_size)
        self._tokenizer = tokenizer
        self._options = options

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query.

        Raises:
            QamDetrError: The query is longer than the encoder can read.
        """
        ids, offsets = self._tokenizer.encode(query)
        states = self.model(torch.tensor([ids], device=self._options.device)).last_hidden_state
        return TextFeatures(tokens=states[0].float().cpu(), offsets=offsets)


def open_roberta(source: Path, options: EncoderOptions) -> OpenedStream:
    """Open a RoBERTa from a folder in the hub's layout.

    Raises:
        CheckpointError: Files missing or damaged, or another kind of model.
    """
    from transformers import RobertaModel

    model = load_network(NAME, RobertaModel, source, add_pooling_layer=False)
    config = model.config
    # Positions count from behind the padding's.
    max_tokens = config.max_position_embeddings - config.pad_token_id - 1
    tokenizer = HubTokenizer(source, stream=NAME, max_tokens=max_tokens, vocab_size=config.vocab_size)
    fingerprint = weights_fingerprint(_CODE, model.state_dict(), tokenizer.probe, str(options.dtype), network_settings(config))
    return OpenedStream(None, RobertaEncoder(model, tokenizer, options), fingerprint)
