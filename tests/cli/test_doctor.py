"""The doctor names what is wrong and what to do."""

from __future__ import annotations

import os
from importlib import metadata

import numpy as np
import pytest

from workbench.cli import doctor


def test_every_thing_is_looked_at_once(monkeypatch):
    found = doctor.examine()
    assert [item.name for item in found] == [
        "python",
        "packages",
        "torch",
        "device",
        "passes",
        "dtypes",
        "transfers",
        "graphs",
        "unchecked",
        "chromium",
        "model",
        "probes",
        "cache",
        "store",
        "disk",
        "offline",
    ]
    assert all(item.status in ("ok", "warn", "fail") and item.detail for item in found)
    assert all(item.remedy for item in found if item.status != "ok" and item.name != "probes")


def test_the_store_is_shown_with_its_budget(monkeypatch):
    from workbench.store.activation_store import Store, fingerprint

    assert "0 entries, 0 bytes; no budget" in doctor.store().detail
    with Store().writer(fingerprint({"a": 1}), {}, n_shards=1, expected_bytes=400) as writer:
        writer.write(0, {"x": np.zeros(250, np.float32)})
    monkeypatch.setenv("WORKBENCH_STORE_BUDGET", "2GB")
    assert "1 entry, 1." in doctor.store().detail and "kB of 2.0 GB (WORKBENCH_STORE_BUDGET)" in doctor.store().detail
    monkeypatch.setenv("WORKBENCH_STORE_BUDGET", "plenty")
    monkeypatch.setattr(doctor.device_checks, "CHECKS", ())
    (found,) = [item for item in doctor.examine() if item.name == "store"]
    assert found.status == "fail" and "WORKBENCH_STORE_BUDGET: 'plenty' is not a size" in found.detail


def test_packages_are_held_to_the_lock_file(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(doctor, "lock_file", lambda: lock)
    lock.write_text(f"# pinned\nnumpy=={metadata.version('numpy')}\n")
    assert (doctor.packages().status, doctor.packages().detail) == ("ok", "1 packages as in the lock file")
    lock.write_text("numpy==1.0\n")
    assert (
        doctor.packages().status == "warn"
        and "numpy" in doctor.packages().detail
        and "==1.0" in doctor.packages().detail
    )
    lock.write_text("no-such-package-here==1.0\nother; python_version < '3'\n")
    assert (
        doctor.packages().status == "fail"
        and "no-such-package-here" in doctor.packages().detail
        and "other" not in doctor.packages().detail
    )
    monkeypatch.setattr(doctor, "lock_file", lambda: None)
    assert "the requirements" in doctor.packages().detail  # an installed wheel


def test_a_cache_that_cannot_be_written_fails(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("WORKBENCH_CACHE", str(blocked / "below"))
    assert doctor.cache().status == "fail" and "WORKBENCH_CACHE" in doctor.cache().remedy
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "new"))
    assert doctor.cache().status == "ok" and os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize(("free", "status"), [(1e11, "ok"), (1e9, "warn"), (1e8, "fail")])
def test_little_disk_is_a_warning_and_none_a_failure(monkeypatch, free, status):
    import types

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    assert doctor.disk().status == status


def test_a_missing_browser_is_a_warning_that_says_what_to_install(monkeypatch):
    from choreographer.browsers.chromium import Chromium

    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setattr(Chromium, "find_browser", classmethod(lambda cls, **options: None))
    found = doctor.chromium()
    assert found.status == "warn" and "chromium" in found.remedy and "HTML" in found.detail


@pytest.mark.parametrize(("value", "words"), [("1", "only local models"), ("0", "downloaded"), (None, "downloaded")])
def test_the_offline_flag_is_told(monkeypatch, value, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", value) if value is not None else monkeypatch.delenv("HF_HUB_OFFLINE")
    assert words in doctor.offline().detail


def test_a_broken_check_is_a_finding_not_a_crash(monkeypatch):
    def broken():
        raise RuntimeError("no")

    monkeypatch.setattr(doctor, "disk", broken)
    found = doctor.examine()
    assert [item for item in found if item.status == "fail" and "RuntimeError: no" in item.detail]
