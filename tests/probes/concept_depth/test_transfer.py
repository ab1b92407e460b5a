"""Fitted on one set, tested on another: planted shared and unshared directions, and the slow computation."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from probes import concept_depth
from probes.concept_depth import linear_probe
from probes.concept_depth.concept_sets import ConceptSet
from probes.concept_depth.config import Config
from probes.concept_depth.transfer import fitted_on_all, transfer_table
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.models.loading import load


def planted(name, direction, rng, n=160):
    """Texts in groups of two; layer 0 is noise, in layer 1 the classes lie apart along the direction."""
    labels = np.arange(n) // 2 % 2
    x = rng.standard_normal((2, n, 12))
    x[1] += 3 * (labels - 0.5)[:, None] * np.eye(12)[direction]
    groups = tuple(f"{name}{i // 2}" for i in range(n))
    return ConceptSet(name, tuple(f"{name} {i}" for i in range(n)), labels, ("0", "1"), groups), torch.tensor(x)


def table_of(sets, features, shuffles=20):
    rng = np.random.default_rng(1)
    fitted = {
        c.name: fitted_on_all(
            features[c.name], c.labels, np.array(c.groups), linear_probe.fit_many, shuffles=shuffles, rng=rng
        )
        for c in sets
    }
    return transfer_table(
        sets,
        fitted,
        {c.name: 1 for c in sets},
        lambda c: features[c.name],
        draws=200,
        rng=lambda _: np.random.default_rng(2),
    )


def test_a_shared_direction_transfers_and_another_does_not():
    rng = np.random.default_rng(0)
    made = [planted("a", 0, rng), planted("b", 0, rng), planted("c", 5, rng)]
    sets, features = [c for c, _ in made], {c.name: x for c, x in made}
    table = table_of(sets, features)
    assert table.height == 6 * 2 and (table["train"] != table["test"]).all()
    above = {(r["train"], r["test"]) for r in table.iter_rows(named=True) if r["above_chance"]}
    assert above == {("a", "b"), ("b", "a")}
    row = table.filter(train="a", test="b", layer=1).row(0, named=True)
    assert row["picked"] and row["auc_low"] < row["auc"] < row["auc_high"] and row["n"] == 80 and row["n_test"] == 160
    probes = linear_probe.fit([features["a"][1]], sets[0].labels)
    scores = probes.scores([features["b"][1]])[0]
    assert row["auc"] == pytest.approx(roc_auc_score(sets[1].labels, scores), abs=1e-9)
    assert row["accuracy"] == ((scores > 0) == (sets[1].labels == 1)).mean()
    assert abs(row["control_auc"] - 0.5) < 0.2


def test_texts_of_both_sets_are_not_tested_on():
    rng = np.random.default_rng(0)
    (a, xa), (b, xb) = planted("a", 0, rng), planted("b", 0, rng)
    both = ConceptSet("b", (*a.texts[:40], *b.texts[40:]), b.labels, b.classes, b.groups)
    table = table_of([a, both], {"a": xa, "b": xb}, shuffles=0)
    assert set(table["n_test"]) == {120}
    assert table["p"].is_nan().all() and not table["above_chance"].any()  # no shuffled labels, no judgement


def test_a_run_is_what_directions_by_hand_give(tiny_llama, tmp_path):
    model = load(str(tiny_llama))
    for name, word in (("joy", "glad"), ("size", "big")):
        rows = [{"text": f"{name} {i}: it is {word if i % 2 else 'not so'} today", "label": i % 2} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    short = {"site": "resid_post", "split": "paper", "shuffles": 2, "control_tasks": 0, "causal": "off", "draws": 100}
    for classifier in ("logistic", "mean_difference"):
        config = Config(**short, transfer=True, classifier=classifier)
        result = concept_depth.run(model, config, Context(data=tmp_path))
        table = result.tables["transfer"]
        assert table.height == 2 * model.n_layers and table.filter("picked")["train"].sort().to_list() == [
            "joy",
            "size",
        ]

        def states(name, result=result):
            own = result.tables["inputs"].filter(dataset=name)
            with torch.no_grad():
                hidden = [model.hf(torch.tensor([ids.to_list()]), output_hidden_states=True) for ids in own["ids"]]
            return torch.stack([h.hidden_states[2][0, -1] for h in hidden]).double(), own["label"].to_numpy()

        (x, y), (other, truth) = states("joy"), states("size")
        if classifier == "logistic":
            probes = linear_probe.fit([x], y)
            scores = probes.scores([other])[0]
        else:
            high, low = x[y == 1].mean(0), x[y == 0].mean(0)
            scores = ((other - (high + low) / 2) @ (high - low)).numpy()
        found = table.filter(train="joy", test="size", layer=1).row(0, named=True)
        assert found["auc"] == pytest.approx(roc_auc_score(truth, scores), abs=0.005)
        assert found["accuracy"] == pytest.approx(((scores > 0) == (truth == 1)).mean(), abs=0.03)
    with pytest.raises(InputError, match="one set only, 'joy'"):
        concept_depth.run(model, Config(**short, transfer=True, sets=("joy",)), Context(data=tmp_path))
