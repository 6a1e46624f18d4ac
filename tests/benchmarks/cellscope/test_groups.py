import numpy as np
import pytest

from benchmarks.cellscope.models.groups import (
    Fit,
    Layout,
    Structure,
    fit,
    linkage,
    numbered,
    shuffle,
)
from benchmarks.cellscope.models.sites import Statistics

REPLICAS, LAYERS = 12, 3
REPLICA, LAYER = np.repeat(np.arange(REPLICAS), LAYERS), np.tile(np.arange(LAYERS), REPLICAS)
LAW = np.array([30.0, 0.5, 1.0, 2.0])
PROBE = np.array([[1, a, m, k] for a in (100, 500) for m in (4, 32) for k in (2, 40)], dtype=float)
ONE_BLOCK = ["h100/tp1/bf16"] * (REPLICAS * LAYERS)


def fleet(n: int, hidden: np.ndarray, seed: int = 0, factor: float = 2.0):
    """Sites whose law is LAW, or `factor` times dearer in launch and bandwidth; statistics, law."""
    rng = np.random.default_rng(seed)
    law = np.repeat(LAW[None], REPLICAS * LAYERS, axis=0)
    law[hidden[REPLICA] == 1, :2] *= factor
    law *= np.exp(0.04 * rng.standard_normal((REPLICAS, 4)))[REPLICA]
    law *= np.exp(0.04 * rng.standard_normal((LAYERS, 4)))[LAYER]
    shape = (len(law), n)
    parts = np.ones(shape), rng.uniform(80, 600, shape), rng.uniform(1, 64, shape)
    z = np.stack([*parts, rng.uniform(0, 50, shape)], axis=-1)
    us = (z * law[:, None]).sum(axis=2) * np.exp(0.05 * rng.standard_normal(shape))
    return Statistics.of_rows(z, us), law


def layout(block: list[str] = ONE_BLOCK) -> Layout:
    return Layout.of(REPLICA.tolist(), LAYER.tolist(), block)


def error(found: Fit, law: np.ndarray) -> float:
    return float(
        np.median(np.abs(PROBE @ (found.scale * found.effects.mean).T / (PROBE @ law.T) - 1))
    )


HIDDEN = np.array([0, 1] * 6)


def test_hidden_groups_are_found_and_kept() -> None:
    statistics, _ = fleet(4, HIDDEN)
    found = fit(statistics, layout(), PROBE)
    assert found.verdict.structure is Structure.GROUPS
    assert found.verdict.groups < min(
        found.verdict.random, found.verdict.crossed, found.verdict.local
    )
    for group in np.unique(found.group):
        assert len(np.unique(HIDDEN[found.group == group])) == 1


def test_two_groups_are_cut_where_they_differ() -> None:
    statistics, _ = fleet(4, HIDDEN)
    scaled = fit(statistics, layout(), PROBE, group=np.zeros(REPLICAS, dtype=np.int64))
    cuts = linkage(scaled.effects, layout(), PROBE * scaled.scale)
    np.testing.assert_array_equal(cuts[2], HIDDEN)
    assert sorted(cuts) == list(range(1, REPLICAS + 1))


def test_groups_never_cross_blocks() -> None:
    statistics, _ = fleet(4, np.zeros(REPLICAS, dtype=int))
    block = ["a" if r < 5 else "b" for r in REPLICA]
    where = layout(block)
    found = fit(statistics, where, PROBE, group=where.block_of_replica)
    for cut in linkage(found.effects, where, PROBE * found.scale).values():
        for group in np.unique(cut):
            assert len(np.unique(where.block_of_replica[cut == group])) == 1


def test_sharing_beats_sites_on_their_own() -> None:
    statistics, law = fleet(4, HIDDEN)
    found = fit(statistics, layout(), PROBE)
    alone = found.effects.mean * 0.0
    for site in range(len(alone)):
        gram = statistics.gram[:, :, :, site].sum(axis=0)
        alone[site] = np.linalg.lstsq(gram, statistics.moment[:, :, site].sum(axis=0), rcond=None)[
            0
        ]
    raw = np.median(np.abs(PROBE @ alone.T / (PROBE @ law.T) - 1))
    assert error(found, law) < 0.04
    assert error(found, law) < raw / 2.0


def test_order_of_sites_does_not_matter() -> None:
    statistics, _ = fleet(4, HIDDEN)
    found = fit(statistics, layout(), PROBE, group=HIDDEN)
    turn = np.random.default_rng(0).permutation(REPLICAS * LAYERS)
    turned = Statistics(
        statistics.count[:, turn], statistics.gram[..., turn], statistics.moment[..., turn]
    )
    where = Layout(REPLICA[turn], LAYER[turn], np.zeros(len(turn), dtype=np.int64))
    again = fit(turned, where, PROBE, group=HIDDEN)
    np.testing.assert_allclose(again.effects.mean, found.effects.mean[turn], rtol=1e-6, atol=1e-9)


def test_a_fit_is_deterministic() -> None:
    statistics, _ = fleet(2, HIDDEN)
    first, second = (fit(statistics, layout(), PROBE, seed=3) for _ in range(2))
    assert first.verdict == second.verdict
    np.testing.assert_array_equal(first.effects.mean, second.effects.mean)


def test_a_new_replica_starts_at_what_its_block_does() -> None:
    statistics, law = fleet(16, np.zeros(REPLICAS, dtype=int))
    sites = fit(statistics, layout(), PROBE).newcomer(0, [0, 1, 2, None])
    for layer in range(LAYERS):
        z = np.repeat(PROBE[5][:, None], 4, axis=1)
        us, sd = sites.predict(z)
        assert us[layer] == pytest.approx(np.mean(law[layer == LAYER] @ PROBE[5]), rel=0.05)
        assert sd[3] > sd[layer]  # of a new layer less is known
        assert 0.04 < sd[layer] < 0.2


def test_a_new_replica_is_settled_by_its_first_samples() -> None:
    statistics, _ = fleet(16, HIDDEN)
    sites = fit(statistics, layout(), PROBE).newcomer(0, [0, 1, 2])
    z = np.repeat(PROBE[5][:, None], 3, axis=1)
    slow_us = 2.0 * LAW[:2] @ PROBE[5, :2] + LAW[2:] @ PROBE[5, 2:]
    for _ in range(3):
        sites.update(z, np.full(3, slow_us))
    np.testing.assert_allclose(sites.predict(z)[0], slow_us, rtol=0.05)


def test_sites_start_where_the_fit_ends() -> None:
    statistics, _ = fleet(4, HIDDEN)
    found = fit(statistics, layout(), PROBE)
    which = np.array([7, 2])
    sites = found.sites(which)
    np.testing.assert_allclose(sites.mean.T, (found.scale * found.effects.mean)[which])
    assert (np.einsum("iis->is", sites.prior) >= np.einsum("iis->is", sites.covariance)).all()


def test_one_replica_and_a_feature_that_never_varies_are_no_obstacle() -> None:
    rng = np.random.default_rng(0)
    z = np.stack([np.ones((3, 4)), rng.uniform(50, 600, (3, 4)), *np.zeros((2, 3, 4))], axis=-1)
    us = z @ LAW
    found = fit(Statistics.of_rows(z, us), Layout.of([0] * 3, [0, 1, 2], ["a"] * 3), PROBE)
    assert found.verdict.structure is not Structure.GROUPS
    predicted = np.einsum("snd,sd->sn", z, found.scale * found.effects.mean)
    np.testing.assert_allclose(predicted, us, rtol=0.03)


def test_shuffle_keeps_sizes_and_blocks() -> None:
    group, block = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 0, 0, 1, 1])
    mixed = shuffle(group, block, np.random.default_rng(0))
    assert sorted(mixed[:4]) == [0, 0, 0, 1]
    assert mixed[4:].tolist() == [2, 2]


def test_numbered_keeps_the_order_of_appearance() -> None:
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="one label per site"):
        Layout.of([0, 1], [0], ["a"])
    with pytest.raises(ValueError, match="two blocks"):
        Layout.of([0, 0], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="layout of 36"):
        fit(Statistics.empty(4, 3), layout(), PROBE)
