"""What the linear probes ask of a device: launches that do not grow with the layers or the labellings, and hardly ever
a wait."""

import json
import math

import numpy as np
import pytest
import torch
from polars.testing import assert_frame_equal

from probes import concept_depth
from probes.concept_depth import batched_newton, linear_probe, mean_difference, multinomial_probe, ridge_probe
from probes.concept_depth.held_out import folds_of, solve
from tests import virtual_accelerator as va
from workbench.core.context import Context
from workbench.models.loading import load

COPIES = 3  # that the host waits for: features and labels to the device, what was found back


def problem(layers=3, n=40, d=12, labellings=2, classes=2, seed=0):
    """Features [layers][n, d] on the host, folds of so many labellings."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = rng.standard_normal((layers, n, d))
    x[:, :, 0] += 3 * labels
    tests = np.array_split(np.arange(n), 4)
    drawn = [labels, *(np.concatenate([rng.permutation(labels[t]) for t in tests]) for _ in range(labellings - 1))]
    return list(torch.from_numpy(x).float()), [p for own in drawn for p in folds_of(own, tests)]


def counted(fit, features, problems, **options):
    def on_device(*args, **given):
        return fit(*args, **given, **options, device="virtual")

    with va.counting() as counts:
        solved = solve(features, problems, on_device)
    return solved, counts


@pytest.mark.parametrize(("fit", "classes"), [(linear_probe.fit_many, 2), (multinomial_probe.fit_many, 3)])
@pytest.mark.parametrize("shape", [(40, 12), (40, 60)])
def test_the_host_waits_once_in_ten_steps_for_all_layers_and_labellings(virtual, fit, classes, shape):
    n, d = shape
    features, problems = problem(layers=4, n=n, d=d, labellings=5, classes=classes)
    solved, counts = counted(fit, features, problems)
    looks = math.ceil(int(solved.iterations.max()) / batched_newton.LOOK)
    assert (solved.error <= 1e-6).all() and counts.waits <= looks + COPIES, counts.of("wait", "to_device", "to_host")
    here = solve(features, problems, fit)
    for own, other in zip(solved.scores, here.scores):
        assert np.abs(own - other).max() < 1e-4 * np.abs(other).max()


def test_hard_problems_take_one_more_wait_for_ten_more_steps(virtual):
    """Separable classes and hardly a penalty: many steps."""
    features, problems = problem(layers=1)
    for x in features:
        x[:, 1] = torch.from_numpy(problems[0].labels * 2.0 - 1) * 1e-3
    solved, counts = counted(linear_probe.fit_many, features, problems[:2], c=1e8)
    steps = int(solved.iterations.max())
    assert steps > batched_newton.LOOK and (solved.error <= 1e-6).all()
    assert counts.waits <= math.ceil(steps / batched_newton.LOOK) + COPIES


@pytest.mark.parametrize("fit", [linear_probe.fit_many, mean_difference.fit_many])
def test_launches_do_not_grow_with_layers_and_labellings(virtual, fit):
    _, few = counted(fit, *problem(layers=2, labellings=1))
    _, many = counted(fit, *problem(layers=7, labellings=9))
    assert few.launch == many.launch and few.waits == many.waits


def test_a_step_makes_at_most_220_launches(virtual):
    features, problems = problem()
    (_, one), (_, six) = (counted(linear_probe.fit_many, features, problems, max_iter=most) for most in (1, 6))
    assert (six.launch - one.launch) / 5 <= 220


def test_numbers_are_read_with_launches_that_do_not_grow_with_the_layers(virtual):
    def read(layers, device):
        rng = np.random.default_rng(0)
        x, y = torch.from_numpy(rng.standard_normal((layers, 30, 8))), rng.standard_normal((4, 30))
        tests = np.array_split(np.arange(30), 3)
        with va.counting() as counts:
            found = ridge_probe.read_held_out(
                list(x), y, tests, lambda t: np.array_split(np.arange(len(t)), 4), device=device
            )
        return found, counts

    (_, few), (there, many) = read(2, "virtual"), read(6, "virtual")
    assert few.launch == many.launch and few.waits == many.waits
    assert np.allclose(there.read, read(6, "cpu")[0].read, atol=1e-9)


def test_chunks_of_layers_follow_the_free_memory_of_the_device(virtual, monkeypatch):
    """A device with little memory solves fewer layers at a time, to the same end."""
    features, problems = problem(layers=6)
    whole, once = counted(linear_probe.fit_many, features, problems)
    monkeypatch.setattr("workbench.models.devices.memory", lambda device: (600_000, 2**30))
    parts, several = counted(linear_probe.fit_many, features, problems)
    assert once.to_device < several.to_device
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(whole.scores, parts.scores))


def test_float32_stops_at_what_its_gradient_can_tell():
    """A device without float64: the certificate at 1e-4, and coefficients as far from the optimum at most."""
    features, problems = problem(n=80)
    labels, fitted = problems[0].labels[None], np.ones((1, 80), dtype=bool)
    exact = linear_probe.fit_many(features, labels, fitted, tolerance=1e-10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.concept_depth.many_fits.widest", lambda device: torch.float32)
        single = linear_probe.fit_many(features, labels, fitted)
    assert (single.error <= linear_probe.LEAST_SINGLE).all()
    apart = (single.coef - exact.coef).flatten(2).norm(dim=-1) / exact.coef.flatten(2).norm(dim=-1)
    assert float(apart.max()) <= 2 * linear_probe.LEAST_SINGLE


def test_a_run_has_the_tables_of_the_cpu_and_its_probes_wait_as_often_as_one_solve(virtual, tiny_llama, tmp_path):
    rows = [{"text": f"{i}: it is {'glad' if i % 2 else 'not so'} today", "label": i % 2} for i in range(40)]
    (tmp_path / "joy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = concept_depth.Config(shuffles=4, control_tasks=3, causal="off", draws=100)

    def run(device):
        with va.counting() as counts:
            return concept_depth.run(
                load(str(tiny_llama), device=device), config, Context(data=tmp_path)
            ).tables, counts

    (there, counts), (here, _) = run("virtual"), run("cpu")
    for name in ("layers", "depth", "controls"):
        other = here[name].drop("iterations", "error", strict=False)
        assert_frame_equal(there[name].drop("iterations", "error", strict=False), other, abs_tol=1e-6)
    asked = {line: n for line, n in counts.of("wait", "to_device", "to_host").items() if "concept_depth" in line}
    looks = math.ceil(there["layers"]["iterations"].max() / batched_newton.LOOK)
    assert 0 < sum(asked.values()) <= looks + COPIES, asked
