"""`extract`: the cache is filled once."""

from __future__ import annotations

from tiny_system import write_sound

from qamdetr import cli
from qamdetr.data.manifest import QueryEntry, write_manifest


def test_extract_fills_the_cache_once(tmp_path, encoder, capsys):
    write_sound(tmp_path / "a.wav", 3)
    write_manifest(tmp_path / "m.jsonl", [QueryEntry("1", "a dog", "a", 3.0, ((0.0, 1.0),)), QueryEntry("2", "a cat", "a", 3.0, ())])
    args = ["extract", "--manifest", str(tmp_path / "m.jsonl"), "--audio-dir", str(tmp_path), "--feature-dir", str(tmp_path / "cache")]
    assert cli.main(args) == 0
    assert "encoded 1 recordings and 2 queries" in capsys.readouterr().err
    assert (tmp_path / "cache" / "tiny").is_dir()
    assert cli.main(args) == 0
    assert "encoded 0 recordings and 0 queries" in capsys.readouterr().err
    assert len(encoder.encoded) == 1
