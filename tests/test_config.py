"""Configuration is strict: what is not known, not well typed or not well formed is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qamdetr.config import CONFIG_DIR, Config, config_from_dict, config_to_dict, load_config, save_config
from qamdetr.errors import ConfigError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_every_shipped_config_loads() -> None:
    configs = {path.stem: load_config(path.stem) for path in CONFIG_DIR.glob("*.yaml")}
    assert configs["pocket"].model.similarity
    assert all(isinstance(config, Config) for config in configs.values())


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "empty", "")) == Config()


def test_what_is_saved_loads_the_same(tmp_path: Path) -> None:
    config = config_from_dict({"model": {"multiscale_strides": [2, 4, 8], "audio_streams": {"x": 3}}, "train": {"learning_rate": 3e-05}})
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {dmi: 128}", "Unknown key 'model.dmi'; known here: .*dim"),
        ("modle: {dim: 128}", "Unknown key 'modle'"),
        ("model: {dim: wide}", "model.dim is 'wide'; expected int"),
        ("model: {dim: 12.5}", "model.dim is 12.5; expected int"),
        ("model: {dim: true}", "model.dim is True; expected int"),
        ("model: {quality: 1}", "model.quality is 1; expected bool"),
        ("model: {encoder: lstm}", "model.encoder is 'lstm'; it must be one of bimamba, transformer"),
        ("model: {audio_streams: {pocket: big}}", "model.audio_streams is 'big'; expected int"),
        ("model: {multiscale_strides: 2}", "model.multiscale_strides is 2"),
        ("train: {learning_rate: fast}", "train.learning_rate is 'fast'; expected float"),
        ("train: 5", "train must be a section"),
        ("[1, 2]", "must hold sections"),
        ("model: {dim: 1", "not valid YAML"),
    ],
)
def test_mistakes_name_key_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, "bad", text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_exponents_are_numbers(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, "rate", f"train: {{learning_rate: {text}}}")).train.learning_rate == pytest.approx(1e-4)


def test_extends_is_a_chain_of_small_diffs(tmp_path: Path) -> None:
    write(tmp_path, "base", "model: {dim: 64, num_heads: 4}\ntrain: {epochs: 5}")
    write(tmp_path, "middle", "extends: base\nmodel: {dim: 32}")
    config = load_config(write(tmp_path, "leaf", "extends: middle\ntrain: {seed: 7}"))
    assert (config.model.dim, config.model.num_heads, config.train.epochs, config.train.seed) == (32, 4, 5, 7)


def test_extends_takes_several_and_later_ones_win(tmp_path: Path) -> None:
    write(tmp_path, "root", "model: {dim: 64, ffn_dim: 128}")
    write(tmp_path, "small", "extends: root\nmodel: {dim: 32, audio_streams: {x: 3, y: 4}}\ntrain: {epochs: 5, seed: 1}")
    write(tmp_path, "data", "model: {audio_streams: {z: 5}}\ntrain: {epochs: 9}\ndata: {combo: B}")
    leaf = load_config(write(tmp_path, "leaf", "extends: [small, data]\ntrain: {seed: 7}"))
    assert (leaf.model.dim, leaf.model.ffn_dim, leaf.train.epochs, leaf.train.seed, leaf.data.combo) == (32, 128, 9, 7, "B")
    # Sections merge; a mapping inside a section is one value.
    assert leaf.model.audio_streams == {"z": 5}
    other = load_config(write(tmp_path, "other", "extends: [data, small]"))
    assert (other.train.epochs, other.train.seed, other.model.audio_streams) == (5, 1, {"x": 3, "y": 4})


def test_two_ways_to_the_same_parent_are_no_circle(tmp_path: Path) -> None:
    write(tmp_path, "root", "model: {dim: 64}\ntrain: {epochs: 3}")
    write(tmp_path, "left", "extends: root\nmodel: {dim: 32}")
    write(tmp_path, "right", "extends: root\ntrain: {epochs: 4}")
    config = load_config(write(tmp_path, "leaf", "extends: [right, left]"))
    # The last parent brings its whole chain, `root` included.
    assert (config.model.dim, config.train.epochs) == (32, 3)


@pytest.mark.parametrize("value", ["5", "{base: pocket}", "[pocket, 3]", "['']", "true"])
def test_extends_that_names_nothing_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"`extends` is .*; it must be the name of a config, or a list of names"):
        load_config(write(tmp_path, "bad", f"extends: {value}"))


def test_extends_finds_shipped_configs_by_name(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "mine", "extends: pocket\nmodel: {dim: 64}"))
    assert config.model.dim == 64
    assert config.data.combo == "pocket"


def test_circular_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "extends: b")
    write(tmp_path, "b", "extends: a")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        load_config(tmp_path / "a.yaml")
    write(tmp_path, "c", "extends: [pocket, c]")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        load_config(tmp_path / "c.yaml")


def test_extending_nothing_known_lists_what_is() -> None:
    with pytest.raises(ConfigError, match=r"No config 'pokcet'.*pocket"):
        load_config("pokcet")


def test_overrides_set_single_values(tmp_path: Path) -> None:
    path = write(tmp_path, "base", "model: {dim: 64}")
    overrides = ["model.dim=32", "train.learning_rate=1e-3", "model.multiscale_strides=[2]", "data.combo=B", "loss.auxiliary=false"]
    config = load_config(path, overrides)
    assert (config.model.dim, config.train.learning_rate, config.model.multiscale_strides) == (32, 1e-3, (2,))
    assert (config.data.combo, config.loss.auxiliary) == ("B", False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "not of the form"),
        ("=3", "not of the form"),
        ("train.epoch=3", "Unknown key 'train.epoch'"),
        ("train.epochs=many", "train.epochs is 'many'"),
        ("train.epochs.more=3", "'epochs' is a value, not a section"),
        ("train=3", "must be a section"),
        ("train.epochs={", "not valid YAML"),
    ],
)
def test_overrides_are_as_strict(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "base", "train: {epochs: 3}"), [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=0", "train.batch_size is 0; it must be at least 1"),
        ("train.epochs=-1", "train.epochs is -1"),
        ("train.learning_rate=.nan", "train.learning_rate is nan"),
        ("data.num_workers=-1", "data.num_workers is -1"),
        ("data.max_clips=0", "data.max_clips is 0"),
        ("inference.beta=2", "inference.beta is 2.0; it must be from 0.0 to 1.0"),
    ],
)
def test_values_out_of_range_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("pocket", [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim=0", "model.dim is 0; it must be at least 1"),
        ("model.num_heads=0", "model.num_heads is 0"),
        ("model.mamba_state=0", "model.mamba_state is 0"),
        ("model.dropout=2", "model.dropout is 2.0; it must be from 0 to 0.999"),
        ("model.audio_streams={}", "model.audio_streams is {}"),
        ("model.text_streams={pocket: 0}", "model.text_streams is {'pocket': 0}"),
        ("loss.span=-1", "loss.span is -1.0"),
        ("loss.giou=.nan", "loss.giou is nan"),
        ("loss.saliency_temperature=0", "loss.saliency_temperature is 0.0"),
        ("train=3", "train must be a section with keys, not 3"),
    ],
)
def test_values_that_no_training_can_use_are_refused_at_once(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("pocket", [override])


def test_words_that_yaml_takes_for_something_else() -> None:
    assert load_config("pocket", ["train.tracker="]).train.tracker == ""
    assert load_config("pocket", ["train.mixed_precision=no"]).train.mixed_precision == "no"


def test_a_system_is_no_experiment() -> None:
    with pytest.raises(ConfigError, match=r"'submit2' is a system of several checkpoints.*predict --system submit2"):
        load_config("submit2")
    with pytest.raises(ConfigError) as caught:
        load_config("nothing")
    assert "submit" not in str(caught.value)
