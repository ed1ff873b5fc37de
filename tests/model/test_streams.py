"""Stream gates follow Eq. 1 of the report."""

from __future__ import annotations

import pytest
import torch

from qamdetr.errors import ConfigError
from qamdetr.model.streams import GatedStreams


@pytest.fixture
def streams() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"main": torch.randn(2, 5, 6), "loud": torch.randn(2, 5, 3), "soft": torch.randn(2, 5, 4)}


@pytest.fixture
def gated() -> GatedStreams:
    module = GatedStreams("audio", {"main": 6, "loud": 3, "soft": 4}, 8, 0.5).eval()
    with torch.no_grad():
        module.gate_logits["loud"].fill_(2.0)
        module.gate_logits["soft"].fill_(-1.0)
    return module


def test_sum_is_main_plus_gated_auxiliaries(streams, gated):
    parts = {name: gated.projections[name](value) for name, value in streams.items()}
    wanted = parts["main"] + torch.sigmoid(torch.tensor(2.0)) * parts["loud"] + torch.sigmoid(torch.tensor(-1.0)) * parts["soft"]
    torch.testing.assert_close(gated(streams), wanted)


def test_gates_are_scalars_in_zero_one_and_named(gated):
    gates = gated.gates()
    assert gates == pytest.approx({"audio/loud": 0.880797, "audio/soft": 0.268941}, abs=1e-5)
    assert sum(parameter.numel() for parameter in gated.gate_logits.parameters()) == 2
    assert GatedStreams("audio", {"main": 6, "other": 3}, 8, 0.5).gates() == {"audio/other": 0.5}


def test_bypassed_stream_is_a_closed_gate(streams, gated):
    bypassed = gated(streams, bypass={"audio/loud"})
    with torch.no_grad():
        gated.gate_logits["loud"].fill_(-100.0)
    torch.testing.assert_close(bypassed, gated(streams))


def test_missing_and_wrong_streams_are_named(streams, gated):
    with pytest.raises(ConfigError, match="'soft' but got main, loud"):
        gated({"main": streams["main"], "loud": streams["loud"]})
    with pytest.raises(ConfigError, match="'loud' has 4 columns but the model takes 3"):
        gated({**streams, "loud": streams["soft"]})
