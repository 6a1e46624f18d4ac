import numpy as np
import pytest

from benchmarks.cellscope.models.features import NAMES, NUM_FEATURES, Features, expected_active


def test_expected_active_of_uniform_routing_is_the_closed_form() -> None:
    popularity = np.full(64, 8 / 64)
    rows = np.array([0, 1, 16])
    expected = 64 * (1 - (1 - 8 / 64) ** rows)
    np.testing.assert_allclose(expected_active(popularity, rows), expected, rtol=1e-12)


def test_expected_active_agrees_with_counting() -> None:
    rng = np.random.default_rng(0)
    popularity = rng.uniform(0.01, 0.3, 31)  # prime E
    drawn = rng.random((4000, 9, 31)) < popularity
    counted = drawn.any(axis=1).sum(axis=1).mean()
    assert float(expected_active(popularity, 9)) == pytest.approx(counted, rel=0.01)


def test_skewed_routing_needs_fewer_experts() -> None:
    skewed = 8 * np.arange(64, 0, -1) / np.arange(64, 0, -1).sum()
    assert expected_active(skewed, 16) < expected_active(np.full(64, 8 / 64), 16)


def test_units() -> None:
    z = Features(expert_bytes=2e6).matrix(
        decode_rows=13, size_class=16, active_experts=10, kv_tokens=5000, prefill_tokens=100
    )
    assert z.shape == (NUM_FEATURES,) == (len(NAMES),)
    np.testing.assert_array_equal(z, [1.0, 20.0, 116.0, 5.0])


def test_without_a_graph_rows_count_as_they_are() -> None:
    assert Features(1e6).matrix(13, 0, 10, 0)[2] == 13.0


def test_arguments_broadcast() -> None:
    active = np.arange(12.0).reshape(3, 4)
    z = Features(1e6).matrix(4, 4, active, np.arange(4) * 1000.0)
    assert z.shape == (3, 4, NUM_FEATURES)
    np.testing.assert_array_equal(z[2, :, 1], active[2])
    np.testing.assert_array_equal(z[0, :, 3], np.arange(4))


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_impossible_expert_size_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match="expert_bytes"):
        Features(size)
