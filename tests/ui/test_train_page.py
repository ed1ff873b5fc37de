"""What somebody does on the training page, as far as it can be told beforehand; for real it trains in `tests/e2e/test_training.py`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import gradio as gr
import psutil
import pytest
from doubles import end_all, make_clips, row, write_run

from qamdetr.config import load_config
from qamdetr.errors import QamDetrError
from qamdetr.synthesis.sources import read_library
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.train import runs, tab
from qamdetr.ui.train.clips import SceneOrder, divide, plan_scenes, read_clips, write_clips
from qamdetr.ui.train.evaluation import ablation_table
from qamdetr.ui.train.plans import CONFIGS, TrainOrder, build_config, choices_of, plan_training
from qamdetr.ui.train.runs import find_runs
from qamdetr.ui.train.tab import TrainHandlers


@pytest.fixture
def handlers(tmp_path):
    handlers = TrainHandlers(tmp_path / "runs", lambda name, folder: None)
    yield handlers
    end_all(handlers.jobs)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_clips(tmp_path_factory.mktemp("clips"), {"low tone": 220, "high tone": 1800})


def scenes_folder(root, name="mine"):
    """Scenes as they are when they have been made, but for the audio."""
    for part in ("train", "val"):
        folder = root / "scenes" / name / part
        folder.mkdir(parents=True)
        line = {"qid": "q", "query": "a tone", "vid": f"{part}_1", "duration": 20, "relevant_windows": [[1, 3]]}
        (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    return root / "scenes" / name


SCENE_MISTAKES = [
    ({"name": "../x"}, "becomes a folder"), ({"clips": "/no/such/folder"}, "no folder"), ({"clips": ""}, "no folder"),
    ({"num_scenes": 0}, "from 1 to"), ({"seed": -1}, "seed"), ({"longest_seconds": float("nan")}, "max_scene_seconds"),
    ({"shortest_seconds": 90.0, "longest_seconds": 50.0}, "over"), ({"backgrounds": "/no/such/folder"}, "backgrounds"),
    ({"validation_clips": "/no/such/folder"}, "no folder"), ({"num_scenes": 20000, "longest_seconds": 86400.0}, "GB are free"),
]  # fmt: skip
TRAIN_MISTAKES = [
    ({"name": "a b"}, "becomes a folder"), ({"name": "scenes-x"}, "kept for sets of scenes"), ({"name": "taken"}, "taken"),
    ({"scenes": "/tmp"}, "holds no scenes"), ({"config": "../../secret"}, "no configuration"), ({"encoder": "lstm"}, "no component"),
    ({"components": ("magic",)}, "no component"), ({"epochs": 0}, "from 1 to"), ({"init_from": "no-such-checkpoint"}, "No checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "change", "told"), [("scenes", *case) for case in SCENE_MISTAKES] + [("train", *case) for case in TRAIN_MISTAKES]
)
def test_a_mistake_in_an_order_is_one_line_before_anything_is_written_or_starts(order, change, told, handlers, clips):
    if order == "train":
        scenes_folder(handlers.root)
        (handlers.root / "taken").mkdir()
    with pytest.raises(QamDetrError, match=told) as caught:
        if order == "scenes":
            handlers.make_scenes(replace(SceneOrder("mine", str(clips)), **change))
        else:
            handlers.train(replace(TrainOrder("new", "mine"), **change))
    assert "\n" not in str(caught.value)
    assert handlers.root.exists() == (order == "train")
    assert handlers.jobs.all() == []


@pytest.mark.parametrize("config", [name for _, name in CONFIGS])
def test_every_offered_configuration_is_built_as_it_stands(config, tmp_path):
    encoder, components, streams, epochs = choices_of(config)
    order = TrainOrder("new", "mine", config, encoder, tuple(components), tuple(streams), epochs=epochs)
    assert build_config(order, scenes_folder(tmp_path), tmp_path).model == load_config(config).model


def test_switches_and_streams_reach_the_configuration_and_encoded_scenes_are_not_encoded_again(tmp_path):
    scenes, made = scenes_folder(tmp_path), tmp_path / ".jobs" / "new"
    order = TrainOrder("new", "mine", encoder="transformer", components=("quality",), streams=(), seed=7, epochs=2)
    target, steps = plan_training(order, tmp_path, made)
    config = load_config(made / "config.yaml")
    model, train = config.model, config.train
    assert (model.encoder, model.fusion, model.multiscale, model.quality) == ("transformer", "text_to_audio", False, True)
    assert (train.seed, train.epochs, train.output_dir, train.save_every_steps > 0) == (7, 2, str(tmp_path.resolve()), True)
    assert (config.data.feature_dir, target) == (str(scenes / "features"), tmp_path / "new")
    assert [step.arguments[3] for step in steps[:2]] == ["extract", "extract"]
    features = scenes / "features" / "pocket-0.5s-0123456789a"
    features.mkdir(parents=True)
    (features / "encoder.json").write_text(json.dumps({"stream": "pocket", "fingerprint": "0.5s-0123456789abcdef", "clip_seconds": 0.5}))
    for vid in ("train_1", "val_1"):
        (features / f"{vid}.0123.npz").touch()
    assert [step.label for step in plan_training(TrainOrder("new", "mine"), tmp_path, made)[1]] == ["Training"]


def test_a_run_from_elsewhere_says_itself_how_far_it_is_and_cannot_be_stopped_here(handlers, monkeypatch):
    folder = write_run(handlers.root / "elsewhere", [row(1, 5.0)])
    now, begun = time.time(), psutil.Process().create_time()
    told = {"stage": "training", "epoch": 2, "epochs": 3, "batch": 5, "batches": 10, "step": 15, "losses": {"total": 2.5}}
    told |= {"seconds_per_batch": 0.2, "time": now}
    (folder / "progress.json").write_text(json.dumps(told))
    detail = handlers.view("elsewhere")["detail"]
    assert (detail["state"], detail["actions"], detail["share"], detail["seconds_left"]) == ("running", [], 0.5, 3.0)
    with pytest.raises(QamDetrError, match="outside this page"):
        handlers.stop("elsewhere")
    monkeypatch.setattr(runs, "ALIVE_SECONDS", 0.0)
    for changed, state in (
        ({"time": now - 3600}, "stopped"), ({"time": None}, "stopped"), ({"time": begun - 3600, "pid": os.getpid()}, "stopped"),
        ({"time": max(begun + 1, now - 3600), "pid": os.getpid()}, "running"),  # a validation that takes an hour
    ):  # fmt: skip
        (folder / "progress.json").write_text(json.dumps({**told, **changed}))
        assert handlers.view("elsewhere")["detail"]["state"] == state


def test_whatever_is_sent_to_the_page_is_answered_in_one_line(handlers):
    for name in ("nobody", "../../etc", ""):
        for action in (handlers.stop, handlers.resume, handlers.use):
            with pytest.raises(QamDetrError, match="There is no"):
                action(name)
        assert "There is no" in handlers.act({"action": "stop", "selected": name})["message"]
    for sent in (None, [], "x", {}, {"action": 3, "selected": ["a"]}, {"action": "rm -rf", "selected": "done"}):
        assert handlers.poll(sent)["items"] == []
        assert "no action" in handlers.act(sent)["message"]


def test_a_table_of_clips_counts_and_its_captions_and_licences_come_along(tmp_path):
    make_clips(tmp_path, {"low": 200}, per_sound=2)
    (tmp_path / "clips.csv").write_text("File_Name,group,caption_1\nlow/0.wav,tone/low,a low tone\nlow/1.wav,tone/low,a low tone\n")
    (tmp_path / "groups.csv").write_text("group,caption\ntone,any tone\ntone/low,a deep tone\n")
    (tmp_path / "attribution.csv").write_text("file,licence\nlow/0.wav,CC0\n")
    clips = read_clips(str(tmp_path))
    write_clips(clips.groups["tone/low"], clips.folder, tmp_path / "out")
    library = read_library(tmp_path / "out", None)
    assert (library.captions["tone"], library.captions["tone/low"]) == (("any tone",), ("a deep tone", "a low tone"))
    assert [clip.source.get("license") for clip in library.clips] == ["CC0", None]


def test_each_sound_keeps_one_clip_in_five_back_and_no_seed_is_used_twice(tmp_path):
    with pytest.raises(QamDetrError, match="0 clips"):
        read_clips(str(tmp_path))
    make_clips(tmp_path, {"A low_tone": 200, "high": 900}, per_sound=10)
    make_clips(tmp_path, {"only": 500}, per_sound=1)
    clips = read_clips(f" {tmp_path} ")
    assert (clips.has_table, sorted(clips.groups)) == (False, ["a low tone", "high", "only"])
    learnt, kept = divide(clips)
    assert {row["file_name"] for row in [*learnt, *kept]} == {row["file_name"] for row in clips.rows}
    assert {row["group"] for row in learnt if row in kept} == {"only"}
    assert [sum(row["group"] == "high" for row in part) for part in (learnt, kept)] == [8, 2]
    _, steps = plan_scenes(SceneOrder("mine", str(tmp_path), num_scenes=7, num_validation=3, seed=5), tmp_path / "runs")
    options = [dict(zip(step.arguments[4::2], step.arguments[5::2], strict=True)) for step in steps[:2]]
    assert [(one["--num-scenes"], one["--seed"]) for one in options] == [("7", "5"), ("3", "6")]


def test_runs_stand_side_by_side_and_those_that_differ_in_the_seed_alone_are_summed_up(tmp_path):
    for seed, score in ((0, 40.0), (1, 44.0)):
        write_run(tmp_path / f"run-s{seed}", [row(1, score)], finished=True, seed=seed)
    plain = write_run(tmp_path / "plain", [row(1, 20.0)], finished=True, fusion="text_to_audio", multiscale=False, quality=False)
    table = ablation_table(find_runs(tmp_path), tmp_path)
    names = [column["name"] for column in table["columns"]]
    (summary,) = (dict(zip(names, line["cells"], strict=True)) for line in table["rows"] if line["summary"])
    assert (summary["Run"], summary["R1@0.7"]) == ("2 seeds", "42.00 ± 2.83")
    assert "cannot be compared" not in table["note"]
    (plain / "run.json").write_text(json.dumps({"seed": 0, "val_manifest": "bbbb", "finished": {"epoch": 1}}))
    assert "different scenes" in ablation_table(find_runs(tmp_path), tmp_path)["note"]


def test_where_training_is_off_the_page_says_how_to_switch_it_on(tmp_path):
    with gr.Blocks() as blocks:
        built = tab.build_train_tab(AppSettings(training=False), print, tmp_path)
    assert (built.used, dict(blocks.fns)) == (None, {})
    assert any("QAMDETR_TRAINING=1" in str(block.value) for block in blocks.blocks.values() if isinstance(block, gr.Markdown))
