"""Jobs are processes of their own: they outlive who started them, and only their own process is ever ended."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from doubles import SLEEPER, end_all, python, until

from qamdetr.errors import ConfigError
from qamdetr.ui.train.jobs import JOB_FILE, Jobs, check_name


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "jobs")
    yield jobs
    end_all(jobs)


def test_steps_run_in_order_what_is_done_is_skipped_and_a_failure_in_the_programs_own_line_ends_the_job(jobs, tmp_path):
    done, trace = tmp_path / "done", tmp_path / "trace"
    done.touch()
    write = f"open({str(trace)!r}, 'a').write('%s')"
    fail = "import sys; print('WARNING: x'); print('qamdetr: error: 3 clips are silent; mend them.', file=sys.stderr); sys.exit(2)"
    steps = [python(write % "a"), python(write % "b", done_when=str(done)), python(write % "c"), python(fail), python(write % "d")]
    jobs.start("job", "train", tmp_path, steps)
    job = until(jobs, "job", "failed")
    assert (trace.read_text(), job.step, job.reason) == ("ac", 3, "3 clips are silent; mend them.")
    assert job.ended >= job.started


def test_a_job_outlives_its_program_no_second_starts_beside_it_and_stop_ends_it(jobs, tmp_path):
    code = (
        "import sys; from pathlib import Path; from qamdetr.ui.train.jobs import Jobs, Step\n"
        f"steps = [Step('s', {SLEEPER.arguments!r}), Step('n', (sys.executable, '-c', 'print(\"never\")'))]\n"
        f"Jobs(Path({str(jobs.folder)!r})).start('first', 'train', Path('.'), steps)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    until(jobs, "first", said="asleep")
    with pytest.raises(ConfigError, match="“first” is still running"):
        jobs.start("second", "train", tmp_path, [SLEEPER])
    assert [job.name for job in jobs.all()] == ["first"]
    jobs.stop("first")
    job = until(jobs, "first", "stopped")
    assert (job.reason, "never" in job.log_tail()) == ("", False)
    with pytest.raises(ConfigError, match="does not run any more"):
        jobs.stop("first")


def test_a_killed_job_can_be_started_again_and_its_log_goes_on(jobs, tmp_path):
    jobs.start("job", "train", tmp_path, [python("print('once', flush=True); import os, signal; os.kill(os.getppid(), signal.SIGKILL)")])
    assert "ended without a word" in until(jobs, "job", "stopped").reason
    jobs.start("job", "train", tmp_path, [python("print('twice')")])
    assert until(jobs, "job", "finished").log_tail() == ["once", "twice"]


def test_a_process_that_has_got_the_number_meanwhile_is_left_alone(jobs, tmp_path):
    folder = jobs.folder / "job"
    folder.mkdir(parents=True)
    with subprocess.Popen(SLEEPER.arguments) as stranger:
        try:
            note = {"kind": "train", "target": str(tmp_path), "steps": [], "pid": stranger.pid, "process": 1.0}
            for text in (json.dumps(note), "{"):
                (folder / JOB_FILE).write_text(text)
                assert [job.state for job in jobs.all()] == ["stopped"]
                with pytest.raises(ConfigError, match="does not run any more"):
                    jobs.stop("job")
            assert stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "-rf", ".hidden", "x" * 81, "a b", "a\n", "é"])
def test_names_that_are_no_plain_folder_are_refused(name, jobs, tmp_path):
    for refuse in (check_name, jobs.stop, lambda named: jobs.start(named, "train", tmp_path, [SLEEPER])):
        with pytest.raises(ConfigError, match="becomes a folder"):
            refuse(name)
