"""Run by `test_gpu.py` in a process of its own, where `spaces` is the stand-in beside this file: `borrow.py CHECKPOINT AUDIO`."""

from __future__ import annotations

import json
import os
import sys

import spaces

from qamdetr.audio import Sound
from qamdetr.errors import QamDetrError
from qamdetr.inference import retriever as opening
from qamdetr.ui import gpu

checkpoint, audio = sys.argv[1:]
devices = []


def open_here(config, name, *, device=None, models=None):
    """The GPU of this machine is its CPU."""
    devices.append(device)
    return opening.open_encoder(config, name, device="cpu", models=models)


gpu.open_encoder = open_here
told = {"registered": list(spaces.REGISTERED)}

pocket = gpu.open_retriever("qam-detr-pocket")
pocket.retrieve(pocket.encode(audio), "a bell rings")
told["loans of pocket"] = list(spaces.LOANS)

large = gpu.open_retriever(checkpoint)
told["devices"] = devices
recording = large.encode(audio)
told["loans of encode"] = list(spaces.LOANS)
told["same as here"] = all(
    bool((features == recording.streams[name]).all()) for name, features in large.encoder.encode(Sound(audio)).streams.items()
)
told["moments"] = len(large.retrieve(recording, "a bell rings").moments)
told["loans of retrieve"] = list(spaces.LOANS)
try:
    large.encode("missing.wav")
except QamDetrError as error:
    told["mistake"] = f"{type(error).__name__}: {error}"

told["elsewhere"] = gpu.run_on_gpu(1, os.getpid) != os.getpid()
print(json.dumps(told))  # noqa: T201 - the test reads it
