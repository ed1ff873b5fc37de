"""The page as it is laid out and launched, and the examples that it offers."""

from __future__ import annotations

import re
from pathlib import Path

import soundfile
from doubles import FakeRetriever

from qamdetr.ui import page as page_module
from qamdetr.ui import player
from qamdetr.ui.examples import Example, load_examples
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.page import build_demo, launch_options
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


def test_the_truth_of_the_examples_lies_in_them():
    for example in load_examples():
        length = soundfile.info(str(example.path)).duration
        assert all(0 <= start < end <= length for windows in example.truth.values() for start, end in windows)
