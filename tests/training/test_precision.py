"""Mixed precision: float32 where nothing better is there, and losses in float32 always."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from qamdetr.config import Config, TrainConfig
from qamdetr.errors import ConfigError
from qamdetr.training import loop
from qamdetr.training.loop import choose_precision, in_float32, train
from qamdetr.types import DecoderOutput, ModelOutput

ToyConfig = Callable[..., Config]

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without GPU does")


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one precision per process; tests of another begin and end without any."""
    forget_accelerate()
    yield
    forget_accelerate()


def forget_accelerate() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@needs_cpu
def test_without_a_gpu_auto_is_float32() -> None:
    assert choose_precision(TrainConfig(mixed_precision="auto")) == "no"
    assert choose_precision(TrainConfig(mixed_precision="bf16")) == "bf16"


def test_outputs_come_back_to_float32_and_masks_stay() -> None:
    half = torch.randn(1, 2, 2).bfloat16()
    decoder = DecoderOutput(half, half.sigmoid(), None)
    output = ModelOutput(decoder, (decoder,), half[0], negative_mask=torch.ones(1, 2, dtype=torch.bool), gates={"audio/x": 0.5})
    found = in_float32(output)
    for layer in (found.decoder, *found.auxiliary):
        assert layer.logits.dtype == layer.spans_cxw.dtype == torch.float32
    assert found.saliency.dtype == torch.float32
    assert found.negative_mask is not None
    assert found.negative_mask.dtype == torch.bool
    assert (found.gates, found.decoder.quality_logits) == ({"audio/x": 0.5}, None)
    assert torch.equal(found.decoder.logits, half.float())


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("encoder", ["transformer", pytest.param("bimamba", marks=pytest.mark.slow)])
def test_bf16_trains_with_losses_in_float32(
    encoder: str, small_toy_config: ToyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    compute_losses = loop.compute_losses

    def look(output: ModelOutput, *arguments: object) -> dict[str, torch.Tensor]:
        losses = compute_losses(output, *arguments)  # type: ignore[arg-type]
        seen.extend([output.saliency.dtype, output.decoder.logits.dtype, *(value.dtype for value in losses.values())])
        return losses

    monkeypatch.setattr(loop, "compute_losses", look)
    run = train(small_toy_config(model={"encoder": encoder}, epochs=1, batch_size=16, mixed_precision="bf16"), tmp_path / "half")
    assert set(seen) == {torch.float32}
    (row,) = (json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines())
    assert all(math.isfinite(value) for value in row["loss"].values())

    forget_accelerate()
    whole = train(small_toy_config(model={"encoder": encoder}, epochs=1, batch_size=16, mixed_precision="no"), tmp_path / "whole")
    (expected,) = (json.loads(line) for line in (whole.directory / "metrics.jsonl").read_text().splitlines())
    assert row["loss"]["total"] != expected["loss"]["total"]
    assert row["loss"]["total"] == pytest.approx(expected["loss"]["total"], rel=0.05)


@needs_cpu
@pytest.mark.usefixtures("fresh_accelerate")
def test_fp16_needs_a_gpu(small_toy_config: ToyConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.mixed_precision is 'fp16', which this cpu device lacks"):
        train(small_toy_config(mixed_precision="fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
