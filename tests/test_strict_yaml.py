"""The strict reader on a dataclass of its own: what `qamdetr.config` does not use, and what every reader relies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from qamdetr import strict_yaml
from qamdetr.errors import ConfigError


@dataclass(frozen=True)
class Player:
    name: str
    lives: int = 3

    def __post_init__(self) -> None:
        strict_yaml.check_ranges(self, f"player {self.name}", lives=(0, 9))


@dataclass(frozen=True)
class Game:
    players: Mapping[str, Player] = field(default_factory=dict)
    bench: tuple[Player, ...] = ()
    speed: float = 1.0
    mode: Literal["fast", "no"] = "fast"


def read(folder: Path, text: str, overrides: list[str] | None = None) -> Game:
    (folder / "game.yaml").write_text(text, encoding="utf-8")
    values = strict_yaml.read("game", folder, "game")
    strict_yaml.apply_overrides(values, overrides or [])
    return strict_yaml.build(Game, values)


def test_sections_may_stand_in_mappings_and_lists(tmp_path: Path) -> None:
    game = read(tmp_path, "players: {a: {name: Ada}, b: {name: Bob, lives: 1}}\nbench: [{name: Cy}]\nmode: no", ["players.b.lives=2"])
    assert game == Game({"a": Player("Ada"), "b": Player("Bob", 2)}, (Player("Cy"),), mode="no")
    assert strict_yaml.build(Game, strict_yaml.plain(game)) == game
    assert strict_yaml.plain(game)["bench"] == [{"name": "Cy", "lives": 3}]


def test_mappings_of_a_parent_are_extended_entry_by_entry(tmp_path: Path) -> None:
    (tmp_path / "_one.yaml").write_text("players: {a: {name: Ada}}")
    (tmp_path / "_two.yaml").write_text("players: {b: {name: Bob}}\nspeed: 2")
    game = read(tmp_path, "extends: [_one, _two]\nplayers: {a: {name: Eve}}")
    assert game == Game({"a": Player("Eve"), "b": Player("Bob")}, speed=2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("players: {a: {lives: 1}}", "players.a.name is missing; it has no default"),
        ("players: {a: {name: Ada, hat: red}}", "Unknown key 'players.a.hat'; known here: name, lives"),
        ("players: {a: 5}", "players.a must be a section with keys, not 5"),
        ("players: {a: {name: Ada, lives: 10}}", "player Ada.lives is 10; it must be from 0 to 9"),
        ("bench: [{name: Ada, lives: many}]", "bench.lives is 'many'; expected int"),
        ("bench: {name: Ada}", "bench is {'name': 'Ada'}"),
        ("1: 2", "Unknown key '1'"),
        ("speed: 1\nmode: no\nspeed: 2", "game.yaml: the key 'speed' stands twice, in lines 1 and 3; remove one."),
        ("players: {a: {name: Ada, 'name': Bob}}", "the key 'name' stands twice, in lines 1 and 1"),
        ("extends: _none", "No game '_none': give a YAML file or one of game"),
    ],
)
def test_mistakes_name_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merge_keys_may_be_overridden_and_doubled_keys_of_overrides_are_refused(tmp_path: Path) -> None:
    game = read(tmp_path, "players:\n  a: &one {name: Ada, lives: 1}\n  b: {<<: *one, name: Bob}\n  c: {<<: *one}")
    assert list(game.players.values()) == [Player("Ada", 1), Player("Bob", 1), Player("Ada", 1)]
    with pytest.raises(ConfigError, match=r"--set 'players=\{a: .*the value is not valid YAML"):
        read(tmp_path, "{}", ["players={a: {name: x}, a: {name: y}}"])


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "game.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        strict_yaml.read("game", tmp_path)


def test_only_names_that_are_no_parts_are_offered(tmp_path: Path) -> None:
    (tmp_path / "_part.yaml").touch()
    (tmp_path / "chess.yaml").touch()
    with pytest.raises(ConfigError, match=r"No game 'go': give a YAML file or one of chess\.$"):
        strict_yaml.read("go", tmp_path, "game")
