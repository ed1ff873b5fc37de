"""How soon does the page follow the slider beta? Beside it, gradio's usual ways: a figure of matplotlib, or of plotly, made on the server.

    python -m benchmarks.slider [--moves 25]

All pages are served by this process, shown by one browser, and show the candidates of the same answer, in a table and over time. A move
is timed in the page, from the slider's event until the second animation frame after the page has changed: then the change has been
painted. The frames alone take up to 33 ms of any page, at the usual sixty a second; the row without a change tells how long here.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import matplotlib as mpl

from benchmarks._browser import NO_BROWSER, chromium_path, running_browser
from benchmarks._timing import Target, print_targets, write_json
from qamdetr.types import Moment
from qamdetr.ui.examples import load_examples
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.page import build_demo, launch_options

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LIMIT_MS = 30.0
WARM_UPS = 3
OURS, MATPLOTLIB, PLOTLY = "our page", "gr.Plot with matplotlib", "gr.Plot with plotly"
FRAMES_ALONE, WORK = "two frames without a change", "our page, until its elements have changed"

MOVE = """
async ([slider, watched, beta]) => {
  const input = document.querySelector(slider);
  const place = document.querySelector(watched);
  const image = () => place.querySelector("img"); // a figure that comes as one is there once another one has been read
  const before = image()?.src;
  const begin = performance.now();
  const changed = new Promise((resolve) => {
    const watch = new MutationObserver(async () => {
      const shown = image();
      if (shown && shown.src === before) return;
      watch.disconnect();
      if (shown) await shown.decode();
      resolve(performance.now() - begin);
    });
    watch.observe(place, { childList: true, subtree: true, characterData: true, attributeFilter: ["src", "d"] });
  });
  input.value = beta;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  const late = new Promise((_, reject) => setTimeout(() => reject(Error(`nothing changed in 30 s at ${beta}`)), 30_000));
  const work = await Promise.race([changed, late]);
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  return [work, performance.now() - begin];
}
"""
TWO_FRAMES = """
async () => {
  const begin = performance.now();
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  return performance.now() - begin;
}
"""


def peer_page(moments: Sequence[Moment], figure: Callable[[list[list[float]]], Any]) -> gr.Blocks:
    """Show candidates the usual way: each move asks the server, which ranks them, and draws and sends a figure and a table."""

    def show(beta: float) -> tuple[Any, list[list[float]]]:
        rows = [
            [moment.start_seconds, moment.end_seconds, (1 - beta) * moment.decoder_score + beta * (moment.verifier_score or 0)]
            for moment in moments
        ]
        rows.sort(key=lambda row: -row[2])
        return figure(rows), rows

    demo: gr.Blocks = gr.Blocks()
    with demo:
        beta = gr.Slider(0, 1, 0, step=0.05, elem_id="beta")
        plot, table = gr.Plot(elem_id="figure"), gr.Dataframe(headers=["Start", "End", "Score"])
        demo.load(show, beta, [plot, table])
        beta.input(show, beta, [plot, table], show_progress="hidden")
    return demo


def matplotlib_figure(rows: list[list[float]]) -> Any:  # noqa: ANN401 - of a package without types
    """Draw a bar per candidate, its score as its height."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.4))
    axes = figure.subplots()
    for start, end, score in rows:
        axes.bar(start, score, end - start, align="edge", alpha=0.5)
    axes.set(xlabel="seconds", ylabel="score", ylim=(0, 1))
    return figure


def plotly_figure(rows: list[list[float]]) -> Any:  # noqa: ANN401 - of a package that need not be here
    """As `matplotlib_figure`."""
    graphs: Any = importlib.import_module("plotly.graph_objects")
    starts, ends, scores = zip(*rows, strict=True)
    widths = [end - start for start, end in zip(starts, ends, strict=True)]
    return graphs.Figure(graphs.Bar(x=starts, y=scores, width=widths, offset=0), {"height": 240, "yaxis": {"range": [0, 1]}})


@contextmanager
def served(demo: gr.Blocks, **options: Any) -> Iterator[str]:  # noqa: ANN401 - gradio's
    """Serve a page; yields its address."""
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
    try:
        yield url
    finally:
        demo.close()


def open_answer(browser: Browser, url: str, query: str) -> Page:
    """Open our page with an example answered and the pocket verifier on."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator(".qd-empty").wait_for()
    page.locator(".qamdetr-example").first.get_by_text(query, exact=True).click()
    page.locator(".qd-message", has_text=query).wait_for()
    page.get_by_role("button", name="Model and ranking").click()
    page.get_by_role("radio", name="Pocket").click()
    page.locator(".qd-caption", has_text="Verifier: pocket").first.wait_for()
    page.locator(".qd-player[aria-busy='false']").wait_for()
    page.locator(".qd-more").click()  # all candidates, as the peers show them
    return page


def open_peer(browser: Browser, url: str) -> Page:
    """Open a peer's page with its first figure drawn."""
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator("#figure img, #figure .js-plotly-plot .plot").first.wait_for()
    return page


def betas(moves: int) -> list[float]:
    """Weights to move to, each far from the one before, so that every move ranks anew."""
    return [round(0.05 * (8 * move % 21), 2) for move in range(1, moves + 1)]


def moved(page: Page, slider: str, watched: str, beta: float) -> list[float]:
    """Move once: milliseconds until the elements have changed, and until that is painted."""
    times: list[float] = page.evaluate(MOVE, [f"{slider} input[type=range]", watched, str(beta)])
    page.wait_for_timeout(50)  # what a page does after it has painted belongs to no later move
    return times


def measure(browser: Browser, moves: int) -> dict[str, float]:
    """Move the slider of every page in turns; return the medians in milliseconds."""
    example = load_examples()[0]
    query = next(query for query, windows in example.truth.items() if windows)
    model = SharedRetriever()
    model.warm_up()
    retriever = model.get()
    moments = retriever.retrieve_many(retriever.encode(example.path), [query], verifier="pocket")[0].moments
    figures = {MATPLOTLIB: matplotlib_figure, PLOTLY: plotly_figure}
    if importlib.util.find_spec("plotly") is None:
        del figures[PLOTLY]
        print("plotly is not installed: not measured.")
    with ExitStack() as stack:
        url = stack.enter_context(served(build_demo(model), **launch_options()))
        pages = {OURS: (open_answer(browser, url, query), "#qamdetr-beta", ".qd-player")}
        for name, figure in figures.items():
            page = open_peer(browser, stack.enter_context(served(peer_page(moments, figure))))
            pages[name] = (page, "#beta", "#figure")
        times: dict[str, list[float]] = {name: [] for name in (*pages, WORK, FRAMES_ALONE)}
        for number, beta in enumerate(betas(WARM_UPS + moves)):
            for name, (page, slider, watched) in pages.items():
                page.bring_to_front()  # a page in the background draws no frames
                work, painted = moved(page, slider, watched, beta)
                if name == OURS:
                    shown = page.locator(".qd-caption").first.inner_text()
                    assert f"{beta:.2f} · verifier" in shown, shown
                if number < WARM_UPS:
                    continue
                times[name].append(painted)
                if name == OURS:
                    times[WORK].append(work)
                    times[FRAMES_ALONE].append(page.evaluate(TWO_FRAMES))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=25, help="of each slider; the median counts")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/slider.json"))
    arguments = parser.parse_args()
    chromium = chromium_path()
    if chromium is None:
        print(NO_BROWSER)
        return
    mpl.use("Agg")
    with running_browser(chromium) as browser:
        medians = measure(browser, arguments.moves)
    print(f"Slider to screen, medians of {arguments.moves} moves")
    for name, milliseconds in medians.items():
        print(f"  {name:<52}{milliseconds:9.1f} ms")
    ratios = {name: medians[name] / medians[OURS] for name in (MATPLOTLIB, PLOTLY) if name in medians}
    for name, ratio in ratios.items():
        print(f"  {name + ' / ' + OURS:<52}{ratio:9.1f} x")
    targets = print_targets([Target("slider to screen", medians[OURS], LIMIT_MS, "ms")])
    write_json(arguments.output, {"milliseconds": medians, "ratios": ratios, "moves": arguments.moves, "targets": targets})


if __name__ == "__main__":
    main()
