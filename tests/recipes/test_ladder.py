"""The ladder's runner and its tables: nothing is run twice, interrupted runs go on, tables say what the results say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qamdetr.config import Config, load_config, save_config
from recipes import ladder, ladder_report
from recipes.ladder import CHOSEN, FULL, LADDER, PLANS, RESULTS_FILE, SWITCHES, Variant, run_plan
from recipes.ladder_report import METRICS, SETS, read_results


def test_every_variant_is_a_configuration_and_what_won_is_what_the_shipped_model_has() -> None:
    assert len({variant.name for variant in PLANS["all"]}) == len(PLANS["all"])
    assert all(load_config(variant.config, variant.overrides) != load_config(FULL.config) for variant in SWITCHES)
    chosen, shipped = load_config(CHOSEN.config, CHOSEN.overrides), load_config("pocket")
    assert (chosen.loss, chosen.model.encoder_layers, chosen.model.decoder) == (shipped.loss, shipped.model.encoder_layers, "dense")
    assert chosen.train.ema_decay == shipped.train.ema_decay > 0


def test_a_plan_goes_on_where_it_stopped(tmp_path: Path, small_toy_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "PROBE_STEPS", 2)
    save_config(small_toy_config(epochs=1), tmp_path / "toy.yaml")
    readings = {"decoder": (), "probe": ()} | dict.fromkeys(("pooled", "segments"), ("inference.segment_threshold=0.3",))
    variant = Variant("toy", "toy", str(tmp_path / "toy.yaml"), readings=readings)
    output, test_manifest = tmp_path / "runs", Path(small_toy_config().data.val_manifest)
    run_plan([variant], [0, 1], output, test_manifest)
    results = read_results(output)
    assert len({str(results["toy", reading][0]) for reading in readings}) == len(readings), "each reads something else"
    best = json.loads((output / "toy-s0" / "metrics.jsonl").read_text().splitlines()[-1])["val"]
    assert results["toy", "decoder"][0]["val"] == results["toy", "decoder"][0]["test"] == best, "the toy set serves as both"

    before = (output / "toy-s0" / "best" / "model.safetensors").stat().st_mtime_ns
    (output / "toy-s1" / RESULTS_FILE).unlink()
    shutil.rmtree(output / "toy-s1" / "last")
    run_plan([variant], [0, 1], output, test_manifest)
    after = (output / "toy-s0" / "best" / "model.safetensors").stat().st_mtime_ns
    assert (after, read_results(output)["toy", "decoder"].keys()) == (before, {0, 1})


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """All variants, three seeds: full model 10 points over the baseline, last switch 4 over that, segments 2 or 3 over decoders."""
    levels = {variant.name: 50.0 for variant in PLANS["all"]} | {variant.name: 40.0 + 2 * place for place, variant in enumerate(LADDER)}
    levels[SWITCHES[-1].name] = 54.0
    for variant, seed in ((variant, seed) for variant in PLANS["all"] for seed in range(3)):
        scores = dict.fromkeys(METRICS, levels[variant.name] + seed)
        more = dict.fromkeys(METRICS, levels[variant.name] + seed + 2 + seed % 2)
        readings = {reading: dict.fromkeys(SETS, more if reading == "segments" else scores) for reading in variant.readings}
        folder = tmp_path / "runs" / f"{variant.name}-s{seed}"
        folder.mkdir(parents=True)
        (folder / RESULTS_FILE).write_text(json.dumps({"variant": variant.name, "seed": seed, "readings": readings}))
    return tmp_path / "runs"


def test_the_page_gets_its_tables_and_figure(made_up: Path, tmp_path: Path) -> None:
    page = tmp_path / "ladder.md"
    tables = "Between.\n\n".join(f"<!-- {marker} -->\nold\n<!-- end -->\n\n" for marker in ("ladder", "probe", "switches"))
    page.write_text(f"Intro.\n\n{tables}End.\n")
    assert ladder_report.main([str(made_up), "--docs", str(tmp_path)]) == 0
    text = page.read_text()
    assert (ladder_report.main([str(made_up), "--docs", str(tmp_path)]), page.read_text()) == (0, text)
    assert text.startswith("Intro.") and text.endswith("End.\n") and "Between." in text and "old" not in text
    assert "| + BiMamba encoder | 43.00 ± 1.00 |" in text and "| + BiMamba encoder | +2.00 [-0.3, +4.3] | undecided, p 0.352 |" in text
    assert "| full model against the baseline | +10.00 [+7.7, +12.3] | wins, p 0.002 |" in text
    assert text.count("+4.00 [+1.7, +6.3] | wins, p 0.040") == len(SWITCHES[-1].readings) * len(SETS)
    assert (
        "| + BiMamba encoder | 43.00 ± 1.00 | 43.00 ± 1.00 | 43.00 ± 1.00 | 43.00 ± 1.00 | +2.00 [-0.3, +4.3]: undecided, p 0.070 |" in text
    )
    assert "posterior per clip, segments alone | 53.33 ± 1.15 | +2.33 [+0.9, +3.8] | undecided, p 0.079 |" in text, "of the same runs"
    assert (tmp_path / "figures" / "ladder.png").read_bytes().startswith(b"\x89PNG")
