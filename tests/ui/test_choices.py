from __future__ import annotations

import pytest

from qamdetr.config import Config, DataConfig, InferenceConfig
from qamdetr.errors import CheckpointError
from qamdetr.features import base
from qamdetr.features.base import STREAMS
from qamdetr.ui import choices
from qamdetr.ui.settings import AppSettings
from qamdetr.verifiers import qwen_omni as qwen_files


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Hub models that lie on this machine, by name; nothing is fetched."""
    there = set()

    monkeypatch.setattr(base, "is_here", lambda name, model="": STREAMS[name].hub is None or name in there)
    return there


@pytest.fixture
def configs(monkeypatch):
    calibrated = InferenceConfig(beta=0.2, beta_by_verifier={"pocket": 0.4})
    known = {"small": Config(), "big": Config(data=DataConfig(combo="A"), inference=calibrated)}

    def read(name):
        if name not in known:
            raise CheckpointError("no such checkpoint")
        return known[name]

    monkeypatch.setattr(choices, "read_config", read)


def test_needs_are_sizes_or_here(here):
    assert choices.needs_of(["pocket", "mel_stats"]) == "here"
    assert choices.needs_of(["laion_clap", "pocket"]) == "needs a download of 618 MB"
    assert choices.needs_of(["laion_clap", "ms_clap", "wavlm_base_plus"]) == "needs a download of 1.7 GB"
    here |= {"laion_clap", "wavlm_base_plus"}
    assert choices.needs_of(["laion_clap", "wavlm_base_plus"]) == "here"
    assert choices.needs_of(["ms_clap"]) == "needs a download of 691 MB", "its tokeniser comes with it"
    assert choices.needs_of(["roberta"], {"roberta": "somebody/model"}) == "needs a download"


def test_models_say_which_encoders_they_bring(configs):
    labels = [label for label, _ in choices.model_choices({"small": "small", "run: big": "big", "gone": "gone"})]
    assert labels == ["small · pocket encoders, here", "run: big · encoders A, needs a download of 1.7 GB", "gone · cannot be read"]


def test_encoders_say_what_they_need_and_whether_a_model_reads_them(configs, here):
    labels = {combo: label for label, combo in choices.encoder_choices({"small": "small", "run: big": "big"})}
    assert labels["pocket"] == "Pocket, made by this project · here"
    assert labels["A"] == "A: LAION-CLAP + MS-CLAP + WavLM base+ · needs a download of 1.7 GB"
    assert labels["B"].endswith("needs a download of 1.3 GB; no model here reads them yet")
    assert choices.models_with("A", {"small": "small", "run: big": "big"}) == ["run: big"]
    assert "train one" in choices.how_to_get_encoder("B")
    assert "needs a download of 1.3 GB" in choices.how_to_get_encoder("B")
    assert "download" not in choices.how_to_get_encoder("pocket")


def test_verifiers_say_what_they_do_and_where_the_sound_goes(monkeypatch):
    monkeypatch.setattr(qwen_files, "is_here", lambda _: False)
    settings = AppSettings(
        verifiers=("none", "pocket", "qwen2.5-omni", "server"),
        verifier_model="Qwen/Qwen2.5-Omni-3B",
        verifier_url="http://user:secret@models.example:8000/v1",
    )
    labels = {name: label for label, name in choices.verifier_choices(settings)}
    assert list(labels) == list(settings.verifiers)
    assert "needs a download of 12 GB" in labels["qwen2.5-omni"]
    assert "goes to models.example:8000" in labels["server"]
    assert "secret" not in labels["server"]
    assert len(choices.verifier_choices(AppSettings())) == 2


def test_the_weight_is_the_checkpoints_own(configs):
    assert choices.own_beta("big", "pocket") == 0.4
    assert choices.own_beta("big", "server") == 0.2
    assert choices.own_beta("gone", "pocket") is None
