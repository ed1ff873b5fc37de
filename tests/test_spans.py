"""Span arithmetic: properties, hand-made cases, and the official code's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qamdetr import spans
from qamdetr.audio import num_clips
from qamdetr.errors import DataError

share = st.floats(0.0, 1.0, width=32)
span_lists = st.lists(st.tuples(share, share).map(sorted), min_size=1, max_size=8).map(lambda rows: torch.tensor(rows, dtype=torch.float32))


@given(span_lists, span_lists)
def test_iou_and_giou_are_symmetric_and_in_range_and_spans_turn_back(a, b):
    overlap, generalised = spans.pairwise_iou(a, b), spans.giou(a[:, None], b)
    assert overlap.shape == (len(a), len(b))
    assert bool(((overlap >= 0) & (overlap <= 1 + 1e-6)).all())
    assert bool(((generalised >= -1 - 1e-6) & (generalised <= overlap + 1e-6)).all())
    torch.testing.assert_close(overlap, spans.pairwise_iou(b, a).T)
    torch.testing.assert_close(spans.span_cxw_to_xx(spans.span_xx_to_cxw(a)), a, atol=1e-6, rtol=0)


@given(st.floats(1.0, 600.0), st.lists(st.tuples(share, share), min_size=1, max_size=6), st.sampled_from([1.0, 0.5]))
def test_windows_survive_the_way_to_spans_and_back(duration_seconds, shares, clip_seconds):
    starts = [start * (duration_seconds - 0.5) for start, _ in shares]
    windows = [
        (start, min(start + 0.2 + length * duration_seconds, duration_seconds)) for start, (_, length) in zip(starts, shares, strict=True)
    ]
    length_seconds = num_clips(duration_seconds, clip_seconds) * clip_seconds
    assert 0 <= length_seconds - duration_seconds + 1e-6 < clip_seconds + 1e-6
    as_spans = spans.windows_to_spans_cxw(windows, length_seconds)
    assert bool(((as_spans >= 0) & (as_spans <= 1)).all())
    back = spans.spans_cxw_to_windows(as_spans, length_seconds, duration_seconds)
    torch.testing.assert_close(back, torch.tensor(windows, dtype=torch.float32), atol=2e-4, rtol=0)


@given(st.lists(st.tuples(share, share), min_size=1, max_size=8), st.floats(0.05, 600.0))
def test_predicted_windows_lie_inside_the_recording_and_are_never_empty(rows, duration_seconds):
    windows = spans.spans_cxw_to_windows(torch.tensor(rows), int(np.ceil(duration_seconds)), duration_seconds)
    start, end = windows.double().unbind(-1)
    assert float(start.min()) >= 0
    assert float(end.max()) <= np.float32(duration_seconds)
    assert float((end - start).min()) >= min(spans.MIN_WINDOW_SECONDS, duration_seconds) * 0.999 - 1e-4


def test_windows_and_spans_by_hand():
    grown = spans.spans_cxw_to_windows(torch.tensor([[0.5, 0.0]]), 100, 100.0)  # too narrow: it grows around its centre
    torch.testing.assert_close(grown, torch.tensor([[49.95, 50.05]]))
    # 59.5 s are 60 clips: second 30 is the middle of the span axis although it is not the middle of the recording.
    span = spans.windows_to_spans_cxw([(29.0, 31.0)], 60)
    assert span[0, 0].item() == pytest.approx(0.5)
    assert spans.spans_cxw_to_windows(span, 60, 59.5)[0].tolist() == pytest.approx([29.0, 31.0], abs=1e-4)
    clamped = spans.windows_to_spans_cxw([(52.0, 4800.0)], 60)
    torch.testing.assert_close(spans.span_cxw_to_xx(clamped), torch.tensor([[52 / 60, 1.0]]))
    assert spans.windows_to_spans_cxw([], 60).shape == (0, 2)
    for window in ((5.0, 5.0), (8.0, 3.0), (61.0, 70.0)):
        with pytest.raises(DataError, match=f"{window[0]:g}, {window[1]:g}"):
            spans.windows_to_spans_cxw([(1.0, 2.0), window], 60)


def test_iou_of_empty_spans_is_zero_with_finite_gradient():
    point = torch.tensor([[0.5, 0.5]], requires_grad=True)
    spans.giou(point, point.detach()).sum().backward()
    assert spans.pairwise_iou(point, point.detach()).item() == 0.0
    assert bool(torch.isfinite(point.grad).all())


@given(span_lists, st.data())
def test_nms_keeps_the_best_and_only_what_it_allows(rows, data):
    scores = data.draw(st.lists(st.floats(0, 1, width=32), min_size=len(rows), max_size=len(rows)))
    max_iou = data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    kept = spans.nms(rows, scores, max_iou)
    assert kept[0] == int(np.argmax(scores))
    assert kept == sorted(kept, key=lambda index: (-scores[index], index))  # equal scores keep their order
    overlap = spans.pairwise_iou(rows.double(), rows.double())
    for position, index in enumerate(kept):
        assert all(overlap[index, better] <= max_iou for better in kept[:position])
    for dropped in set(range(len(rows))) - set(kept):
        assert any(overlap[dropped, better] > max_iou and scores[better] >= scores[dropped] for better in kept)


def test_iou_and_giou_agree_with_the_official_code(shared_dir):
    golden = np.load(shared_dir / "golden" / "official_reference.npz")
    a, b = torch.from_numpy(golden["spans/a_xx"]), torch.from_numpy(golden["spans/b_xx"])
    np.testing.assert_allclose(spans.pairwise_iou(a, b).numpy(), golden["spans/iou"], atol=1e-6)
    np.testing.assert_allclose(spans.giou(a[:, None], b).numpy(), golden["spans/giou"], atol=1e-6)
