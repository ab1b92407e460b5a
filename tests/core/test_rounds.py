"""What goes on round by round: only the last state is kept, and a stop loses one round at most."""

import numpy as np
import pytest

from workbench.core.context import Context


def begin():
    return {"x": np.zeros(3), "log": np.zeros(0)}


def adding(context, done, *, stop_at=None):
    def advance(number, state):
        if number == stop_at:
            raise KeyboardInterrupt
        done.append(number)
        context.count(tokens=10)
        context.warn(f"round {number}")
        return {"x": state["x"] + number, "log": np.append(state["log"], number)}

    return advance


def files(folder):
    return sorted((folder / "parts").iterdir())


def test_rounds_follow_each_other_and_leave_one_file(tmp_path):
    context, done = Context(out=tmp_path), []
    found = context.rounds("loop", 6, begin, adding(context, done))
    assert done == list(range(6)) and found["x"].tolist() == [15] * 3 and found["log"].tolist() == list(range(6))
    assert len(files(tmp_path)) == 1 and "rounds done" not in found


@pytest.mark.parametrize("stop_at", [0, 1, 5])
def test_what_was_stopped_goes_on_with_its_last_state_counters_and_warnings(tmp_path, stop_at):
    first, done = Context(out=tmp_path), []
    with pytest.raises(KeyboardInterrupt):
        first.rounds("loop", 6, begin, adding(first, done, stop_at=stop_at))
    second = Context(out=tmp_path)
    found = second.rounds("loop", 6, begin, adding(second, done))
    assert done == list(range(6)) and found["log"].tolist() == list(range(6))
    assert second.counters["tokens"] == 60 and second.warnings == [f"round {i}" for i in range(6)]
    assert second.parts_loaded == (stop_at > 0)
    third, again = Context(out=tmp_path), []
    assert third.rounds("loop", 6, begin, adding(third, again))["x"].tolist() == [15] * 3
    assert not again and third.counters["tokens"] == 60


def test_a_state_that_is_finished_ends_the_rounds_and_stays_finished(tmp_path):
    done = []

    def advance(number, state):
        done.append(number)
        return state | {"finished": np.array(number == 2)}

    for _ in range(2):
        assert bool(Context(out=tmp_path).rounds("loop", 9, begin, advance)["finished"])
    assert done == [0, 1, 2]


def test_a_damaged_state_is_begun_again_with_a_warning(tmp_path):
    context, done = Context(out=tmp_path), []
    context.rounds("loop", 3, begin, adding(context, done))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    again = Context(out=tmp_path)
    found = again.rounds("loop", 3, begin, adding(again, done))
    assert done == [0, 1, 2] * 2 and found["log"].tolist() == [0, 1, 2]
    assert "damaged on disk" in again.warnings[0] and again.counters["tokens"] == 30


def test_without_a_folder_nothing_is_written():
    context, done = Context(), []
    assert context.rounds("loop", 2, begin, adding(context, done))["x"].tolist() == [1] * 3
