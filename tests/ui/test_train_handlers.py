"""What somebody does on the training page: without starting anything where it can be told beforehand, and once for real."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
from filelock import FileLock
from own_sounds import make_clips
from run_folders import row, write_run

from qamdetr.config import Config, load_config, save_config
from qamdetr.data.manifest import read_manifest
from qamdetr.errors import QamDetrError
from qamdetr.ui.evaluation_view import length_table
from qamdetr.ui.scene_plans import SceneOrder, plan_scenes
from qamdetr.ui.train_handlers import TrainHandlers
from qamdetr.ui.training_jobs import Step
from qamdetr.ui.training_plans import CONFIGS, TrainOrder, build_config, choices_of, free_name, plan_training
from qamdetr.ui.training_runs import read_run

SLEEPER = Step("sleeping", (sys.executable, "-c", "import time; time.sleep(60)"))


@pytest.fixture
def handlers(tmp_path):
    offered = []
    handlers = TrainHandlers(tmp_path / "runs", lambda name, folder: offered.append((name, folder)))
    handlers.offered = offered
    yield handlers
    running = handlers.jobs.running()
    if running is not None:
        handlers.jobs.stop(running.name)
        wait_for(handlers, running.name, "stopped")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"), {"low tone": 220, "high tone": 1800})


def wait_for(handlers, name, state, seconds=240):
    end = time.monotonic() + seconds
    while (job := handlers.jobs.read(handlers.jobs.folder / name)).state != state:
        assert job.state == "running", f"{job.state}: {job.reason} {job.log_tail()}"
        assert time.monotonic() < end, job.log_tail()
        time.sleep(0.2)


def scenes_folder(root, name="mine"):
    """Scenes as they are when they have been made, but for the audio."""
    for part in ("train", "val"):
        folder = root / "scenes" / name / part
        folder.mkdir(parents=True)
        line = {"qid": "q", "query": "a tone", "vid": f"{part}_1", "duration": 20, "relevant_windows": [[1, 3]]}
        (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    return root / "scenes" / name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "../x"}, "becomes a folder"),
        ({"clips": "/no/such/folder"}, "no folder"),
        ({"num_scenes": 0}, "from 1 to"),
        ({"num_validation": 10**6}, "from 1 to"),
        ({"shortest_seconds": 3.0}, "min_scene_seconds"),
        ({"shortest_seconds": 90.0, "longest_seconds": 50.0}, "over"),
        ({"longest_seconds": float("nan")}, "max_scene_seconds"),
        ({"seed": -1}, "seed"),
        ({"backgrounds": "/no/such/folder"}, "backgrounds"),
        ({"validation_clips": "/no/such/folder"}, "no folder"),
        ({"num_scenes": 20000, "longest_seconds": 86400.0}, "GB are free"),
    ],
)
def test_mistakes_in_an_order_for_scenes_are_told_before_anything_is_written(change, told, handlers, clips):
    with pytest.raises(QamDetrError, match=told) as caught:
        handlers.make_scenes(replace(SceneOrder("mine", str(clips)), **change))
    assert "\n" not in str(caught.value)
    assert not handlers.root.exists()


def test_one_sound_is_not_enough(handlers, tmp_path):
    with pytest.raises(QamDetrError, match="at least 2"):
        handlers.make_scenes(SceneOrder("mine", str(make_clips(tmp_path / "clips", {"hum": 100}))))


def test_the_plan_for_scenes_divides_the_clips_and_shares_no_seed(clips, tmp_path):
    target, steps = plan_scenes(SceneOrder("mine", str(clips), num_scenes=7, num_validation=3, seed=5), tmp_path)
    assert [step.arguments[3] for step in steps] == ["synthesize", "synthesize", "extract", "extract"]
    options = [dict(zip(step.arguments[4::2], step.arguments[5::2], strict=True)) for step in steps[:2]]
    assert [(one["--num-scenes"], one["--seed"]) for one in options] == [("7", "5"), ("3", "6")]
    tables = [(target / f"clips-{part}" / "clips.csv").read_text().splitlines()[1:] for part in ("train", "val")]
    assert [len(table) for table in tables] == [8, 2]
    assert not set(tables[0]) & set(tables[1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "a b"}, "becomes a folder"),
        ({"name": "scenes-x"}, "kept for sets of scenes"),
        ({"name": "taken"}, "taken"),
        ({"scenes": ""}, "No scenes"),
        ({"scenes": "/tmp"}, "holds no scenes"),
        ({"config": "../../secret"}, "no configuration"),
        ({"config": "_ladder"}, "no configuration"),
        ({"encoder": "lstm"}, "no component"),
        ({"components": ("magic",)}, "no component"),
        ({"epochs": 0}, "from 1 to"),
        ({"seed": -1}, "train.seed"),
        ({"init_from": "no-such-checkpoint"}, "No checkpoint"),
    ],
)
def test_mistakes_in_an_order_for_training_are_told_before_anything_starts(change, told, handlers):
    scenes_folder(handlers.root)
    (handlers.root / "taken").mkdir()
    with pytest.raises(QamDetrError, match=told) as caught:
        handlers.train(replace(TrainOrder("new", "mine"), **change))
    assert "\n" not in str(caught.value)
    assert handlers.jobs.all() == []


@pytest.mark.parametrize("spoil", [False, True], ids=["other", "damaged"])
def test_a_run_that_cannot_be_the_start_is_told_by_its_name(spoil, handlers):
    scenes_folder(handlers.root)
    best = write_run(handlers.root / "older", [row(1, 1.0)], checkpoint=True) / "best"
    save_config(Config(), best / "config.yaml")
    if spoil:
        (best / "config.yaml").write_text("model: {width: 3}")
    with pytest.raises(QamDetrError, match="older") as caught:
        handlers.train(TrainOrder("new", "mine", init_from=str(best), components=()))
    assert str(handlers.root) not in str(caught.value)


@pytest.mark.parametrize("config", [name for _, name in CONFIGS])
def test_every_offered_configuration_is_built_as_it_stands(config, tmp_path):
    encoder, components, streams, epochs = choices_of(config)
    order = TrainOrder("new", "mine", config, encoder, tuple(components), tuple(streams), epochs=epochs)
    assert build_config(order, scenes_folder(tmp_path), tmp_path).model == load_config(config).model


def test_switches_and_streams_reach_the_configuration(tmp_path):
    scenes = scenes_folder(tmp_path)
    order = TrainOrder("new", "mine", encoder="transformer", components=("quality",), streams=(), seed=7, epochs=2)
    target, steps = plan_training(order, tmp_path, tmp_path / ".jobs" / "new")
    config = load_config(tmp_path / ".jobs" / "new" / "config.yaml")
    assert (config.model.encoder, config.model.fusion, config.model.global_token) == ("transformer", "text_to_audio", True)
    assert (config.model.multiscale, config.model.quality) == (False, True)
    assert dict(config.model.audio_streams) == {"pocket": 256}
    assert (config.train.seed, config.train.epochs, config.train.output_dir) == (7, 2, str(tmp_path.resolve()))
    assert config.train.save_every_steps > 0
    assert config.data.feature_dir == str(scenes / "features")
    assert [step.arguments[3] for step in steps[:2]] == ["extract", "extract"]
    assert steps[-1].arguments[2:] == ("--config", str(tmp_path / ".jobs" / "new" / "config.yaml"), "--name", "new")
    assert target == tmp_path / "new"


def test_scenes_that_are_encoded_are_not_encoded_again(tmp_path):
    features = scenes_folder(tmp_path) / "features" / "pocket" / "audio"
    features.mkdir(parents=True)
    for vid in ("train_1", "val_1"):
        (features / f"{vid}.0123.safetensors").touch()
    _, steps = plan_training(TrainOrder("new", "mine"), tmp_path, tmp_path / ".jobs" / "new")
    assert [step.label for step in steps] == ["Training"]


def test_the_page_lists_runs_that_it_did_not_start(handlers):
    write_run(handlers.root / "done", [row(1, 10.0), row(2, 30.0), row(3, 20.0)], finished=True, checkpoint=True)
    write_run(handlers.root / "ladder" / "half", [row(1, 5.0)], epochs=4, checkpoint=True)
    view = handlers.view("done")
    items = {item["id"]: item for item in view["items"]}
    assert {name: item["state"] for name, item in items.items()} == {"done": "finished", "ladder/half": "stopped"}
    assert items["done"]["brief"] == "3 of 3 epochs, R1@0.7 30.0"
    loss, validation = view["detail"]["charts"]
    assert loss["series"][0]["points"] == [[1, 5.0], [2, 5.0], [3, 5.0]]
    assert validation["best"] == 2
    assert view["detail"]["actions"] == ["use"]
    assert handlers.view("ladder/half")["detail"]["actions"] == ["resume", "use"]
    json.dumps(view, allow_nan=False)


def test_a_run_of_an_earlier_version_that_took_all_its_epochs_is_finished(handlers):
    write_run(handlers.root / "old", [row(1, 5.0), row(2, 6.0)], epochs=2, checkpoint=True)
    assert handlers.view("old")["detail"]["state"] == "finished"


def test_a_run_that_another_process_trains_is_shown_as_running_and_cannot_be_stopped_here(handlers):
    folder = write_run(handlers.root / "elsewhere", [row(1, 5.0)])
    with FileLock(folder / ".lock"):
        detail = handlers.view("elsewhere")["detail"]
        assert (detail["state"], detail["actions"]) == ("running", [])
        with pytest.raises(QamDetrError, match="outside this page"):
            handlers.stop("elsewhere")
    assert handlers.view("elsewhere")["detail"]["state"] == "stopped"


def test_half_a_line_and_values_that_are_no_numbers_are_left_out(handlers):
    folder = write_run(handlers.root / "odd", [row(1, 5.0), row(2, 6.0, loss=float("inf"))])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "los')
    view = handlers.view("odd")
    assert view["detail"]["charts"][0]["series"][0]["points"] == [[1, 5.0]]
    json.dumps(view, allow_nan=False)


def test_a_checkpoint_is_handed_over_once_there_is_one(handlers):
    write_run(handlers.root / "young", [])
    write_run(handlers.root / "done", [row(1, 1.0)], finished=True, checkpoint=True)
    with pytest.raises(QamDetrError, match="no checkpoint yet"):
        handlers.use("young")
    assert handlers.use("done") == "run: done"
    assert handlers.offered == [("run: done", (handlers.root / "done" / "best").resolve())]


@pytest.mark.parametrize("name", ["nobody", "../../etc", ""])
def test_what_is_not_there_is_one_line(name, handlers):
    for action in (handlers.stop, handlers.resume, handlers.use):
        with pytest.raises(QamDetrError, match="There is no"):
            action(name)
    assert "There is no" in handlers.act({"action": "stop", "selected": name})["message"]


@pytest.mark.parametrize("request_", [None, [], "x", {}, {"action": 3, "selected": ["a"]}, {"action": "rm -rf", "selected": "done"}])
def test_whatever_is_sent_to_the_page_is_answered_with_a_view(request_, handlers):
    assert handlers.poll(request_)["items"] == []
    assert "no action" in handlers.act(request_)["message"]


def test_a_second_job_is_refused_before_it_writes_anything(handlers, clips):
    handlers.jobs.start("busy", "train", handlers.root / "busy", [SLEEPER])
    with pytest.raises(QamDetrError, match="“busy” is still running"):
        handlers.make_scenes(SceneOrder("mine", str(clips)))
    assert not (handlers.root / "scenes").exists()
    assert "Stopping" in handlers.act({"action": "stop", "selected": "busy"})["message"]
    wait_for(handlers, "busy", "stopped")


@pytest.mark.parametrize(("planned", "done", "shown"), [(14, 0, 7), (14, 6, 14), (300, 19, 37), (300, 150, 300), (3, 3, 3), (0, 0, 1)])
def test_a_young_curve_has_an_axis_that_fits(planned, done, shown, handlers):
    write_run(handlers.root / "run", [row(epoch, 1.0) for epoch in range(1, done + 1)], epochs=max(1, planned))
    assert handlers.view("run")["detail"]["charts"][0]["epochs"] == shown


def test_names_that_are_offered_are_free(tmp_path):
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
    assert free_name("run", [tmp_path]) == "run-3"


@pytest.mark.slow
def test_from_clips_to_a_checkpoint_with_a_stop_on_the_way(handlers, clips):
    order = SceneOrder("mine", str(clips), num_scenes=6, num_validation=3, shortest_seconds=12.0, longest_seconds=16.0)
    assert handlers.make_scenes(order) == "scenes/mine"
    wait_for(handlers, "scenes-mine", "finished")
    scenes = handlers.root / "scenes" / "mine"
    assert {entry.query for entry in read_manifest(scenes / "train" / "manifest.jsonl")} == {"low tone", "high tone"}

    # A Transformer: the scan would be compiled first.
    name = handlers.train(TrainOrder("first", "mine", encoder="transformer", epochs=400))
    end = time.monotonic() + 120
    while len(_rows(handlers)) < 2:
        assert time.monotonic() < end, handlers.view(name)["detail"]
        time.sleep(0.2)
    detail = handlers.view(name)["detail"]
    assert (detail["state"], detail["actions"]) == ("running", ["stop", "use"])
    assert detail["seconds_left"] > 0
    assert "of 400" in detail["stage"]
    handlers.stop(name)
    wait_for(handlers, "first", "stopped")
    before = _rows(handlers)

    assert "Going on" in handlers.resume(name)
    end = time.monotonic() + 120
    while len(_rows(handlers)) <= len(before):
        assert time.monotonic() < end, handlers.view(name)["detail"]
        time.sleep(0.2)
    handlers.stop(name)
    wait_for(handlers, "first", "stopped")
    after = _rows(handlers)
    assert [line["epoch"] for line in after] == list(range(1, len(after) + 1))
    assert after[: len(before) - 1] == before[:-1]

    run = read_run(handlers.root / "first")
    table = length_table(run)
    scores = dict(zip([column["name"] for column in table["columns"]], table["rows"][-1]["cells"], strict=True))
    assert scores["R1@0.7"] == pytest.approx(run.best["val"]["R1@0.7"], abs=0.02)
    assert scores["mAP"] == pytest.approx(run.best["val"]["mAP"], abs=0.02)


def _rows(handlers):
    run = read_run(handlers.root / "first")
    return [] if run is None else list(run.rows)
