"""One share of all the stages of a run: it only grows, fills what its stages weigh, and says how long is left."""

import pytest

from workbench.core.context import Context
from workbench.core.progress import SCALE, TimeLeft, shares


def listening() -> tuple[Context, list[tuple[int, int, str]]]:
    told: list[tuple[int, int, str]] = []
    return Context(on_progress=lambda *said: told.append(said)), told


def test_stages_fill_the_whole_by_their_weights():
    context, told = listening()
    stage = context.stages({"reading": 1, "fits": 3, "left out": 0})
    with stage("reading"):
        context.progress(1, 2, "texts")
    with stage("fits"):
        context.progress(0, 10)
        for fit in context.each(range(2)):
            context.progress(1, 1, f"fit {fit}")
    shown = [(round(done / total, 3) if total else None, words) for done, total, words in told]
    assert shown[0] == (None, "reading")  # nothing is done yet
    assert shown[1] == (0.112, "reading, texts: 1 of 2")  # told in whole parts of SCALE
    assert shown[2] == (0.25, "fits") and shown[3] == (0.25, "fits: 0 of 10")
    assert [share for share, _ in shown[4:]] == pytest.approx([0.25 + 0.9 * 0.375, 0.625 + 0.9 * 0.375], abs=0.001)


def test_a_series_that_begins_anew_goes_on_in_what_is_left():
    context, told = listening()
    for label in ("capture", "capture (stored)", "a third pass"):
        for done in range(11):
            context.progress(done, 10, label)
    found = [done for done, total, _ in told if total]
    assert found == sorted(found) and found[-1] <= 995
    assert len(set(found)) > 25  # it stands nowhere


def test_the_whole_is_not_reached_before_the_run_is_complete():
    context, told = listening()
    stage = context.stages({"all": 1})
    with stage("all"):
        context.progress(10, 10)
    context.progress(1, 1, "done twice over")
    assert max(done for done, _, _ in told) == 0.995 * SCALE


def test_an_error_inside_a_stage_leaves_the_next_one_its_place():
    context, told = listening()
    stage = context.stages({"a": 1, "b": 1})
    with pytest.raises(ZeroDivisionError), stage("a"):
        inner = iter(context.each("xyz"))
        next(inner)
        raise ZeroDivisionError
    with stage("b"):
        context.progress(0, 1, "here")
    assert told[-1] == (SCALE // 2, SCALE, "b, here")


def test_a_stage_that_was_left_out_is_passed_over():
    context, told = listening()
    stage = context.stages({"a": 1, "b": 1})
    with stage("b"):
        context.progress(0, 4, "work")
    assert told[-1] == (SCALE // 2, SCALE, "b, work: 0 of 4")


@pytest.mark.parametrize(
    ("weights", "places"),
    [([1, 3], [(0, 0.25), (0.25, 1)]), ([0, 0], [(0, 0.5), (0.5, 1)]), ([2, 0, 2], [(0, 0.5), (0.5, 0.5), (0.5, 1)])],
)
def test_shares_are_those_of_the_weights(weights, places):
    assert [pytest.approx(pair) for pair in shares(weights)] == places


def test_the_time_left_follows_the_pace_of_the_run():
    clock = TimeLeft()
    found = [clock.after(second / 100, float(second)) for second in range(101)]
    assert found[0] is None and found[50] == pytest.approx(50) and found[99] == pytest.approx(1)


def test_the_time_left_is_there_from_the_first_moment_where_a_like_run_was_timed():
    clock = TimeLeft(expected=200.0)
    found = [clock.after(second / 100, float(second)) for second in range(101)]
    assert found[0] == 200.0  # twice what it takes
    assert all(a is not None and b is not None and b < a for a, b in zip(found, found[1:]))
    assert found[20] == pytest.approx(80)  # its own pace is known by then


def test_parts_of_an_earlier_run_do_not_count_as_its_pace():
    clock = TimeLeft()
    clock.after(0.0, 0.0)
    clock.after(0.8, 0.1)  # read from the disk
    assert clock.after(0.9, 10.1) == pytest.approx(10.1, rel=0.05)  # a tenth in ten seconds, and a tenth is left
