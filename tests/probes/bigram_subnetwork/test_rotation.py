"""Rotations: ridge maps are scikit-learn's, and a rotation by 40° in every plane is one by 40°."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from probes.bigram_subnetwork.rotation import MapSums, median_angle, rotation_rows
from probes.bigram_subnetwork.stretches import Piece
from tests.support import architectures
from workbench.core.context import Context
from workbench.core.errors import InputError
from workbench.engine.passes import Pass
from workbench.models.loading import wrap


def planes(width: int, degrees: float) -> np.ndarray:
    turn = np.deg2rad(degrees)
    return np.kron(np.eye(width // 2), [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


@pytest.mark.parametrize("degrees", [0, 40, 90, 170])
def test_a_rotation_in_every_plane_is_found_whatever_the_basis(degrees):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    turn = basis @ planes(10, degrees) @ basis.T
    x = rng.normal(size=(4000, 10)) + 3
    sums = MapSums(10, 2, torch.device("cpu"))
    for part in np.array_split(x, 3):
        sums.add(torch.tensor(part), [torch.tensor(part @ turn.T * 2.5 + 1), torch.tensor(part)])
    turned, same = sums.maps()
    assert median_angle(turned) == pytest.approx(degrees, abs=0.05)
    assert median_angle(same) == pytest.approx(0, abs=1e-9)


def test_maps_are_those_of_ridge_regression():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 6)) + 5, rng.normal(size=(60, 6)) - 2
    sums = MapSums(6, 1, torch.device("cpu"))
    sums.add(torch.tensor(x), [torch.tensor(y)])
    np.testing.assert_allclose(sums.maps(ridge=1.0)[0], Ridge(alpha=1.0).fit(x, y).coef_, atol=1e-9)


def test_rows_of_a_model_are_those_of_its_hidden_states():
    hf = architectures.build("gpt2")
    rng = np.random.default_rng(0)
    pieces = [Piece(rng.integers(3, 60, 20).tolist(), i, 1) for i in range(8)]
    found = rotation_rows(wrap(hf), pieces, [], "full", tokens=100, run=Pass(), context=Context())
    ids = torch.tensor([piece.ids for piece in pieces[:5]])
    captured = []
    handle = hf.transformer.h[-1].register_forward_hook(lambda _m, _a, out: captured.append(out))
    with torch.no_grad():  # the last of the hidden states is behind the final norm, and the block's own is not
        states = list(hf(ids, output_hidden_states=True).hidden_states[:-1])
    handle.remove()
    states.append(captured[0][0] if isinstance(captured[0], tuple) else captured[0])
    flat = [state.double().reshape(100, -1).numpy() for state in states]
    embedded = hf.transformer.wte(ids).detach().double().reshape(100, -1).numpy()
    for row, x in zip(found.iter_rows(named=True), flat):
        for column, y in (("to_input", embedded), ("to_output", flat[-1])):
            angles = np.abs(np.angle(np.linalg.eigvals(Ridge(alpha=1.0).fit(x, y).coef_), deg=True))
            assert row[column] == pytest.approx(np.median(angles), abs=0.2)
    assert found["after_blocks"].to_list() == [0, 1, 2, 3] and set(found["n"]) == {100}
    assert found["to_output"][-1] == pytest.approx(0, abs=1e-3)


def test_embeddings_of_another_width_than_the_states_are_refused():
    model = wrap(architectures.build("gpt2"))
    model.hf.get_input_embeddings = lambda: torch.nn.Embedding(64, 16)
    with pytest.raises(InputError, match="rotation=true: its embeddings have 16 dimensions and its states 32"):
        pieces = [Piece([5, 6, 7], 0, 1)]
        rotation_rows(model, pieces, [], "full", tokens=100, run=Pass(), context=Context())
