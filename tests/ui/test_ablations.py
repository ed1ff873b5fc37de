from __future__ import annotations

import pytest

from qamdetr.config import Config, ModelConfig, save_config, switches
from qamdetr.inference.checkpoint import CONFIG_FILE, WEIGHTS_FILE, available_checkpoints
from qamdetr.model.qam_detr import QamDetr
from qamdetr.ui import ablations
from qamdetr.ui.train import plans
from recipes.ladder import LADDER

BASELINE = ModelConfig(fusion="text_to_audio", encoder="transformer", multiscale=False, quality=False, audio_streams={"pocket": 8})
FULL = ModelConfig(audio_streams={"pocket": 8, "mel_stats": 4}, text_streams={"pocket": 8, "roberta": 4}, dim=16, ffn_dim=16)


@pytest.fixture
def full(tmp_path):
    (tmp_path / WEIGHTS_FILE).touch()
    save_config(Config(model=FULL), tmp_path / CONFIG_FILE)
    return str(tmp_path)


def test_what_can_be_bypassed_is_known_without_the_network():
    for model in (BASELINE, FULL, ModelConfig()):
        assert set(ablations.bypassable(model)) == QamDetr(model).bypassable
    for name in available_checkpoints():
        assert {part for _, part in ablations.components(name)} == QamDetr(ablations.read_config(name).model).bypassable, name
    assert ablations.components("no such checkpoint") == []


def test_a_new_switch_appears_by_itself_in_the_toggles_and_in_training(monkeypatch):
    """As if a field `segments: bool = switch(True, "segments of the saliency", bypassable=True)` stood in `ModelConfig`."""
    known = switches()
    new = known["quality"]._replace(label="segments of the saliency")
    for module in (ablations, plans):
        monkeypatch.setattr(module, "switches", lambda: {**known, "segments": new})
    assert ("segments of the saliency", "segments") in [(ablations.label_of(name), name) for name in ablations.bypassable(FULL)]
    assert ("Segments of the saliency", "segments") in plans.component_choices()
    assert "segments" in plans.choices_of("pocket")[1]


def test_the_rows_are_those_that_the_ladder_trains():
    rows = [(row.label, row.checkpoint) for row in ablations.TABLE_ROWS]
    assert rows == [(variant.label, f"ladder-{variant.name.replace('_', '-')}") for variant in LADDER]


def test_what_is_left_out_is_a_second_answer_of_the_same_model_and_no_model_is_asked_twice(full):
    whole, ask = ablations.plan(full, "pocket", ["quality", "verifier", "no such thing", "three_way"], [])
    assert (whole.bypass, whole.verifier) == ((), "pocket")
    assert whole.how.startswith("trained this way: BiMamba, 3-way fusion, ")
    assert (ask.checkpoint, ask.bypass, ask.verifier) == (full, ("three_way", "quality"), "none")
    assert ask.how == "bypassed in the full model: 3-way fusion, quality in the ranking and verifier"
    own, other = ablations.plan("ladder-2-bimamba", "none", [], [1, 2, 9])
    assert (own.checkpoint, other.label) == ("ladder-2-bimamba", "Row 1: DETR-style baseline")
    assert other.how.startswith("trained this way: Transformer; ")
