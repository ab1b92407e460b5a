"""long=refuse|skip|cut: one row beyond the context does not end a run that was told what to do with it."""

from __future__ import annotations

import json

import pytest

from workbench.core.errors import InputError
from workbench.models.loading import load
from workbench.runs import execution as runs

LONG = "The dog ran to the park. " * 200
WORDS = "Tom Lily dog cat park tree ball happy sad big".split()


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load(str(tiny_llama))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measure(probe, model, data, **config):
    return runs.execute(probe, model, data=data, config=config)


def concepts(tmp_path, long=True):
    rows = [{"text": f"{WORDS[n % 10]} {n} is {'good' if n % 2 else 'bad'}.", "label": n % 2} for n in range(60)]
    return write(tmp_path / "set.jsonl", [*rows[:3], *([{"text": LONG, "label": 1}] if long else []), *rows[3:]])


def test_concept_depth_skips_cuts_or_refuses(model, tmp_path):
    config = {"shuffles": 0, "causal": "off", "draws": 100}
    data = concepts(tmp_path)
    with pytest.raises(InputError, match="'set', row 4: the text has .* long=skip"):
        measure("concept-depth", model, data, **config)
    skipped, cut = (measure("concept-depth", model, data, **config, long=how) for how in ("skip", "cut"))
    assert skipped.table("inputs").height == 60 and skipped.summary["rows_skipped_too_long"] == 1
    assert skipped.info["counters"]["rows_skipped_too_long"] == 1
    assert cut.table("inputs").height == 61 and len(cut.table("inputs")["ids"][3]) == model.context_length
    assert cut.summary["rows_cut_too_long"] == 1 and any("1 of 61 texts of set" in w for w in cut.info["warnings"])
    short = measure("concept-depth", model, concepts(tmp_path, long=False), **config)
    assert short.table("layers").equals(skipped.table("layers"))  # the numbers of a file without the row
    with pytest.raises(InputError, match="question behind the text"):
        measure("concept-depth", model, concepts(tmp_path), **config, long="cut", template="{text} Is it good?")


def test_branching_factor_skips_and_keeps_the_numbers_of_the_file(model, tmp_path):
    data = write(tmp_path / "p.jsonl", [{"prompt": text} for text in ("The dog", LONG, "The cat")])
    config = {"samples": 2, "max_new_tokens": 3}
    with pytest.raises(InputError, match="Prompt 2 has .* more than the model's context"):
        measure("branching-factor", model, data, **config)
    run = measure("branching-factor", model, data, **config, long="skip")
    assert run.table("prompts")["prompt"].to_list() == [0, 2] and run.summary["rows_skipped_too_long"] == 1
    with pytest.raises(InputError, match="long = 'cut' is wrong"):
        measure("branching-factor", model, data, **config, long="cut")


def test_geometry_cuts_skips_or_refuses(model, tmp_path):
    rows = [{"text": f"{WORDS[n % 10]} and {WORDS[n // 10]} ran"} for n in range(30)]
    data = write(tmp_path / "t.jsonl", [*rows[:4], {"text": LONG}, *rows[4:]])
    config = {"fit_range": (2, 9), "draws": 0, "loss_rows": 0, "map": "none", "curve": False, "ablate": "none"}
    cut, skipped = (measure("representation-geometry", model, data, **config, long=how) for how in ("cut", "skip"))
    assert cut.table("inputs").height == 31 and skipped.table("inputs")["row"].to_list() == [*range(4), *range(5, 31)]
    assert skipped.summary["rows_skipped_too_long"] == 1
    with pytest.raises(InputError, match="row 5: the text has"):
        measure("representation-geometry", model, data, **config, long="refuse")


def test_conflicts_that_do_not_fit_are_skipped_and_counted(_circuits, tmp_path):
    from tests.support.conflict_files import PROBE, QUICK, circuit_rows, conflict_circuit

    small, place, _ = conflict_circuit(_circuits)
    rows = circuit_rows(place)
    rows[5] |= {"clean_prompt": f"{'. ' * 200}{rows[5]['clean_prompt']}"}
    data = write(tmp_path / "c.jsonl", rows)
    with pytest.raises(InputError, match="row 6: the field 'clean_prompt' has .* long=skip"):
        measure(PROBE, small, data, **QUICK)
    run = measure(PROBE, small, data, **QUICK, long="skip")
    assert run.summary["skipped_too_long"] == 1 and run.info["counters"]["rows_skipped_too_long"] == 1
    assert 5 not in set(run.table("inputs")["row"])


def test_a_key_that_came_later_leaves_the_ids_of_runs_as_they_were():
    import types

    model = types.SimpleNamespace(name="organism", fingerprint="f", tokenizer_fingerprint="t", dtype="float32")
    for probe in ("concept-depth", "branching-factor", "data-selection"):
        default, skip = (
            runs.identify(runs.prepare(probe, config), model, seed=0)["config"] for config in ({}, {"long": "skip"})
        )
        assert "long" not in default and skip == default | {"long": "skip"}
