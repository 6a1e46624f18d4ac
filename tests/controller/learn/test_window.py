import numpy as np
import pytest

from lynx_controller.learn.window import Window, quantile


def test_quantile_is_numpys() -> None:
    values = sorted(np.random.default_rng(0).normal(size=64).tolist())
    for percentile in (50.0, 90.0, 95.0, 99.9):
        assert quantile(values, percentile) == pytest.approx(np.percentile(values, percentile))


def test_the_prior_is_the_assumed_noise() -> None:
    tail_ms, ignored = Window.prior(64, 0.05).tail_ms(95.0, own_ms=10.0, payable_ms=1.0)
    assert tail_ms == pytest.approx(10.0 * 0.05 * 1.645, rel=0.1)
    assert ignored == 0


def test_push_returns_a_new_window_of_the_same_size() -> None:
    old = Window.prior(16, 0.05)
    new = old.push(1.0, 2.0, 12.0)
    assert old.noise[-1] != 1.0
    assert len(new.noise) == len(new.outside_ms) == 16
    for i in range(40):
        new = new.push(0.0, 0.0, float(i))
    assert len(new.gaps_ms) == 16
    assert new.gap_ms(50.0) == pytest.approx(31.5)


def test_the_tail_is_read_at_the_operating_point() -> None:
    window = Window.prior(16, 0.05)
    for _ in range(16):
        window = window.push(0.1, 3.0, 14.0)
    assert window.tail_ms(95.0, own_ms=10.0, payable_ms=5.0) == (pytest.approx(4.0), 0)
    assert window.tail_ms(95.0, own_ms=20.0, payable_ms=5.0) == (pytest.approx(5.0), 0)


def test_gaps_that_no_cut_can_win_back_count_with_their_step_alone() -> None:
    window = Window.prior(16, 0.05)
    for _ in range(16):
        window = window.push(0.1, 50.0, 61.0)
    assert window.tail_ms(95.0, own_ms=10.0, payable_ms=5.0) == (pytest.approx(1.0), 16)


def test_a_lasting_loss_counts_after_four_gaps_and_a_rare_one_as_often_as_it_was_seen() -> None:
    lasting = Window.prior(64, 0.05)
    before, _ = lasting.tail_ms(95.0, own_ms=10.0, payable_ms=5.0)
    for _ in range(3):
        lasting = lasting.push(0.0, 3.0, 13.0)
    assert lasting.tail_ms(95.0, own_ms=10.0, payable_ms=5.0)[0] < before + 0.5
    lasting = lasting.push(0.0, 3.0, 13.0)
    assert lasting.tail_ms(95.0, own_ms=10.0, payable_ms=5.0)[0] == pytest.approx(3.0 + before, 0.1)
    rare = Window.prior(64, 0.05)
    for lost_ms in (3.0, 0.0, 0.0, 0.0) * 8:
        rare = rare.push(0.0, lost_ms, 10.0 + lost_ms)
    assert rare.tail_ms(50.0, own_ms=10.0, payable_ms=5.0)[0] == pytest.approx(0.0, abs=0.1)
