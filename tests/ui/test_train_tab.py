"""The tab that trains as it is laid out and wired, without a browser."""

from __future__ import annotations

import gradio as gr
from own_sounds import make_clips
from run_folders import row, write_run

from qamdetr.ui import evaluation_tab, page_errors, train_tab
from qamdetr.ui.settings import AppSettings


def test_scripts_of_the_page_never_parse_words_and_ask_nobody_else():
    for script in (train_tab.PANEL_JS, evaluation_tab.EVALUATION_JS):
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
            assert forbidden not in script
    assert not {"{{", "${"} & set(train_tab.TRAINING_CSS.split())


def test_where_training_is_off_the_page_says_how_to_switch_it_on(tmp_path):
    with gr.Blocks() as page:
        tab = train_tab.build_train_tab(AppSettings(training=False), print, tmp_path)
    assert tab.used is None
    assert not page.fns
    assert any("QAMDETR_TRAINING=1" in str(block.value) for block in page.blocks.values() if isinstance(block, gr.Markdown))


def press(page, label, values=()):
    """Call what a button of the page does."""
    (button,) = (block for block in page.blocks.values() if isinstance(block, gr.Button) and block.value == label)
    (event,) = (fn for fn in page.fns.values() if (button._id, "click") in fn.targets)
    return event.fn(*values)


def test_a_refused_start_is_a_toast_and_a_line_and_no_error(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(page_errors.gr, "Warning", lambda text, **_: told.append(text))
    with gr.Blocks() as page:
        train_tab.build_train_tab(AppSettings(), print, tmp_path)
    view = press(page, "Make scenes", ("<b>mine</b>", "/no/folder", "", "", 1, 1, 12, 16, 0))
    assert view["refused"]
    assert "becomes a folder" in view["message"]
    assert "&lt;b&gt;mine" in told[0]
    view = press(page, "Start training", ("new", "", "pocket", "bimamba", [], [], 0, 1, "run: gone"))
    assert "no 'run: gone' to begin with" in view["message"]
    assert len(told) == 2


def test_numbers_out_of_range_are_told_by_the_page_itself_and_not_by_the_field(tmp_path, monkeypatch):
    monkeypatch.setattr(page_errors.gr, "Warning", lambda *_, **__: None)
    with gr.Blocks() as page:
        train_tab.build_train_tab(AppSettings(), print, tmp_path)
    fields = [block for block in page.blocks.values() if isinstance(block, gr.Number)]
    assert [field.preprocess(-3) for field in fields] == [-3] * len(fields)
    make_clips(tmp_path / "clips", {"bell": 440.0, "horn": 660.0})
    for numbers, told in (
        ((-3, 1, 12, 16, 0), "training scenes is -3; it must be from 1"),
        ((1, 1, -12, 16, 0), "-12"),
        ((1, 1, 12, 16, -1), "-1"),
    ):
        view = press(page, "Make scenes", ("mine", str(tmp_path / "clips"), "", "", *numbers))
        assert told in view["message"]
    for part in ("train", "val"):
        (tmp_path / "scenes" / part).mkdir(parents=True)
        (tmp_path / "scenes" / part / "manifest.jsonl").touch()
    for seed, epochs, told in ((0, -3, "number of epochs is -3; it must be from 1"), (-1, 1, "-1")):
        view = press(page, "Start training", ("new", str(tmp_path / "scenes"), "pocket", "bimamba", [], [], seed, epochs, train_tab.FRESH))
        assert told in view["message"]


def test_what_cannot_be_evaluated_is_said_where_the_table_would_be(tmp_path):
    with gr.Blocks() as page:
        train_tab.build_train_tab(AppSettings(), print, tmp_path)
    assert press(page, "Metrics by window length", (None,)) == {"empty": "There are no runs yet; train one."}
    write_run(tmp_path / "done", [row(1, 1.0)])
    assert "'gone' is no longer there" in press(page, "Table of ablations", (["gone"],))["empty"]
    assert "no checkpoint yet" in press(page, "Metrics by window length", ("done",))["empty"]
