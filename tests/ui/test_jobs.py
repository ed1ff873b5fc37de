"""Jobs are processes of their own: they outlive who started them, and only their own process is ever ended."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from qamdetr.errors import ConfigError
from qamdetr.ui.train.jobs import JOB_FILE, STOP_SECONDS, Jobs, Step, check_name

SLEEPER = Step("sleeping", (sys.executable, "-c", "import time; print('asleep', flush=True); time.sleep(60)"))


def python(code, **more):
    return Step("running", (sys.executable, "-c", code), **more)


def until(jobs, name, state, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        job = jobs.read(jobs.folder / name)
        if job.state == state:
            return job
        time.sleep(0.05)
    raise AssertionError(f"{name} is {job.state} ({job.reason}), not {state}: {job.log_tail()}")


def until_logged(jobs, name, text):
    end = time.monotonic() + 20
    while not any(text in line for line in jobs.read(jobs.folder / name).log_tail()):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "jobs")
    yield jobs
    for job in jobs.all():
        if job.state == "running":
            jobs.stop(job.name)
            until(jobs, job.name, "stopped")


def test_steps_run_in_order_and_what_is_done_is_skipped(jobs, tmp_path):
    done, trace = tmp_path / "done", tmp_path / "trace"
    done.touch()
    write = f"open({str(trace)!r}, 'a').write('%s')"
    jobs.start("job", "train", tmp_path, [python(write % "a"), python(write % "b", done_when=str(done)), python(write % "c")])
    job = until(jobs, "job", "finished")
    assert trace.read_text() == "ac"
    assert job.step == 2
    assert job.ended >= job.started


def test_a_failure_is_the_programs_own_line_and_ends_the_job(jobs, tmp_path):
    fail = "import sys; print('WARNING: x'); print('qamdetr: error: 3 clips are silent; mend them.', file=sys.stderr); sys.exit(2)"
    jobs.start("job", "scenes", tmp_path, [python(fail), python(f"open({str(tmp_path / 'never')!r}, 'w')")])
    assert until(jobs, "job", "failed").reason == "3 clips are silent; mend them."
    assert not (tmp_path / "never").exists()


def test_one_job_at_a_time_and_stop_ends_it(jobs, tmp_path):
    jobs.start("first", "train", tmp_path, [SLEEPER, python("print('never')")])
    until_logged(jobs, "first", "asleep")
    with pytest.raises(ConfigError, match="“first” is still running"):
        jobs.start("second", "train", tmp_path, [SLEEPER])
    assert not (jobs.folder / "second" / JOB_FILE).exists()
    jobs.stop("first")
    assert until(jobs, "first", "stopped").reason == ""
    assert "never" not in jobs.read(jobs.folder / "first").log_tail()
    with pytest.raises(ConfigError, match="does not run any more"):
        jobs.stop("first")


def test_a_job_outlives_the_program_that_started_it(jobs, tmp_path):
    code = (
        "import sys; from pathlib import Path; from qamdetr.ui.train.jobs import Jobs, Step\n"
        f"Jobs(Path({str(jobs.folder)!r})).start('job', 'train', Path('.'), [Step('s', {SLEEPER.arguments!r})])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    until_logged(jobs, "job", "asleep")
    assert [job.name for job in Jobs(jobs.folder).all()] == ["job"]
    Jobs(jobs.folder).stop("job")
    until(jobs, "job", "stopped")


def test_a_killed_job_can_be_started_again_and_its_log_goes_on(jobs, tmp_path):
    jobs.start("job", "train", tmp_path, [python("print('once', flush=True); import os, signal; os.kill(os.getppid(), signal.SIGKILL)")])
    assert "ended without a word" in until(jobs, "job", "stopped").reason
    jobs.start("job", "train", tmp_path, [python("print('twice')")])
    assert until(jobs, "job", "finished").log_tail() == ["once", "twice"]


def test_a_process_that_has_got_the_number_meanwhile_is_left_alone(jobs, tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = jobs.folder / "job"
        folder.mkdir(parents=True)
        note = {"kind": "train", "target": str(tmp_path), "steps": [], "pid": stranger.pid, "process": 1.0}
        (folder / JOB_FILE).write_text(json.dumps(note))
        assert jobs.read(folder).state == "stopped"
        with pytest.raises(ConfigError, match="does not run any more"):
            jobs.stop("job")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.slow
def test_a_step_that_does_not_listen_is_killed(jobs, tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    jobs.start("job", "train", tmp_path, [python(deaf)])
    until_logged(jobs, "job", "deaf")
    jobs.stop("job")
    assert jobs.read(jobs.folder / "job").state == "running"
    until(jobs, "job", "stopped", seconds=STOP_SECONDS + 15)


def test_progress_by_files_counts_from_where_the_step_began(jobs, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for number in range(4):
        (made / f"{number}.flac").touch()
    wait = f"import pathlib, time; pathlib.Path({str(made / '4.flac')!r}).touch(); print('made', flush=True); time.sleep(60)"
    jobs.start("job", "scenes", tmp_path, [python(wait, counted=str(made), total=6)])
    until_logged(jobs, "job", "made")
    (made / ".5.partial.flac").touch()
    assert jobs.read(jobs.folder / "job").share() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "-rf", ".hidden", "x" * 81, "a b", "a\n", "é"])
def test_names_that_are_no_plain_folder_are_refused(name, jobs, tmp_path):
    with pytest.raises(ConfigError, match="becomes a folder"):
        check_name(name)
    with pytest.raises(ConfigError):
        jobs.start(name, "train", tmp_path, [SLEEPER])
    with pytest.raises(ConfigError):
        jobs.stop(name)


def test_a_damaged_folder_is_a_stopped_job(jobs, tmp_path):
    (jobs.folder / "job").mkdir(parents=True)
    (jobs.folder / "job" / JOB_FILE).write_text("{")
    assert [job.state for job in jobs.all()] == ["stopped"]
