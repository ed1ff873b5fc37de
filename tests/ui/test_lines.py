from __future__ import annotations

import threading

import pytest

from qamdetr.ui.lines import Line, LineFullError


def test_turns_come_in_the_order_of_arrival_and_leaving_moves_the_others_up():
    line = Line(1, 5)
    with line.ticket() as first:
        assert first.wait(0) == 0
        with line.ticket() as second:
            with line.ticket() as third:
                assert (second.wait(0), third.wait(0)) == (1, 2)
                assert first.wait(0) == 0
            with line.ticket() as later:
                assert later.wait(0) == 2, "the third left before its turn"


def test_several_places_are_served_together():
    line = Line(2, 1)
    with line.ticket() as first, line.ticket() as second, line.ticket() as third:
        assert [ticket.wait(0) for ticket in (first, second, third)] == [0, 0, 1]


@pytest.mark.parametrize(("most", "told"), [(1, "1 request is waiting"), (2, "2 requests are waiting")])
def test_a_full_line_turns_away_and_says_so(most, told):
    line = Line(1, most)
    tickets = [line.ticket() for _ in range(1 + most)]
    for ticket in tickets:
        ticket.__enter__()
    with pytest.raises(LineFullError, match=f"{told} already, which is the limit; try again in a moment"), line.ticket():
        pass
    tickets[0].__exit__(None, None, None)
    with line.ticket() as ticket:
        assert ticket.wait(0) == most


def test_whoever_waits_goes_on_when_the_one_before_ends_even_by_a_failure():
    line = Line(1, 1)
    waiting, through = threading.Event(), threading.Event()

    def wait():
        with line.ticket() as ticket:
            told = list(zip(range(1), ticket.until_turn(0.01), strict=False))
            assert told == [(0, 1)]
            waiting.set()
            ticket.wait()
            through.set()

    thread = threading.Thread(target=wait)
    with pytest.raises(RuntimeError), line.ticket() as first:
        assert first.wait() == 0
        thread.start()
        assert waiting.wait(5)
        assert not through.is_set()
        raise RuntimeError
    assert through.wait(5)
    thread.join()
