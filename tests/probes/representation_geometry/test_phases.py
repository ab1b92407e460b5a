"""Phases: planted change points are found, with honest intervals, and a course without phases has none."""

import numpy as np
import pytest

from probes.representation_geometry import phases
from workbench.core.errors import InputError


def planted(noise=0.0, seed=0):
    """Collapse to step 40, expansion to step 600, compression to 4000, at 41 unevenly spaced checkpoints."""
    steps = np.unique(np.round(np.geomspace(4, 4000, 41)))
    values = np.interp(np.log(steps), np.log([4, 40, 600, 4000]), [60.0, 10.0, 80.0, 50.0])
    return steps, values + noise * np.random.default_rng(seed).standard_normal(len(steps))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_planted_phases_are_found_where_they_are(noise):
    steps, values = planted(noise)
    found = phases.segment(steps, values, error=noise or None, rng=np.random.default_rng(0))
    assert [p.name for p in found] == ["warm-up", "entropy-seeking", "compression-seeking"]
    assert found[0].start_step == 4 and found[-1].end_step == 4000
    for phase, following in zip(found, found[1:]):
        assert phase.end_step == following.start_step and phase.end_low == following.start_low
    for phase, turn in zip(found, (40, 600)):
        near = steps[np.abs(np.log(steps / turn)).argsort()[:3]]
        assert near.min() <= phase.end_step <= near.max()
        assert phase.end_low <= phase.end_step <= phase.end_high


def test_intervals_cover_the_turn_and_widen_with_noise():
    covered, width = 0, {}
    for noise in (0.5, 4.0):
        for seed in range(10):
            steps, values = planted(noise, seed)
            found = phases.segment(steps, values, error=noise, draws=40, rng=np.random.default_rng(0))
            up = [p for p in found if p.name == "entropy-seeking"]
            best = max(up, key=lambda p: p.end - p.start)
            width.setdefault(noise, []).append(np.log(best.end_high / best.end_low))
            covered += best.end_low / 1.2 <= 600 <= best.end_high * 1.2
    assert covered >= 17  # of 20
    assert np.mean(width[4.0]) > np.mean(width[0.5])


def test_a_monotone_course_is_one_phase_and_noise_adds_none():
    steps = np.arange(1, 31) * 100.0
    rise = phases.segment(steps, np.log(steps), rng=np.random.default_rng(0))
    assert [p.name for p in rise] == ["entropy-seeking"] and (rise[0].start_step, rise[0].end_step) == (100, 3000)
    fall = phases.segment(steps, -np.log(steps), rng=np.random.default_rng(0))
    assert [p.name for p in fall] == ["compression-seeking"]  # at 3 % of the training the warm-up is over
    noisy = [np.log(steps) + 0.1 * np.random.default_rng(seed).standard_normal(30) for seed in range(60)]
    assert (
        sum(
            len(phases.segment(steps, course, error=0.1, draws=0, rng=np.random.default_rng(0))) > 1 for course in noisy
        )
        <= 3
    )


def test_a_fall_is_a_warm_up_only_at_the_beginning_of_training():
    values = np.array([9, 6, 3, 1, 3, 6, 9, 12, 9, 6.0])
    for first, name in ((0, "warm-up"), (10, "warm-up"), (50_000, "compression-seeking")):
        steps = np.append(first, np.linspace(60_000, 143_000, 9))
        assert [p.name for p in phases.segment(steps, values, error=0.1, rng=np.random.default_rng(0))] == [
            name,
            "entropy-seeking",
            "compression-seeking",
        ]


def test_rise_then_fall_has_no_warm_up():
    steps = np.arange(12.0)
    values = np.array([1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0.0])
    found = phases.segment(steps, values, error=0.1, rng=np.random.default_rng(0))
    assert [(p.name, p.start_step, p.end_step) for p in found] == [
        ("entropy-seeking", 0, 5),
        ("compression-seeking", 5, 11),
    ]


def test_too_few_checkpoints_have_no_phases_and_bad_ones_are_refused():
    rng = np.random.default_rng(0)
    assert phases.segment([1, 2, 3], [1.0, 2, 1], rng=rng) == []
    with pytest.raises(InputError, match="increasing"):
        phases.segment([1, 1, 2, 3], [1.0, 2, 1, 2], rng=rng)
    with pytest.raises(InputError, match="missing"):
        phases.segment([1, 2, 3, 4], [1.0, np.nan, 1, 2], rng=rng)


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("checkpoints", [15, 40, 150])
def test_the_jitter_of_a_course_makes_no_phases_and_hides_none(checkpoints, alike):
    """Jitter of 1 % from checkpoint to checkpoint, of which the standard error of a value (here a twentieth) knows
    nothing: white, or shared with the neighbours."""
    rng, along = np.random.default_rng([checkpoints, round(10 * alike)]), np.linspace(0, 1, checkpoints)
    times = 5 if checkpoints > 100 else 20
    for course, size, expected in (
        (60 + 20 * along, 0.7, 1),
        (100 + 20 * np.log1p(20 * along), 1.2, 1),
        (np.interp(along, [0, 0.3, 0.7, 1], [60.0, 20.0, 80.0, 50.0]), 1.5, 3),
    ):
        found = [
            len(phases.segment(along, course + jitter, error=size / 20, draws=0, rng=rng))
            for jitter in phases.correlated(size, alike, checkpoints, times, rng)
        ]
        assert sum(n == expected for n in found) >= times - 1, found


def test_a_course_that_is_all_jitter_has_no_phase():
    rng = np.random.default_rng(0)
    level = 50 + phases.correlated(1.0, 0.0, 40, 20, rng)
    assert sum(len(phases.segment(np.arange(40.0), v, rng=rng, draws=0)) for v in level) <= 1


def test_turns_are_found_by_how_far_a_course_goes_back():
    values = np.array([0, 3, 2.5, 6, 4, 4.5, 1, 2, 8.0])
    assert phases.turns(values, 1.0) == ([3, 6], True)
    assert phases.turns(values, 0.4) == ([1, 2, 3, 4, 5, 6], True)
    assert phases.turns(values, 9.0) == ([], True) and phases.turns(-values, 1.0) == ([3, 6], False)


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("checkpoints", [15, 40, 150])
def test_alpha_has_its_say_in_the_name_and_its_jitter_has_none(checkpoints, alike):
    """alpha against RankMe, with it, and jitter alone (1 % of its level, white or shared with the neighbours)."""
    along = np.linspace(0, 1, checkpoints)
    rankme = np.interp(along, [0, 0.3, 0.7, 1], [60.0, 20.0, 80.0, 50.0])
    found = phases.segment(along, rankme, draws=0, rng=np.random.default_rng(0))
    assert [p.name for p in found] == ["warm-up", "entropy-seeking", "compression-seeking"]
    times = 5 if checkpoints > 100 else 20
    rng = np.random.default_rng([checkpoints, round(10 * alike)])
    jitter = phases.correlated(0.01, alike, checkpoints, times, rng)
    for course, word in (
        (1.5 - rankme / 100, ""),
        (rankme / 100, "the other way"),
        (np.ones(checkpoints), "not follow"),
    ):
        said = [
            phases.named_with_alpha(found, course + own, error=0.0005, rng=np.random.default_rng(0)) for own in jitter
        ]
        right = sum(
            all(name.startswith(p.name) and (word in name if word else name == p.name) for name, p in zip(names, found))
            for names in said
        )
        assert right >= times - 1, said


def test_a_course_of_alpha_with_a_gap_is_said_to_be_missing():
    found = phases.segment(*planted(), rng=np.random.default_rng(0))
    names = phases.named_with_alpha(found, np.full(41, np.nan), rng=np.random.default_rng(0))
    assert names == [f"{p.name} (by RankMe alone: no alpha)" for p in found]
