"""Composition scores against [d, d] products, one pair after another, in float64."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.engine.composition import (
    KINDS,
    component_scores,
    components,
    pair_scores,
    random_directions,
    readers,
)
from workbench.models.head_weights import HeadWeights

HEADS, KV, WIDTH, SIZE = 4, 2, 40, 5


def layer(seed: int, *, heads=HEADS, kv=KV, width=WIDTH, size=SIZE) -> HeadWeights:
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g)

    return HeadWeights(
        randn(heads, width, size),
        randn(kv, width, size),
        randn(kv, width, size),
        randn(heads, size, width),
        torch.zeros(kv, size),
    )


def matrices(own: HeadWeights, kind: str, turned=()):
    """The B of every reader of a layer as [d, m · d] matrices, offsets and heads of a group side by side."""
    group = len(own.query) // len(own.key)
    turned = turned or [torch.eye(own.query.shape[-1], dtype=torch.double)]
    found = []
    for head in range(len(own.query)):
        q, k = own.query[head].double(), own.key[head // group].double()
        if kind == "v":
            parts = [own.value[head // group].double() @ own.output[head].double()]
        else:
            parts = [q @ r @ k.T for r in turned]
            parts = parts if kind == "q" else [p.T for p in parts]
        found.append(torch.cat(parts, 1) / len(parts) ** 0.5)
    return found if kind == "q" else [torch.cat(found[i : i + group], 1) for i in range(0, len(found), group)]


def ov(own: HeadWeights, head: int):
    group = len(own.query) // len(own.key)
    return own.value[head // group].double() @ own.output[head].double()


def score(a, b):
    return float((a @ b).norm() / (a.norm() * b.norm()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv", [2, 4])
def test_scores_are_those_of_whole_products(kind, kv):
    early, late = layer(0, kv=kv), layer(1, kv=kv)
    own, reading = components(early), readers(late, kind)
    found = component_scores(own.writes.flatten(0, 1), reading).unflatten(0, (HEADS, SIZE))
    pairs = pair_scores(own.values, found)
    assert reading.shape[0] == (HEADS if kind == "q" else kv)  # what heads share is there once
    for head in range(HEADS):
        left, values, right = torch.linalg.svd(ov(early, head))
        for reader, b in enumerate(matrices(late, kind)):
            assert float(pairs[head, reader]) == pytest.approx(score(ov(early, head), b), rel=1e-9)
            for i in range(SIZE):
                piece = values[i] * torch.outer(left[:, i], right[i])
                assert float(found[head, i, reader]) == pytest.approx(score(piece, b), rel=1e-9)


@pytest.mark.parametrize("kind", ["q", "k"])
def test_scores_over_offsets_are_root_mean_squares_of_turned_products(kind):
    early, late = layer(0), layer(1)
    angles = [
        torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.double, generator=torch.Generator().manual_seed(i)))[0]
        for i in range(3)
    ]
    own = components(early)
    found = component_scores(own.writes[1], readers(late, kind, angles))
    for reader, b in enumerate(matrices(late, kind, angles)):
        for i in range(SIZE):
            assert float(found[i, reader]) == pytest.approx(score(own.writes[1][i][None], b), rel=1e-9)


def test_components_are_the_singular_triples_of_w_ov():
    early = layer(3)
    own = components(early)
    for head in range(HEADS):
        whole = ov(early, head)
        assert torch.allclose(own.values[head], torch.linalg.svdvals(whole)[:SIZE])
        for i in range(SIZE):
            v = own.writes[head, i]
            assert float((whole @ v).norm()) == pytest.approx(float(own.values[head, i]), rel=1e-9)
            assert float(v.abs().max()) == float(v.max())  # the sign is settled


def test_a_coordinate_is_read_and_moved_alone():
    early = layer(4)
    own = components(early)
    z = torch.randn(SIZE, dtype=torch.double)
    out = z @ early.output[2].double()
    torch.testing.assert_close(own.reads[2] @ z, own.writes[2] @ out)
    moved = (z + 3.0 * own.puts[2, 1]) @ early.output[2].double() - out
    torch.testing.assert_close(moved, 3.0 * own.writes[2, 1])


def test_no_product_of_the_size_of_the_stream_squared_is_formed():
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor) and x.ndim >= 2:
                    assert tuple(x.shape[-2:]) != (WIDTH, WIDTH), func
            return out

    early, late = layer(0), layer(1)
    with Watching():
        own = components(early)
        for kind in KINDS:
            component_scores(own.writes.flatten(0, 1), readers(late, kind))
    with pytest.raises(AssertionError), Watching():
        ov(early, 0)


def test_random_heads_score_one_over_the_root_of_the_width():
    """The baseline of random matrices: 0.0361 at width 768."""
    early, late = layer(0, heads=6, kv=6, width=768, size=64), layer(1, heads=6, kv=6, width=768, size=64)
    own = components(early)
    found = component_scores(own.writes.flatten(0, 1), readers(late, "q"))
    whole = pair_scores(own.values, found.unflatten(0, (6, 64)))
    assert float(whole.mean()) == pytest.approx(768**-0.5, abs=0.0004)
    assert float(found.mean()) == pytest.approx(0.036, abs=0.001)


@pytest.mark.parametrize("shape", [(1.0, 0, 0, 0), (1, 1, 1, 1), (3, 1, 0.5, 0.2)])
def test_the_null_of_random_directions_is_what_they_score(shape):
    rng = np.random.default_rng(0)
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, 4, dtype=torch.double, generator=g))[0]
    reading = (basis * torch.tensor(shape, dtype=torch.double))[None]
    v = torch.randn(200_000, WIDTH, dtype=torch.double, generator=g)
    real = component_scores(v / v.norm(dim=1, keepdim=True), reading)[:, 0].numpy()
    null = random_directions(reading, width=WIDTH, draws=20_000, rng=rng)
    assert null.mean[0] == pytest.approx(real.mean(), rel=0.02)
    assert null.sd[0] == pytest.approx(real.std(), rel=0.03)
    exact = len({x for x in shape if x}) == 1  # one dimension, or equal ones
    for share in (0.05, 1e-3):
        at = np.quantile(real, 1 - share)
        assert null.p_above(np.array([[at]]))[0, 0] == pytest.approx(share, rel=0.12 if exact else 0.4)
