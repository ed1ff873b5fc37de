"""The tab that trains: scenes from one's own clips, a run with live curves, its checkpoint in the other tab, and what it is worth."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.inference.checkpoint import available_checkpoints
from qamdetr.ui.errors import page_error, warn
from qamdetr.ui.models import OF_RUN, run_model
from qamdetr.ui.settings import TRAINING_VARIABLE, AppSettings
from qamdetr.ui.train.clips import SCENES, SceneOrder, offered_scenes, plan_scenes
from qamdetr.ui.train.evaluation import PRIVATE, TRAINING_CSS, build_evaluation, run_choices
from qamdetr.ui.train.jobs import Job, Jobs
from qamdetr.ui.train.plans import (
    CONFIGS,
    ENCODERS,
    TrainOrder,
    choices_of,
    component_choices,
    free_name,
    plan_training,
    resume_steps,
    runs_folder,
)
from qamdetr.ui.train.runs import BEST, Run, View, find_entry, find_runs, identity, jobs_folder, panel_view

_HERE = Path(__file__).resolve().parents[1]
PANEL_JS = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("training_charts.js", "training_panel.js"))

FRESH = "Fresh weights"

TRAINING_OFF = (
    "Training from this page is switched off, since strangers may use it. Whoever runs it can set "
    f"`{TRAINING_VARIABLE}=1` in its environment; on a machine of your own, `make app` has it."
)

CLIPS_HELP = """The folder lies on the machine that runs this page. It holds **one short clip per sound event** (WAV, FLAC, OGG,
MP3 …; a few seconds each), at least two different sounds, better twenty or more clips of each. There are two ways to say what is heard:

- **by names**: a subfolder for each sound (`dog barking/01.wav`, `dog barking/02.wav`), or file names (`dog_barking_1.wav`);
- **by a table** `clips.csv` in the folder, with the columns `file_name` and `caption_1` (`caption_2` … for other wordings), and where
  you like `group` (clips of one sound, such as `animal/dog`), `extend` (`loop` for textures such as rain), `license`, `author`.

Scenes are long recordings in which these clips sound at random times and levels over the backgrounds; the true windows are known,
since the program placed them. Nothing in your folder is changed."""


@dataclass(frozen=True)
class TrainTab:
    """What the page around the tab may wire.

    Attributes:
        used: The event after a checkpoint was handed to `on_checkpoint`; None where training is off.
        checkpoint: The name of its model, see `models.run_model`.
    """

    used: Any
    checkpoint: gr.State


def build_train_tab(settings: AppSettings, on_checkpoint: Callable[[str, Path], object], root: Path | None = None) -> TrainTab:
    """Lay the tab out inside the current `gr.Blocks` and wire its events."""
    checkpoint = gr.State("")
    if not settings.training:
        gr.Markdown(TRAINING_OFF, elem_id="qamdetr-training-off")
        return TrainTab(None, checkpoint)
    root = runs_folder() if root is None else root
    handlers = TrainHandlers(root, on_checkpoint)

    # Gradio marks the functions that the page may call, which methods do not let it do.
    def poll(request: dict[str, Any]) -> View:
        return handlers.poll(request)

    def act(request: dict[str, Any]) -> View:
        return handlers.act(request)

    gr.Markdown(
        "Teach the model your own sounds: make scenes from clips, train on them, use what comes out. Runs go on when this page is closed.",
        elem_classes="qamdetr-training-intro",
    )
    with gr.Accordion("1 · Make scenes from your own clips", open=not offered_scenes(root), elem_id="qamdetr-scenes"):
        scenes_form = _build_scenes_form(handlers)
    with gr.Accordion("2 · Train", open=True, elem_id="qamdetr-train"):
        train_form = _build_train_form(handlers)
    gr.Markdown("### Runs and scenes")
    panel = gr.HTML(
        value={"loading": True},  # it asks by itself as soon as it is in sight, and a page that is opened later finds later runs
        html_template='<div class="qt-panel"></div>',
        css_template=TRAINING_CSS,
        js_on_load=PANEL_JS,
        apply_default_css=False,
        server_functions=[poll, act],
        elem_id="qamdetr-runs",
    )
    with gr.Accordion("3 · Evaluate", open=False, elem_id="qamdetr-evaluation"):
        length_choice, compared = build_evaluation(root)

    scenes_form.start.click(
        lambda *values: _started(handlers, handlers.make_scenes, _scene_order(*values)), scenes_form.inputs, panel, **PRIVATE
    )
    train_form.start.click(lambda *values: _started(handlers, handlers.train, _train_order(*values)), train_form.inputs, panel, **PRIVATE)
    choices = [train_form.scenes, train_form.init_from, length_choice, compared, scenes_form.name]
    # Runs come and go while the page is open, and were there before it was.
    panel.news(lambda *chosen: _refreshed(handlers, *chosen), choices, choices, queue=False, **PRIVATE)

    def use(event: gr.EventData) -> str:
        try:
            return handlers.use(str(event.name))
        except QamDetrError as error:
            raise page_error(error) from error

    used = panel.select(use, None, checkpoint, **PRIVATE)
    return TrainTab(used, checkpoint)


@dataclass(frozen=True)
class _ScenesForm:
    start: gr.Button
    name: gr.Textbox
    inputs: list[Any]


@dataclass(frozen=True)
class _TrainForm:
    start: gr.Button
    scenes: gr.Dropdown
    init_from: gr.Dropdown
    inputs: list[Any]


def _build_scenes_form(handlers: TrainHandlers) -> _ScenesForm:
    usual = SceneOrder("", "")
    with gr.Row():
        clips = gr.Textbox(
            label="Folder of clips", placeholder="/home/me/clips", scale=3, min_width=260, max_lines=1, elem_id="qamdetr-clips"
        )
        name = gr.Textbox(label="Name of the scenes", value=handlers.suggest_scenes_name(), max_lines=1, min_width=160)
    with gr.Accordion("What the folder must hold", open=False):
        gr.Markdown(CLIPS_HELP)
    with gr.Row():
        number = gr.Number(usual.num_scenes, label="Scenes to learn from", precision=0, min_width=140)
        validation = gr.Number(usual.num_validation, label="Scenes to validate on", precision=0, min_width=140)
        shortest = gr.Number(usual.shortest_seconds, label="Shortest (seconds)", min_width=140)
        longest = gr.Number(usual.longest_seconds, label="Longest (seconds)", min_width=140)
        seed = gr.Number(usual.seed, label="Seed", precision=0, min_width=100)
    with gr.Accordion("Backgrounds and validation clips", open=False), gr.Row():
        backgrounds = gr.Textbox(
            label="Folder of backgrounds",
            info="Long recordings without the sounds of your clips. Empty: faint noise, which is easier than the real world.",
            placeholder="empty",
            max_lines=1,
            min_width=260,
        )
        other = gr.Textbox(
            label="Folder of validation clips",
            info="Other clips of the same kinds. Empty: one clip in five of each sound is kept back, so that validation is honest.",
            placeholder="empty",
            max_lines=1,
            min_width=260,
        )
    start = gr.Button("Make scenes", variant="primary", elem_id="qamdetr-make-scenes")
    return _ScenesForm(start, name, [name, clips, other, backgrounds, number, validation, shortest, longest, seed])


def _build_train_form(handlers: TrainHandlers) -> _TrainForm:
    encoder_on, components_on, streams_on, epochs_on = choices_of("pocket")
    with gr.Row():
        scenes = gr.Dropdown(
            [],
            value=None,
            label="Scenes",
            info="Made above, or a folder that holds train and val, each with a manifest.jsonl.",
            allow_custom_value=True,
            min_width=260,
            elem_id="qamdetr-train-scenes",
        )
        config = gr.Dropdown(
            list(CONFIGS),
            value="pocket",
            label="Configuration",
            info="pocket has the shipped model's settings: a good start on a CPU.",
            min_width=260,
        )
    with gr.Row():
        encoder = gr.Radio(list(ENCODERS), value=encoder_on, label="Encoder", min_width=200)
        components = gr.CheckboxGroup(component_choices(), value=components_on, label="Components", min_width=280)
        streams = gr.CheckboxGroup(
            _stream_choices(streams_on), value=streams_on, label="Auxiliary streams", min_width=200, elem_id="qamdetr-train-streams"
        )
    with gr.Row():
        epochs = gr.Number(epochs_on, label="Epochs", precision=0, min_width=100)
        seed = gr.Number(0, label="Seed", precision=0, min_width=100)
        init_from = gr.Dropdown([FRESH], value=FRESH, label="Begin with", min_width=200)
        name = gr.Textbox(label="Name of the run", placeholder="automatic", max_lines=1, min_width=200)
    start = gr.Button("Start training", variant="primary", elem_id="qamdetr-start-training")

    def configure(chosen: str) -> tuple[Any, ...]:
        try:
            encoder_on, components_on, streams_on, epochs_on = choices_of(chosen)
        except QamDetrError as error:
            raise page_error(error) from error
        return encoder_on, components_on, gr.update(choices=_stream_choices(streams_on), value=streams_on), epochs_on

    config.input(configure, config, [encoder, components, streams, epochs], **PRIVATE)
    return _TrainForm(start, scenes, init_from, [name, scenes, config, encoder, components, streams, seed, epochs, init_from])


def _started(handlers: TrainHandlers, start: Callable[[Any], str], order: Callable[[TrainHandlers], Any]) -> View:
    """Start what was filled in; a mistake is one line on the page, and what was filled in stays."""
    try:
        return handlers.view(start(order(handlers)), "Started. It goes on when you close this page.")
    except Exception as error:
        # Raised, it would leave a hidden "Error" in the panel, which screen readers find.
        return {"message": warn(error, "Not started"), "refused": True}


def _scene_order(*values: Any) -> Callable[[TrainHandlers], SceneOrder]:  # noqa: ANN401 - what a form holds
    name, clips, other, backgrounds, number, validation, shortest, longest, seed = values
    return lambda _: SceneOrder(
        name=(name or "").strip(),
        clips=clips or "",
        validation_clips=other or "",
        backgrounds=backgrounds or "",
        num_scenes=int(number or 0),
        num_validation=int(validation or 0),
        shortest_seconds=float(shortest or 0),
        longest_seconds=float(longest or 0),
        seed=int(seed or 0),
    )


def _train_order(*values: Any) -> Callable[[TrainHandlers], TrainOrder]:  # noqa: ANN401 - what a form holds
    name, scenes, config, encoder, components, streams, seed, epochs, init_from = values
    return lambda handlers: TrainOrder(
        name=(name or "").strip() or handlers.suggest_run_name(config, seed),
        scenes=scenes or "",
        config=config,
        encoder=encoder,
        components=tuple(components or ()),
        streams=tuple(streams or ()),
        seed=int(seed or 0),
        epochs=int(epochs or 0),
        init_from=_init_from(handlers.root, init_from or FRESH),
    )


def _refreshed(handlers: TrainHandlers, scenes: str, init_from: str, length_run: str, compared: list[str], name: str) -> tuple[Any, ...]:
    """Offer what is there now; what was chosen stays chosen while it exists."""
    sets, runs, starts = offered_scenes(handlers.root), run_choices(handlers.root), _init_choices(handlers.root)
    kept = [run for run in compared or [] if run in runs]
    taken = (handlers.root / SCENES / (name or "")).exists()
    return (
        gr.update(choices=sets, value=scenes or (sets[0] if sets else None)),
        gr.update(choices=starts, value=init_from if init_from in starts else FRESH),
        gr.update(choices=runs, value=length_run if length_run in runs else (runs[0] if runs else None)),
        gr.update(choices=runs, value=kept),
        handlers.suggest_scenes_name() if taken else gr.skip(),  # it may be being typed
    )


def _init_choices(root: Path) -> list[str]:
    runs = [run_model(identity(run.folder, root)) for run in find_runs(root) if run.checkpoint is not None]
    return [FRESH, *available_checkpoints(), *runs]


def _init_from(root: Path, chosen: str) -> str:
    """Name or folder of the checkpoint that a choice means; empty for fresh weights."""
    if chosen not in _init_choices(root):
        raise QamDetrError(f"There is no {chosen!r} to begin with any more; choose another, or fresh weights.")
    if not chosen.startswith(OF_RUN):
        return "" if chosen == FRESH else chosen
    return str((root / chosen.removeprefix(OF_RUN) / BEST).resolve())


def _stream_choices(streams: list[str]) -> list[tuple[str, str]]:
    words = {"mel_stats": "log-mel statistics"}
    return [(words.get(name.partition("/")[2], name.replace("/", ": ")), name) for name in streams]


class TrainHandlers:
    """Everything behind the page, without gradio; one for all visitors, since they share one machine."""

    def __init__(self, root: Path, on_checkpoint: Callable[[str, Path], object]) -> None:
        """Bind the page to its folder."""
        self.root = root
        self.jobs = Jobs(jobs_folder(root))
        self._on_checkpoint = on_checkpoint
        self._lock = threading.Lock()

    def view(self, selected: str = "", message: str = "") -> View:
        """Describe all jobs and runs, see `panel_view`."""
        return panel_view(self.root, self.jobs, selected, message)

    def make_scenes(self, order: SceneOrder) -> str:
        """Start to make scenes; returns their identity on the page.

        Raises:
            QamDetrError: One line for whatever is wrong; then nothing was started.
        """
        with self._lock:
            self._refuse_second()
            target, steps = plan_scenes(order, self.root)
            self.jobs.start(f"{SCENES}-{order.name}", "scenes", target, steps)
        return identity(target, self.root)

    def train(self, order: TrainOrder) -> str:
        """Start to train; returns the run's identity on the page.

        Raises:
            QamDetrError: One line for whatever is wrong; then nothing was started.
        """
        with self._lock:
            self._refuse_second()
            target, steps = plan_training(order, self.root, self.jobs.folder / order.name)
            self.jobs.start(order.name, "train", target, steps)
        return identity(target, self.root)

    def stop(self, name: str) -> str:
        """Stop a job of this page; returns what to tell.

        Raises:
            ConfigError: It does not run, or was not started from the page.
        """
        run, job = self._find(name)
        if job is None or job.state != "running":
            kind = "was started outside this page; stop it where it was started" if run is not None and job is None else "does not run"
            raise ConfigError(f"“{name}” {kind}.")
        self.jobs.stop(job.name)
        return "Stopping; what was saved stays, and Resume goes on from there."

    def resume(self, name: str) -> str:
        """Continue what was stopped or failed; returns what to tell.

        Raises:
            ConfigError: Another job runs, or there is nothing left to do.
        """
        with self._lock:
            self._refuse_second()
            run, job = self._find(name)
            if run is not None and run.finished:
                raise ConfigError(f"“{name}” is finished; start a new run for more epochs.")
            if run is not None:
                job_name = job.name if job is not None else free_name(run.folder.name, [self.jobs.folder])
                self.jobs.start(job_name, "train", run.folder, resume_steps(run.folder))
            elif job is not None:
                self.jobs.start(job.name, job.kind, job.target, job.steps)
        return "Going on from what was saved last."

    def use(self, name: str) -> str:
        """Offer the best checkpoint of a run in the other tab; returns the name that the model has there.

        Raises:
            ConfigError: The run has none yet.
        """
        run, _ = self._find(name)
        if run is None or run.checkpoint is None:
            raise ConfigError(f"“{name}” has no checkpoint yet; the first is saved when its first epoch ends.")
        model = run_model(identity(run.folder, self.root))
        self._on_checkpoint(model, run.checkpoint.resolve())
        return model

    def suggest_run_name(self, config: str, seed: float | None) -> str:
        """Return a name for a run that is not taken."""
        return free_name(f"{config}-s{int(seed or 0)}", [self.root, self.jobs.folder])

    def suggest_scenes_name(self) -> str:
        """Return a name for a set of scenes that is not taken."""
        return free_name("my-scenes", [self.root / SCENES])

    def poll(self, request: dict[str, Any]) -> View:
        """Answer the page's own question for news: `{"selected": identity}`."""
        return self.view(_text(request, "selected"))

    def act(self, request: dict[str, Any]) -> View:
        """Do what a button of the page says: `{"action": "stop" or "resume", "selected": identity}`; a refusal is the view's message."""
        action, name = _text(request, "action"), _text(request, "selected")
        known: dict[str, Callable[[str], str]] = {"stop": self.stop, "resume": self.resume}
        try:
            if action not in known:
                raise ConfigError(f"{action!r} is no action of this page; it knows {' and '.join(known)}.")
            message = known[action](name)
        except QamDetrError as error:
            message = str(error)
        return self.view(name, message)

    def _refuse_second(self) -> None:
        """Say it before anything is written; `Jobs.start` makes sure."""
        running = self.jobs.running()
        if running is not None:
            raise ConfigError(
                f"“{running.name}” is still running, and two jobs would only slow each other down; wait until it ends, or stop it."
            )

    def _find(self, name: str) -> tuple[Run | None, Job | None]:
        run, job = find_entry(self.root, self.jobs, name)
        if run is None and job is None:
            raise ConfigError(f"There is no {name!r} among the runs and scenes; it may have been removed. Choose another.")
        return run, job


def _text(request: object, key: str) -> str:
    value = request.get(key) if isinstance(request, dict) else None
    return value if isinstance(value, str) else ""
