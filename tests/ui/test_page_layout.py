"""The page as it is laid out and launched, and the examples that it offers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import soundfile
from doubles import FakeRetriever

from qamdetr.config import InferenceConfig
from qamdetr.errors import DataError
from qamdetr.ui import page as page_module
from qamdetr.ui import player
from qamdetr.ui.examples import ASSETS_DIR, Example, load_examples
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.page import build_demo, hearing_note, launch_options
from qamdetr.ui.settings import AppSettings

UI_DIR = Path(page_module.__file__).parent
SETTINGS = AppSettings(queue_length=7, upload_mb=30)


def test_no_session_is_sent_with_the_page_and_its_lanes_do_not_wait_for_one_another(tmp_path):
    example = Example(tmp_path / "yard.wav", "A yard", {"a dog barks": ((1.0, 2.0),)})
    example.path.touch()
    page = build_demo(SharedRetriever(lambda _: FakeRetriever(), SETTINGS), SETTINGS, [example])
    states = [component for component in page.config["components"] if component["type"] == "state"]
    assert states
    assert all("value" not in component["props"] for component in states)
    lanes = {fn.concurrency_id: fn.concurrency_limit for fn in page.fns.values() if isinstance(fn.concurrency_id, str)}
    assert {name: lanes.get(name) for name in ("model", "encode", "answer")} == {"model": 1, "encode": 1, "answer": 1}


def test_the_page_serves_uploads_and_examples_and_nothing_else():
    options = launch_options(SETTINGS)
    assert (options["allowed_paths"], options["max_file_size"], options["strict_cors"]) == ([], 30 * 1024**2, True)
    assert not any(options[name] for name in ("ssr_mode", "run_history", "enable_monitoring", "show_error", "mcp_server"))
    assert launch_options(AppSettings(mcp=True))["mcp_server"]
    assert options["favicon_path"].is_file()
    assert [launch_options(AppSettings(server_port=port))["server_port"] for port in (8080, None)] == [8080, None]
    assert not options["theme"]._stylesheets, "no font comes from elsewhere"


def test_scripts_never_parse_words_and_ask_nobody_else_and_gradio_is_used_as_it_is():
    parses = "innerHTML|outerHTML|insertAdjacentHTML|document\\.write|eval\\(|decodeAudioData|fetch\\(|XMLHttpRequest"
    private = r"\(gr\.Blocks\):|def (preprocess_data|process_api|get_config_file|postprocess_data)\b|(demo|blocks|page|gr)\._\w+\("
    for path in UI_DIR.rglob("*.*"):
        text = path.read_text(encoding="utf-8") if path.suffix in {".css", ".js", ".svg", ".py"} else ""
        if path.suffix == ".py":
            assert not re.search(private, text), path.name
        else:
            assert not re.search(parses, text), path.name
            assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
    assert not re.search(r"\{\{|\$\{", player.PLAYER_CSS), "gradio fills templates in"


def test_the_card_is_quoted_by_its_section():
    card = "# Model\n## What it can and cannot hear\nDogs.\n### But\nNo cats.\n## Else\nx"
    assert hearing_note(["# none", card]) == "Dogs.\n### But\nNo cats."
    assert "everyday sounds" in hearing_note([])


def test_examples_are_read_with_their_truth_and_mistakes_are_named(tmp_path):
    assert load_examples(tmp_path) == []
    (tmp_path / "yard.ogg").touch()
    queries = [{"query": "A dog barks ", "windows": [[1, 2.5]]}, {"query": "rain", "windows": []}]
    entry = {"file": "yard.ogg", "title": "A yard, quiet", "queries": queries}
    (tmp_path / "examples.json").write_text(json.dumps([entry]))
    (example,) = load_examples(tmp_path)
    assert (example.name, example.description, list(example.truth)) == ("A yard", "Quiet.", ["A dog barks", "rain"])
    assert [example.windows_of(query) for query in (" a DOG barks", "rain", "a cat")] == [((1.0, 2.5),), (), None]
    assert Example(tmp_path, "A yard", {}).description == ""
    for wrong, told in (({**entry, "file": "gone.ogg"}, r"gone\.ogg"), ({"file": "yard.ogg", "queries": queries}, "title")):
        (tmp_path / "examples.json").write_text(json.dumps([wrong]))
        with pytest.raises(DataError, match=told):
            load_examples(tmp_path)


def test_examples_of_the_project_are_whole_and_of_several_kinds():
    examples = load_examples(ASSETS_DIR)
    assert len({example.name for example in examples}) == len(examples) >= 4
    lengths = [soundfile.info(str(example.path)).duration for example in examples]
    assert max(lengths) > InferenceConfig().section_clips, "one is longer than what the network reads at once"
    assert any(not any(example.truth.values()) for example in examples), "one holds nothing that is asked for"
    for example, length in zip(examples, lengths, strict=True):
        assert all(0 <= start < end <= length for windows in example.truth.values() for start, end in windows)
