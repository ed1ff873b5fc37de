from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from doubles import write_noise
from hub_models import AUDIO_DIMS, TEXT_DIMS

from qamdetr.config import Config, build
from qamdetr.inference.checkpoint import available_checkpoints, save_checkpoint
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Candidate, Recording
from qamdetr.ui import gpu
from qamdetr.ui.ablations import read_config
from qamdetr.verifiers import Verifier

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_borrowing_verifier_sends_no_features_and_asks_by_candidates(monkeypatch):
    class Ear(Verifier):
        name, identity, needs_audio = "ear", "ear-1", True

        def verify(self, recording, query, text, candidates):
            assert recording.streams == {}
            return [0.5] * len(candidates)

    monkeypatch.setattr(gpu, "_borrow", lambda seconds, function, arguments: function(*arguments))
    recording = Recording("a", "a.wav", 9.0, {"pocket": torch.zeros(9, 4)}, np.zeros((2, 9)))
    candidates = [Candidate(float(at), at + 1.0, 0.9, 0.9, 0.81) for at in range(4)]
    assert gpu.BorrowingVerifier(Ear()).verify(recording, "a bell", {}, candidates) == [0.5] * 4


@pytest.mark.parametrize("name", available_checkpoints())
def test_no_checkpoint_that_is_shipped_asks_for_a_gpu(name):
    assert not gpu.wants_gpu(read_config(name))


@pytest.fixture
def large_checkpoint(tmp_path, hub_folders):
    """A checkpoint on LAION-CLAP, as tiny as its encoder."""
    audio, text = ({"laion_clap": dims["laion_clap"]} for dims in (AUDIO_DIMS, TEXT_DIMS))
    small = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "encoder": "transformer", "encoder_layers": 1}
    data = {"combo": "laion_clap", "encoder_models": hub_folders}
    config = build(Config, {"model": {"audio_streams": audio, "text_streams": text, **small}, "data": data})
    save_checkpoint(tmp_path / "large", QamDetr(config.model), config)
    return tmp_path / "large"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="ZeroGPU forks, and so does its stand-in")
def test_only_large_encoders_borrow_and_the_work_survives_the_way_there_and_back(large_checkpoint, tmp_path):
    audio = write_noise(tmp_path / "noise.wav", 30)
    here = REPOSITORY / "tests" / "ui" / "lending"
    environment = {**os.environ, "SPACES_ZERO_GPU": "true", "PYTHONPATH": f"{here}:{REPOSITORY}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, here / "borrow.py", large_checkpoint, audio]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["registered"] == ["_work_on_loan"], "a Space on ZeroGPU wants a GPU function at start-up"
    assert told["loans of pocket"] == []
    assert told["devices"] == ["cuda"], "opened before the loan, so that no lent second goes into reading weights"
    assert told["loans of encode"] == told["loans of retrieve"] == [math.ceil(gpu.START_SECONDS + 0.5 * gpu.SECONDS_PER_MINUTE)]
    assert told["same as here"]
    assert told["moments"] > 0
    assert told["mistake"].startswith("AudioError: missing.wav")
    assert told["elsewhere"]
