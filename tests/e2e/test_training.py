"""Training from the page, in a real browser and for real: clips, scenes, a run with curves, its checkpoint in the other tab."""

from __future__ import annotations

import shutil

import pytest
from doubles import FakeRetriever, end_all, make_clips, row, write_run
from gradio_client import Client, handle_file
from visitor import HOSTILE

from qamdetr.inference.retriever import MomentRetriever
from qamdetr.ui.models import SharedRetriever, load_retriever
from qamdetr.ui.train.jobs import Jobs
from qamdetr.ui.train.plans import RUNS_VARIABLE
from qamdetr.ui.train.runs import read_run

pytestmark = pytest.mark.slow

NAME = HOSTILE.partition("</")[0].strip()  # a folder's


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUNS_VARIABLE, str(folder))
        yield folder
    end_all(Jobs(folder / ".jobs"))


@pytest.fixture
def start_app(launch, runs_dir):
    """Starts the page on the module's folder of runs; starting it again is what a restart of the app is."""
    return lambda load=load_retriever: launch(SharedRetriever(load, runs=runs_dir))


def show_tab(page):
    page.get_by_role("tab", name="Train").click()
    page.locator(".qt-panel").wait_for()


def toast(page):
    page.locator(".toast-body").last.wait_for()
    return page.locator(".toast-body").last.inner_text()


def test_the_whole_story(open_page, start_app, tmp_path, runs_dir, recordings):
    clips = make_clips(tmp_path, {"low tone": 220, "high tone": 1800})
    url, demo = start_app()
    page = open_page(url)
    show_tab(page)
    page.get_by_text("No runs yet").wait_for()
    page.get_by_role("button", name="Make scenes", exact=True).click()
    assert "no folder" in toast(page)
    page.locator(".qt-told", has_text="no folder").wait_for()

    page.get_by_label("Folder of clips").fill(str(clips))
    for label, value in (("Scenes to learn from", "6"), ("Scenes to validate on", "3"), ("Shortest", "12"), ("Longest", "16")):
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Make scenes", exact=True).click()
    page.locator(".qt-badge.qt-running").wait_for()
    assert "Step" in page.locator(".qt-progress").inner_text()
    page.locator(".qt-badge.qt-finished").wait_for(timeout=120_000)
    page.wait_for_function("document.querySelector('#qamdetr-train-scenes input').value === 'my-scenes'")

    page.get_by_label("Transformer").check()
    page.get_by_label("Epochs").fill("300")
    page.get_by_label("Name of the run").fill("tones")
    page.get_by_role("button", name="Start training").click()
    page.locator(".qt-item[data-id='tones']").wait_for()
    page.wait_for_function("document.querySelectorAll('.qt-chart polyline').length === 4", timeout=120_000)
    page.locator(".qt-progress", has_text="left").wait_for()
    assert "of 300" in page.locator(".qt-progress").inner_text()

    # The app goes down and comes up again: the run goes on, and the new page finds it.
    before = int(page.locator(".qt-item[data-id='tones'] .qt-brief").inner_text().split()[0])
    page.close()
    demo.close()
    url, _ = start_app()
    page = open_page(url)
    show_tab(page)
    page.locator(".qt-stop").wait_for()
    page.wait_for_function("n => parseInt(document.querySelector(\".qt-item[data-id='tones'] .qt-brief\").textContent) > n", arg=before)
    page.locator(".qt-stop").click()
    page.locator(".qt-told", has_text="Stopping").wait_for()
    page.locator(".qt-resume").click()
    page.locator(".qt-stop").click()
    page.locator(".qt-badge.qt-stopped").wait_for()

    page.get_by_role("button", name="3 · Evaluate").click()
    page.get_by_role("button", name="Metrics by window length").click()
    page.locator(".qt-evaluation caption", has_text="tones").wait_for()
    assert page.locator(".qt-evaluation tbody tr").count() == 6
    run = read_run(runs_dir / "tones")
    assert [line["epoch"] for line in run.rows] == list(range(1, len(run.rows) + 1)), "it went on where it was"
    names, values = (page.locator(f".qt-evaluation {cells}").all_inner_texts() for cells in ("thead th", "tbody tr:last-child > *"))
    assert float(values[names.index("R1@0.7")]) == pytest.approx(run.best["val"]["R1@0.7"], abs=0.02)
    page.get_by_label("Runs to compare").click()
    page.get_by_role("option", name="tones").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Table of ablations").click()
    page.locator(".qt-evaluation caption", has_text="side by side").wait_for()

    page.locator(".qt-use").click()
    page.get_by_text("Find now uses run: tones; open a recording.").wait_for()
    page.get_by_role("button", name="Model and ranking").click()
    page.wait_for_function("document.querySelector('#qamdetr-model input')?.value.startsWith('run: tones ')")
    assert str(runs_dir) not in page.content()

    sound = recordings["walk.wav"]
    told = Client(url, verbose=False).predict(handle_file(sound), "low tone", checkpoint="run: tones", api_name="/retrieve")
    here = MomentRetriever.from_pretrained(str(run.checkpoint))
    moments = here.retrieve(here.encode(sound), "low tone").moments
    assert moments
    assert [(one["start"], one["end"]) for one in told["moments"]] == [pytest.approx(one.window, abs=1e-3) for one in moments]


def test_runs_come_and_go_in_list_and_link_while_the_page_is_open(open_page, start_app, runs_dir):
    for name in ("second", NAME):
        write_run(runs_dir / name, [row(1, 5.0)], checkpoint=True)
    url, _ = start_app(lambda _: FakeRetriever())
    page = open_page(url, search="/?q=rain&model=run%3A+second")
    page.get_by_role("button", name="Model and ranking").click()
    page.wait_for_function("document.querySelector('#qamdetr-model input')?.value.startsWith('run: second ')")
    assert "model=run%3A+second" in page.url
    write_run(runs_dir / "third", [row(1, 5.0)], checkpoint=True)
    page.locator("#qamdetr-query textarea").click()  # elsewhere, so that the list is opened anew
    page.locator("#qamdetr-model input").click()
    page.get_by_role("option", name="run: third").click()
    page.wait_for_function("location.search.includes('third')")
    assert page.locator(".toast-body").count() == 0

    shutil.rmtree(runs_dir / "second")
    page.goto(f"{url}/?q=rain&model=run%3A+second&beta=7")
    assert "model “run: second” (qam-detr-pocket is used)" in toast(page)
    page.wait_for_function("location.search === '?q=rain'")
    show_tab(page)
    page.locator(".qt-item", has_text="<img").click()
    page.locator(".qt-chart").first.wait_for()
    assert NAME in page.locator(".qt-panel").inner_text()
    assert page.locator(".qt-panel img").count() == 0
