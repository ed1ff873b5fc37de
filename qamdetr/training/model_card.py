"""The README.md of a trained checkpoint: what it is, what it was trained on, how good it is, how to get it again."""

from __future__ import annotations

from collections.abc import Mapping

from qamdetr.config import Config

_TEMPLATE = """---
license: apache-2.0
library_name: qamdetr
tags: [audio, audio-moment-retrieval]
---

# {name}

QAM-DETR for audio moment retrieval: finds the seconds of a recording that match a sentence.
It reads features of the combo `{combo}` (encoder version `{encoder}`) and works with that encoder only.
What the encoder was trained on, under which licences, and what it cannot hear is on its own card.

| validation ({val_manifest}, {val_queries} queries) | |
|---|---|
{rows}

- **Data**: trained on {train_manifest} ({train_queries} queries, content `{train_fingerprint}`); validated on content `{val_fingerprint}`.
- **Model**: {parameters:,} trainable parameters; streams {streams}; all settings in `config.yaml`.
- **Chosen**: epoch {epoch} of {epochs}, by validation R1@0.7, ties by mAP{average}. Such numbers flatter a little.
- **"Not in this recording"**: said below a decoder score of {found_threshold:.3f}, calibrated on the same validation set.
- **Made by**: `{command}`, seed {seed}, git revision `{revision}`.
"""


def model_card(
    config: Config,
    facts: Mapping[str, str],
    metrics: Mapping[str, float],
    *,
    name: str,
    epoch: int,
    parameters: int,
    num_queries: tuple[int, int],
    encoder: str,
) -> str:
    """Write the card.

    Args:
        config: Configuration of the checkpoint.
        facts: What the run noted at its start (`Run.facts`).
        metrics: Validation metrics of the checkpoint.
        name: Title.
        epoch: Epoch that the weights come from.
        parameters: Trainable parameters.
        num_queries: Queries in the training and validation manifests.
        encoder: Version of the encoders whose features were used; empty when not known.
    """
    return _TEMPLATE.format(
        name=name,
        combo=config.data.combo,
        encoder=encoder or "unknown",
        train_manifest=f"`{config.data.train_manifest}`",
        val_manifest=f"`{config.data.val_manifest}`",
        train_queries=num_queries[0],
        val_queries=num_queries[1],
        rows="\n".join(f"| {key} | {value:g} |" for key, value in metrics.items()),
        train_fingerprint=facts["train_manifest"],
        val_fingerprint=facts["val_manifest"],
        parameters=parameters,
        streams=", ".join([f"audio `{s}`" for s in config.model.audio_streams] + [f"text `{s}`" for s in config.model.text_streams]),
        epoch=epoch,
        epochs=config.train.epochs,
        average=f"; weights averaged with decay {config.train.ema_decay:g}" if config.train.ema_decay else "",
        found_threshold=config.inference.found_threshold,
        command=facts["command"],
        seed=config.train.seed,
        revision=facts["git_revision"],
    )
