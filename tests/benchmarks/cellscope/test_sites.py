import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cellscope.models.sites import CLIP, Recorder, Sites, Statistics, posterior

D, S = 4, 5
LAW = np.array([20.0, 0.5, 1.0, 2.0])
NOISE = 0.05**2


def loads(rng: np.random.Generator, n: int, num_sites: int = S) -> np.ndarray:
    """[n, S, d]"""
    shape = (n, num_sites)
    parts = np.ones(shape), rng.uniform(50, 600, shape), rng.uniform(1, 64, shape)
    return np.stack([*parts, rng.uniform(0, 50, shape)], axis=-1)


def prior(num_sites: int = S, off: float = 1.0, spread: float = 0.3) -> Sites:
    covariance = np.diag((spread * LAW) ** 2)
    mean = np.repeat((off * LAW)[:, None], num_sites, axis=1)
    return Sites(mean, np.repeat(covariance[:, :, None], num_sites, axis=2), NOISE)


def feed(sites: Sites, z: np.ndarray, us: np.ndarray) -> np.ndarray:
    return np.array([sites.update(z[i].T, us[i]).copy() for i in range(len(z))])


def test_without_samples_the_posterior_is_the_prior() -> None:
    mean, covariance = np.arange(8.0).reshape(2, 4), np.repeat(np.eye(4)[None], 2, axis=0)
    found = posterior(np.zeros((2, 4, 4)), np.zeros((2, 4)), NOISE, mean, covariance)
    np.testing.assert_allclose(found[0], mean, atol=1e-12)
    np.testing.assert_allclose(found[1], covariance, atol=1e-12)


def test_many_samples_overrule_the_prior() -> None:
    rng = np.random.default_rng(0)
    z = loads(rng, 2000, 1)
    us = (z @ LAW) * np.exp(0.05 * rng.standard_normal((2000, 1)))
    x = (z / us[:, :, None])[:, 0]
    wide = np.diag((2 * LAW) ** 2)[None]
    found = posterior((x.T @ x)[None], x.sum(axis=0)[None], NOISE, 3 * LAW[None], wide)
    np.testing.assert_allclose(z[:, 0] @ found[0][0], z[:, 0] @ LAW, rtol=0.02)


def test_online_without_clipping_or_forgetting_is_the_batch_posterior() -> None:
    rng = np.random.default_rng(1)
    z = loads(rng, 12)
    us = (z @ LAW) * np.exp(0.01 * rng.standard_normal((12, S)))
    sites = prior(spread=0.05)
    sites.forgetting = 1.0
    feed(sites, z, us)
    x = z / (z @ LAW)[:, :, None]  # online weighs by the prediction, not by the time seen
    y = us / (z @ LAW)
    gram = np.einsum("nsi,nsj->sij", x, x)
    moment = np.einsum("nsi,ns->si", x, y)
    start = prior(spread=0.05)
    found = posterior(gram, moment, NOISE, start.mean.T, start.covariance.transpose(2, 0, 1))
    np.testing.assert_allclose(sites.mean.T, found[0], rtol=0.01)


def test_a_wrong_prior_is_corrected_within_twenty_steps() -> None:
    rng = np.random.default_rng(2)
    z = loads(rng, 20)
    sites = prior(off=1.6)
    feed(sites, z, (z @ LAW) * np.exp(0.05 * rng.standard_normal((20, S))))
    predicted, _ = sites.predict(z[0].T)
    np.testing.assert_allclose(predicted, z[0] @ LAW, rtol=0.06)


def test_predicted_spread_is_the_spread_of_the_scores() -> None:
    rng = np.random.default_rng(3)
    num_sites = 400
    laws = LAW * (1.0 + 0.3 * rng.standard_normal((num_sites, 4))).clip(0.2)
    z = loads(rng, 10, num_sites)
    us = (z * laws).sum(axis=2) * np.exp(0.05 * rng.standard_normal((10, num_sites)))
    scores = feed(prior(num_sites), z, us)
    assert scores.std() == pytest.approx(1.0, abs=0.12)


def test_one_outlier_moves_a_settled_site_by_little() -> None:
    rng = np.random.default_rng(4)
    z = loads(rng, 300)
    sites = prior()
    feed(sites, z, (z @ LAW) * np.exp(0.05 * rng.standard_normal((300, S))))
    before, _ = sites.predict(z[0].T)
    score = sites.update(z[1].T, 50.0 * (z[1] @ LAW))
    np.testing.assert_array_equal(score, CLIP)
    np.testing.assert_allclose(sites.predict(z[0].T)[0], before, rtol=0.02)


@pytest.mark.parametrize("bad", [0.0, -3.0, float("nan"), float("inf")])
def test_an_impossible_time_leaves_its_site_alone_and_only_its_own(bad: float) -> None:
    z = loads(np.random.default_rng(5), 1)[0]
    us = 1.1 * (z @ LAW)
    us[2] = bad
    sites, untouched = prior(spread=3.0), prior(spread=3.0)
    score = sites.update(z.T, us)
    assert score[2] == 0.0
    np.testing.assert_array_equal(sites.mean[:, 2], untouched.mean[:, 2])
    np.testing.assert_array_equal(sites.covariance[:, :, 2], untouched.covariance[:, :, 2])
    assert (sites.mean[:, [0, 1, 3, 4]] != untouched.mean[:, [0, 1, 3, 4]]).any()


def test_an_unknown_load_leaves_its_site_alone() -> None:
    z = loads(np.random.default_rng(6), 1)[0]
    us = z @ LAW
    z[1, 1] = np.nan
    sites = prior()
    sites.update(z.T, us)
    assert np.isfinite(sites.mean).all()
    assert np.isfinite(sites.covariance).all()


def test_standing_still_never_makes_a_site_less_sure_than_its_prior() -> None:
    sites = prior()
    z = loads(np.random.default_rng(7), 1)[0]
    for _ in range(20000):
        sites.update(z.T, z @ LAW)
    assert np.isfinite(sites.covariance).all()
    trace = (sites.covariance.reshape(D * D, S) * sites.scale).sum(axis=0)
    assert (trace <= 1.0 + 1e-6).all()
    assert (np.linalg.eigvalsh(sites.covariance.transpose(2, 0, 1)) > 0.0).all()


def test_inputs_are_not_written_to() -> None:
    mean = np.repeat(LAW[:, None], S, axis=1)
    covariance = np.repeat(np.diag(LAW**2)[:, :, None], S, axis=2)
    z = loads(np.random.default_rng(8), 1)[0].T.copy()
    us = np.full(S, 500.0)
    copies = [each.copy() for each in (mean, covariance, z, us)]
    Sites(mean, covariance, NOISE).update(z, us)
    for each, copy in zip((mean, covariance, z, us), copies, strict=True):
        np.testing.assert_array_equal(each, copy)


def test_inflate_reopens_the_sites_named() -> None:
    rng = np.random.default_rng(9)
    z = loads(rng, 50)
    sites = prior()
    feed(sites, z, z @ LAW)
    which = np.arange(S) == 3
    sites.inflate(which)
    _, sd = sites.predict(z[0].T)
    assert sd[3] > 2.0 * sd[~which].max()
    feed(sites, z[:4], np.where(which, 1.5, 1.0) * (z[:4] @ LAW))
    predicted, _ = sites.predict(z[0].T)
    assert predicted[3] == pytest.approx(1.5 * (z[0, 3] @ LAW), rel=0.06)


def test_sites_survive_json() -> None:
    rng = np.random.default_rng(10)
    z = loads(rng, 5)
    sites = prior()
    feed(sites, z, z @ LAW)
    copy = Sites.from_dict(json.loads(json.dumps(sites.to_dict())))
    copy.inflate(np.ones(S, dtype=bool))
    sites.inflate(np.ones(S, dtype=bool))
    np.testing.assert_array_equal(copy.update(z[0].T, z[1] @ LAW), sites.update(z[0].T, z[1] @ LAW))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), cut=st.integers(0, 9))
def test_statistics_of_parts_add_up(seed: int, n: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    z, us = loads(rng, n).transpose(0, 2, 1), rng.uniform(1, 9, (n, S))
    cut = 2 * (min(cut, n) // 2)  # halves take turns from the first sample on
    whole, first, second = (Statistics.empty(D, S) for _ in range(3))
    whole.add(z, us)
    first.add(z[:cut], us[:cut])
    second.add(z[cut:], us[cut:])
    merged = Statistics.from_dict(json.loads(json.dumps(first.merged(second).to_dict())))
    for name in ("count", "gram", "moment"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-9)


def test_unseen_times_count_for_nothing() -> None:
    z = loads(np.random.default_rng(11), 3).transpose(0, 2, 1)
    us = np.ones((3, S))
    us[1, 2] = np.nan
    statistics = Statistics.empty(D, S)
    statistics.add(z, us)
    np.testing.assert_array_equal(statistics.count.sum(axis=0), [3, 3, 2, 3, 3])
    assert np.isfinite(statistics.gram).all()


def test_recorder_ships_everything_once() -> None:
    rng = np.random.default_rng(12)
    z, us = loads(rng, 11).transpose(0, 2, 1), rng.uniform(1, 9, (11, S))
    recorder, whole = Recorder(D, S, length=4), Statistics.empty(D, S)
    for each in zip(z, us, strict=True):
        recorder.add(*each)
    whole.add(z, us)
    taken = recorder.take()
    np.testing.assert_allclose(taken.gram, whole.gram, rtol=1e-9)
    np.testing.assert_array_equal(taken.count, whole.count)
    assert recorder.take().count.sum() == 0.0
