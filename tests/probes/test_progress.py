"""Every probe has one bar over all of its stages: it starts low, only grows, and is full at the end, not before."""

import time

import pytest

from tests.support.short_runs import LESS, PROBES
from workbench.core import registry
from workbench.models.loading import load
from workbench.runs import demo, execution

FEWER = {  # of what the demo asks for
    "concept-depth": {"sets": ("topic", "lookup", "negation")},
    "bigram-subnetwork": {"steps": 60},
    "knowledge-conflict": {"limit": 24, "prune_k": (1,), "random_draws": 1},
    "retrieval-heads": {"lengths": (128, 256), "mask_k": (1, 3)},
    "representation-geometry": {"checkpoints": ("organism@step-0", "organism@step-104", "organism@step-1664")},
}


@pytest.fixture(scope="module")
def organism():
    return load("organism")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBES)
def test_the_bar_of_a_demo_grows_with_the_work(name, organism, tmp_path):
    probe = registry.get(name)
    settings = demo.settings(probe, "organism") | FEWER.get(name, {})
    # what is imported and compiled is no part of the work
    warm = execution.execute(probe, organism, config=settings | LESS[name], seed=1, out=tmp_path / "warm")
    told: list[tuple[float, float, str]] = []
    begun = time.process_time()

    def progress(done: int, total: int, label: str) -> None:
        told.append((time.process_time() - begun, done / total if total else 0.0, label))

    done = execution.execute(probe, organism, config=settings, out=tmp_path / "run", progress=progress)
    assert done.status == warm.status == "complete"
    whole = time.process_time() - begun
    found = [share for _, share, _ in told]
    assert found == sorted(found), "it went back"
    assert found[0] < 0.05 and found[-1] == 1.0
    assert [share for share in found[:-1] if share == 1.0] == [], "it was full before the end"
    high = [moment / whole for moment, share, _ in told if share >= 0.95]
    assert min(high) > 0.85, f"it was at 95 % after {min(high):.0%} of the work"
    early = [share for moment, share, _ in told if moment < 0.1 * whole]
    assert max(early, default=0) < 0.4, f"it was at {max(early):.0%} after a tenth of the work"
    assert all(label for *_, label in told)
