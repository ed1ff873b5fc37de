"""The teacher of the pocket audio encoder: YAMNet, which says what it hears of AudioSet's 521 classes (training only, never shipped).

Source: YAMNet (Google, 2020, Apache-2.0), https://github.com/tensorflow/models/tree/master/research/audioset/yamnet; run by
`ai-edge-litert`, in 8-bit integers. It is given the patches that the student sees, `qamdetr.features.pocket.patches`.
"""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qamdetr.errors import QamDetrError

LOGIT_STEP, LOGIT_ZERO = 0.308, 100  # of the 8-bit logits
EMBEDDING_STEP, NOTHING = 0.0233, -128

_LOGITS, _EMBEDDING = 91, 90  # tensors of `yamnet_spectra_in.tflite`
_LAYERS = range(63, 90)  # what each convolution gives


class Heard(NamedTuple):
    """What the teacher makes of one patch, all int8."""

    logits: NDArray[np.int8]  # (521,), in steps of `LOGIT_STEP` from `LOGIT_ZERO`
    embedding: NDArray[np.int8]  # (1024,), -128 is nothing


def class_names(folder: Path) -> list[str]:
    """Return AudioSet's names of the 521 classes, in the order of the logits."""
    with (folder / "yamnet_class_map.csv").open(encoding="utf-8") as file:
        return [row["display_name"] for row in csv.DictReader(file)]


class Teacher:
    """Runs the network on one thread."""

    def __init__(self, folder: Path) -> None:
        """Open `yamnet_spectra_in.tflite`; raises `QamDetrError` where the package that runs it is missing."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise QamDetrError("The teacher cannot run: pip install ai-edge-litert (needed for training only).") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the kept tensors cost speed
            self._network = Interpreter(str(folder / "yamnet_spectra_in.tflite"), num_threads=1, experimental_preserve_all_tensors=True)
        self._network.allocate_tensors()
        self._input = self._network.get_input_details()[0]["index"]
        self._steps = {each["index"]: each["quantization"][0] for each in self._network.get_tensor_details()}

    def __call__(self, patch: NDArray[np.float32]) -> Heard:
        """Listen to a patch `(96, 64)`."""
        self._network.set_tensor(self._input, np.ascontiguousarray(patch)[None])
        self._network.invoke()
        read = self._network.get_tensor
        return Heard(read(_LOGITS)[0].copy(), read(_EMBEDDING)[0, 0, 0].copy())

    def layers(self, patch: NDArray[np.float32]) -> list[NDArray[np.int8]]:
        """Listen to a patch, and return the maps `(channels, time, mels)` of all convolutions, see `dequantised`."""
        self(patch)
        return [self._network.get_tensor(index)[0].transpose(2, 0, 1).copy() for index in _LAYERS]

    def dequantised(self, layer: int, maps: NDArray[np.int8]) -> Tensor:
        """Return maps of a layer as numbers from 0 to 6."""
        numbers: Tensor = (torch.from_numpy(maps).float() - NOTHING) * self._steps[_LAYERS[layer]]
        return numbers
