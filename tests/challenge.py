"""What only people know of a submission to the challenge, made up."""

from __future__ import annotations

LABEL = "Muster_UNI_task6_1"
METADATA = {
    "submission": {
        "label": LABEL,
        "name": "QAM-DETR",
        "abbreviation": "QAMDETR",
        "authors": [{"firstname": "Erika", "lastname": "Muster", "affiliation": {"institute": "UNI"}}],
    },
    "system": {
        "model": {
            "audio_models": ["laion_clap"],
            "text_models": ["laion_clap"],
            "LLMs": None,
            "trainable_parameters": 9_000_000,
            "frozen_parameters": 200_000_000,
            "loss": "L1",
        },
        "dataset": {"augmentation": None, "external_data": "Clotho-Moment", "captions": None},
        "ensemble": None,
    },
    "results": {"development_testing": {"Recall1@0.7": 29.0, "Recall1@0.5": 47.4}},
}
