import sys

import numpy as np
import pytest

from benchmarks.cellscope.models.cellscope import (
    CellScope,
    boosted_trees,
    components,
    loadings,
    similarity,
)


def test_loadings_keep_what_explains_95_percent() -> None:
    rng = np.random.default_rng(0)
    strong = rng.standard_normal((1, 50, 1)) * np.array([3.0, 4.0, 0.0])
    found = loadings(strong + 0.01 * rng.standard_normal((1, 50, 3)))
    assert found.shape == (1, 1, 3)
    np.testing.assert_allclose(np.abs(found[0, 0]), [0.6, 0.8, 0.0], atol=0.01)


def test_similarity_is_the_weighted_sum_of_differences() -> None:
    loads = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    distance = np.array([[1.0, 3.0], [3.0, 1.0]])
    np.testing.assert_array_equal(similarity(loads, distance), [[0.0, 6.0], [6.0, 0.0]])


def test_the_literal_metric_takes_a_sign_for_a_difference() -> None:
    loads = np.array([[[0.6, 0.8]], [[-0.6, -0.8]]])
    assert similarity(loads, np.ones((2, 2)))[0, 1] == pytest.approx(2.8)


def test_components_are_connected_through_others() -> None:
    score = np.full((5, 5), 9.0)
    score[0, 1] = score[1, 0] = score[1, 4] = score[4, 1] = 0.1
    found = components(score, 1.0)
    assert found[0] == found[1] == found[4]
    assert len(np.unique(found)) == 3


def rows(seed: int, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(1.0, 10.0, (4, n, 2))
    us = (20.0 + 10.0 * x[:, :, 0]) * np.array([1.0, 1.0, 2.0, 2.0])[:, None]
    return x, us


def test_site_weights_tell_apart_what_a_group_mixes() -> None:
    pytest.importorskip("sklearn")
    x, us = rows(0, 40)
    model = CellScope(threshold=1e9).fit(x, us)
    assert model.group.tolist() == [0, 0, 0, 0]
    test_x, test_us = rows(1, 40)
    own = np.median(np.abs(model.predict(test_x) / test_us - 1.0))
    model.weights[:] = 1.0
    assert own < np.median(np.abs(model.predict(test_x) / test_us - 1.0)) / 2.0


def test_parts_add_up_to_the_ensemble() -> None:
    pytest.importorskip("sklearn")
    x, us = rows(0)
    model = CellScope(threshold=1e9).fit(x, us)
    whole = model.ensembles[0].predict(x.reshape(-1, 2)).reshape(4, -1)
    np.testing.assert_allclose(model.parts(x).sum(axis=2), whole, rtol=1e-9)


def test_update_and_refresh_follow_a_change() -> None:
    pytest.importorskip("sklearn")
    x, us = rows(0)
    for learn in ("update", "refresh"):
        model = CellScope(threshold=1e9).fit(x, us)
        before = np.abs(model.predict(x) / (1.5 * us) - 1.0).mean()
        if learn == "refresh":
            model.refresh(x, 1.5 * us)
        else:
            for i in range(x.shape[1]):
                model.update(x[:, i], 1.5 * us[:, i])
        assert np.abs(model.predict(x) / (1.5 * us) - 1.0).mean() < before / 1.5


def test_a_missing_dependency_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(RuntimeError, match="scikit-learn"):
        boosted_trees()
