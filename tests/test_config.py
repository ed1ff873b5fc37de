"""Configuration is strict: what is not known, not well typed or not well formed is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qamdetr.config import (
    CHECKPOINT_DIR,
    CONFIG_DIR,
    Config,
    ModelConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
    save_config,
    switches,
)
from qamdetr.errors import ConfigError
from qamdetr.model.qam_detr import QamDetr


def write(folder: Path, **texts: str) -> Path:
    """Write YAML files; returns the last one's path."""
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", [*CONFIG_DIR.glob("*.yaml"), *CHECKPOINT_DIR.glob("*/config.yaml")], ids=lambda path: path.parent.name)
def test_shipped_configs_load_and_come_back_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config == config_from_dict(config_to_dict(config))


MISTAKES = {
    "model: {dmi: 128}": "Unknown key 'model.dmi'; known here: audio_streams, text_streams, dim",
    "modle: {dim: 128}": "Unknown key 'modle'; known here: model, loss",
    "1: 2": "Unknown key '1'",
    "model: {dim: wide, dmi: 1}": "Unknown key 'model.dmi'",
    "model: {dim: 12.5}": "model.dim is 12.5; expected int",
    "model: {dim: true}": "model.dim is True; expected int",
    "model: {dim: null}": "model.dim is None; expected int",
    "model: {quality: 1}": "model.quality is 1; expected bool",
    "model: {encoder: lstm}": "model.encoder is 'lstm'; it must be one of bimamba, transformer.",
    "model: {audio_streams: {pocket: big}}": "model.audio_streams.pocket is 'big'; expected int",
    "model: {audio_streams: 3}": "model.audio_streams is 3; expected dict",
    "model: {multiscale_strides: 2}": "model.multiscale_strides is 2; expected tuple",
    "data: {combo: 3}": "data.combo is 3; expected str",
    "train: {learning_rate: fast}": "train.learning_rate is 'fast'; expected float",
    "train: {learning_rate: true}": "train.learning_rate is 'True'; expected float",
    "train: 5": "train must be a section with keys, not 5.",
    "model: " + "[" * 3000: "not valid YAML",
    "model: {dim: 8}\nloss: {}\nmodel: {dim: 9}": "bad.yaml is not valid YAML: the key 'model' stands twice, in lines 1 and 3; remove one.",
    "model: {dim: 8, 'dim': 9}": "the key 'dim' stands twice, in lines 1 and 1",
    "extends: 5": "No config '5': give a YAML file or one of",
    "extends: [pocket, {base: 3}]": "No config \"{'base': 3}\"",
    "extends: [pocket, bad]": "goes round in a circle",
    "extends: pokcet": "No config 'pokcet': give a YAML file or one of castella_baseline",
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.items(), ids=[message[:40] for message in MISTAKES.values()])
def test_mistakes_name_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, bad=text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


OUT_OF_RANGE = {
    "train.batch_size=0": "train.batch_size is 0; it must be from 1 to 65536.",
    "train.learning_rate=.nan": "train.learning_rate is nan; it must be from 0 to 1.",
    "inference.beta_by_verifier={pocket: 2}": "inference.beta_by_verifier.pocket is 2.0; it must be from 0.0 to 1.0.",
    "model.text_streams={pocket: 0}": "model.text_streams.pocket is 0; it must be from 1 to 65536.",
    "loss.saliency_temperature=0": "loss.saliency_temperature is 0.0",
    # Sizes that would fill the memory before anything else is looked at.
    "model.dim=100000": "model.dim is 100000; it must be from 1 to 4096.",
    "model.num_moment_queries=1000000000": "model.num_moment_queries is 1000000000; it must be from 1 to 1000.",
    "model.audio_streams={pocket: 1000000000}": "model.audio_streams.pocket is 1000000000",
    "model.multiscale_strides=[2, 1000]": "model.multiscale_strides.1 is 1000; it must be from 1 to 256.",
    # As strict as in a file.
    "train.epochs": "not of the form",
    "=3": "not of the form",
    "train.epochs=many": "train.epochs is 'many'",
    "train.epochs.more=3": "'epochs' is a value, not a section",
    "train.epochs={": "the value is not valid YAML",
    "data.encoder_models={a: x, a: y}": "the value is not valid YAML",
}


@pytest.mark.parametrize(("override", "message"), OUT_OF_RANGE.items())
def test_overrides_that_no_training_can_use_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("pocket", [override])
    assert message in str(caught.value)


def test_every_number_has_a_range() -> None:
    sections = {name: values for name, values in config_to_dict(Config()).items() if isinstance(values, dict)}
    numbers = [f"{name}.{key}" for name, values in sections.items() for key, value in values.items() if type(value) in (int, float)]
    assert len(numbers) > 40
    for key in numbers:
        with pytest.raises(ConfigError, match=rf"{key} is -?\d.*; it must be from"):
            config_from_dict({key.split(".")[0]: {key.split(".")[1]: -1}})


def test_values_changed_in_code_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"^train\.seed is -1; it must be from 0 to 4294967295\.$"):
        replace(Config().train, seed=-1)
    with pytest.raises(ConfigError, match=r"Unknown key 'model\.dmi'"):
        ModelConfig(dmi=3)
    assert replace(Config(), train=TrainConfig(seed=7)).train.seed == 7


def test_overrides_set_single_values_also_those_that_yaml_takes_for_something_else() -> None:
    overrides = ["model.dim=32", "train.learning_rate=1e-3", "model.multiscale_strides=[2]", "data.combo=B", "loss.auxiliary=false"]
    config = load_config("pocket", [*overrides, "train.tracker=", "train.mixed_precision=no"])
    assert (config.model.dim, config.train.learning_rate, config.model.multiscale_strides) == (32, 1e-3, (2,))
    assert (config.data.combo, config.loss.auxiliary, config.train.tracker, config.train.mixed_precision) == ("B", False, "", "no")


def test_extends_takes_several_and_later_ones_win(tmp_path: Path) -> None:
    write(tmp_path, root="model: {dim: 64, ffn_dim: 128}",
          small="extends: root\nmodel: {dim: 32, audio_streams: {x: 3, y: 4}}\ntrain: {epochs: 5, seed: 1}",
          data="extends: root\nmodel: {audio_streams: {z: 5}}\ntrain: {epochs: 9}\ndata: {combo: B}")  # fmt: skip
    leaf = load_config(write(tmp_path, leaf="extends: [small, data]\ntrain: {seed: 7}"))
    # The last parent brings its whole chain, `root` included.
    assert (leaf.model.dim, leaf.model.ffn_dim, leaf.train.epochs, leaf.train.seed, leaf.data.combo) == (64, 128, 9, 7, "B")
    # Sections merge; a mapping inside a section is one value.
    assert leaf.model.audio_streams == {"z": 5}
    other = load_config(write(tmp_path, other="extends: [data, small]"))
    assert (other.train.epochs, other.train.seed, other.model.audio_streams) == (5, 1, {"x": 3, "y": 4})
    mine = load_config(write(tmp_path, mine="extends: pocket\nmodel: {dim: 64}"))
    assert (mine.model.dim, mine.data.combo) == (64, "pocket")


def test_a_system_is_no_experiment() -> None:
    with pytest.raises(ConfigError, match=r"'submit2' is a system of several checkpoints.*predict --system submit2"):
        load_config("submit2")


def test_switches_are_what_the_network_can_bypass() -> None:
    small = ModelConfig(audio_streams={"pocket": 8}, dim=16, num_heads=2, ffn_dim=16)
    named = {name: switch for name, switch in switches().items() if switch.bypassable}
    assert set(named) == {"three_way", "multiscale", "quality"} == set(QamDetr(small).bypassable)
    for name, switch in named.items():
        off = replace(small, **{switch.field: switch.off})
        assert switch.is_on(small)
        assert not switch.is_on(off)
        assert QamDetr(off).bypassable == set(named) - {name}
