"""Histograms that a stream of values fills exactly, and ranges that agree with brute force."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import permutations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.ranges import BINS, LEVELS, METHODS, MOST_VALUES, PERCENTILE, Feeds, Histogram, collect, ranges
from runtime.errors import BundleError, MachineError

Float32 = NDArray[np.float32]


def histogram_of(*parts: Float32) -> Histogram:
    return reduce(Histogram.with_values, parts, Histogram())


def assert_same(one: Histogram, other: Histogram) -> None:
    assert (one.limit, one.largest) == (other.limit, other.largest)
    np.testing.assert_array_equal(one.counts, other.counts)


def growing(seed: int = 0) -> list[Float32]:
    """Values whose size spans nine doublings."""
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(500) * scale).astype(np.float32) for scale in (0.013, 0.4, 0.1, 5.5)]


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_values_in_parts_are_counted_as_at_once(order: tuple[int, ...]) -> None:
    parts = growing()
    assert_same(histogram_of(*(parts[i] for i in order)), histogram_of(np.concatenate(parts)))


def test_every_value_lands_in_its_bin() -> None:
    values = np.float32([[0, 0.25, -0.25], [0.7, -0.999, 0.001]])
    found = histogram_of(values)
    assert found.counts is not None
    assert (found.limit, found.largest, found.counts.sum()) == (1, np.float32(0.999), 6)
    expected = {0: 1, BINS // 4: 2, int(0.7 * BINS): 1, int(0.999 * BINS): 1, int(0.001 * BINS): 1}
    assert {i: int(c) for i, c in enumerate(found.counts) if c} == expected


@pytest.mark.parametrize("largest", [3e-30, 0.3, 1.0, 4.0, 3e30])
def test_the_limit_is_a_power_of_two_that_holds_the_largest(largest: float) -> None:
    found = histogram_of(np.float32([largest, -largest / 3]))
    assert found.counts is not None
    assert found.largest == np.float32(largest) <= found.limit <= 2.01 * largest
    assert np.log2(found.limit) % 1 == 0 and found.counts.sum() == 2


# A value equal to the limit is counted in the bin below it (ranges.py, `np.minimum(places, BINS - 1)`), where doubling
# then leaves it: in one histogram at once it is one bin higher.
def test_a_power_of_two_is_counted_in_the_same_bin_before_and_after_doubling() -> None:
    one, two = np.float32([1.0]), np.float32([2.0])
    assert_same(histogram_of(one, two), histogram_of(np.concatenate([one, two])))


# Zeros that come before anything else are not counted (ranges.py, `if not limit: return self`), those after are.
def test_zeros_count_alike_before_and_after_other_values() -> None:
    zeros, values = np.zeros(100, np.float32), np.float32([0.3, 0.6])
    assert_same(histogram_of(zeros, values), histogram_of(values, zeros))


def test_nothing_but_zeros_has_no_limit() -> None:
    found = histogram_of(np.zeros((3, 4), np.float32), np.zeros(0, np.float32))
    assert (found.limit, found.largest) == (0, 0)
    assert ranges({"a": found}, "mse") == {"a": 1.0}


def test_of_many_values_some_are_counted_and_the_largest_is_exact() -> None:
    values = np.random.default_rng(0).random((8 * MOST_VALUES // 16, 16), np.float32)
    values[1, 0] = -7.5
    found = histogram_of(values)
    assert found.counts is not None
    assert found.largest == 7.5
    assert MOST_VALUES / 2 < found.counts.sum() <= MOST_VALUES
    # Of 0 to 8, an eighth is taken, evenly.
    filled = found.counts[: BINS // 8]
    assert filled.min() > 0.6 * filled.mean()


def test_every_channel_of_a_long_tensor_is_met() -> None:
    values = np.repeat(np.float32([[0.1, 0.3, 0.5, 0.9]]), MOST_VALUES, axis=0)
    found = histogram_of(values)
    assert found.counts is not None
    met = found.counts[found.counts > 0]
    assert len(met) == 4 and met.min() > 0.9 * met.max()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(MachineError, match=r"not finite.*calibration frame"):
        histogram_of(np.float32([0.5]), np.float32([0.1, wrong]))


NORMAL = np.random.default_rng(1).standard_normal(60_000).astype(np.float32)
DISTRIBUTIONS = {
    "normal": NORMAL,
    "laplace": np.random.default_rng(2).laplace(size=60_000).astype(np.float32),
    "uniform": np.random.default_rng(3).uniform(-3, 3, 60_000).astype(np.float32),
    "positive": np.abs(NORMAL) ** 3,
    "outliers": np.concatenate([NORMAL, np.float32([-40, 55])]),
}


def error_of(values: Float32, largest: float) -> float:
    step = largest / LEVELS
    rounded = np.clip(np.round(values / step), -LEVELS, LEVELS) * step
    return float(np.mean((values - rounded) ** 2, dtype=np.float64))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_minmax_is_the_largest_magnitude(name: str) -> None:
    values = DISTRIBUTIONS[name]
    assert METHODS["minmax"](histogram_of(values)) == np.abs(values).max()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentile_is_the_quantile_within_a_bin(name: str) -> None:
    values = DISTRIBUTIONS[name]
    found = histogram_of(values)
    exact = float(np.quantile(np.abs(values), PERCENTILE, method="inverted_cdf"))
    assert exact <= METHODS["percentile"](found) <= exact + found.limit / BINS


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_as_good_as_the_best_of_a_scan(name: str) -> None:
    values = DISTRIBUTIONS[name]
    found = METHODS["mse"](histogram_of(values))
    largest = float(np.abs(values).max())
    best = min(error_of(values, r) for r in np.geomspace(largest / 50, largest, 250))
    assert error_of(values, found) <= 1.03 * best
    assert found <= largest


def test_mse_clips_where_minmax_would_waste_levels() -> None:
    values = DISTRIBUTIONS["outliers"]
    found = METHODS["mse"](histogram_of(values))
    assert error_of(values, found) < 0.8 * error_of(values, 55)
    assert METHODS["mse"](histogram_of(DISTRIBUTIONS["uniform"])) > 2.9


def test_entropy_clips_a_heavy_tail_and_not_an_even_spread() -> None:
    heavy = np.random.default_rng(4).standard_t(2, 60_000).astype(np.float32)
    assert METHODS["entropy"](histogram_of(heavy)) < 0.5 * np.abs(heavy).max()
    assert METHODS["entropy"](histogram_of(DISTRIBUTIONS["uniform"])) > 0.97 * 3
    assert METHODS["entropy"](histogram_of(DISTRIBUTIONS["outliers"])) < 20


@pytest.mark.parametrize("method", METHODS)
def test_a_range_is_positive_never_wider_than_the_values_and_moves_with_them(method: str) -> None:
    for values in DISTRIBUTIONS.values():
        found, wider = (METHODS[method](histogram_of(v)) for v in (values, values * np.float32(8)))
        assert 0 < found <= np.abs(values).max()
        assert wider == pytest.approx(8 * found, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_keeps_its_magnitude(method: str) -> None:
    found = METHODS[method](histogram_of(np.full(1000, -0.3, np.float32)))
    assert found == pytest.approx(0.3, rel=0.05)


def test_ranges_are_given_by_product() -> None:
    histograms = {"a": histogram_of(np.float32([1, -2])), "b": histogram_of(np.float32([3])), "c": Histogram()}
    assert ranges(histograms, "minmax") == {"a": 2.0, "b": 3.0, "c": 1.0}


def chain(gain: float = 2.0) -> bytes:
    """frame -> first -> second -> restored, each a product; `frame` is taken by two of them."""
    weights = {
        "w": np.eye(8, dtype=np.float32) * gain,
        "v": np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32),
        "g": np.ones((6, 4), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["frame", "w"], ["first"], name="enc.0/MatMul"),
        helper.make_node("Relu", ["first"], ["positive"], name="enc.0/Relu"),
        helper.make_node("MatMul", ["positive", "v"], ["second"], name="enc.1/MatMul"),
        helper.make_node("MatMul", ["frame", "v"], ["beside"], name="enc.2/MatMul"),
        helper.make_node("Add", ["second", "beside"], ["sum"], name="dec.0/Add"),
        helper.make_node("MatMul", ["sum", "w"], ["restored"], name="dec.0/MatMul"),
        helper.make_node("MatMul", ["metrics", "g"], ["routing"], name="router/MatMul"),
    ]
    shapes = {"frame": [1, 3, 8, 8], "metrics": [1, 6], "restored": [1, 3, 8, 8], "routing": [1, 4]}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "chain", ends[:2], ends[2:], stored)
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return data


INPUTS = {"enc.0/MatMul": "frame", "enc.1/MatMul": "positive", "enc.2/MatMul": "frame", "dec.0/MatMul": "sum"}


def frames(*scales: float) -> Callable[[], Iterator[Feeds]]:
    def samples() -> Iterator[Feeds]:
        for seed, scale in enumerate(scales):
            frame = np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)
            yield {"frame": frame * np.float32(scale), "metrics": np.zeros((1, 6), np.float32)}

    return samples


def test_what_products_take_is_collected_over_all_frames() -> None:
    samples = frames(1, 3, 0.5)
    found = collect(chain(), INPUTS, samples)
    assert list(found) == list(INPUTS)
    taken = [feeds["frame"] for feeds in samples()]
    assert_same(found["enc.0/MatMul"], histogram_of(*taken))
    assert_same(found["enc.1/MatMul"], histogram_of(*(np.maximum(2 * frame, 0) for frame in taken)))
    assert found["enc.0/MatMul"] is found["enc.2/MatMul"]
    assert found["dec.0/MatMul"].largest > found["enc.1/MatMul"].largest


def test_a_part_of_the_tensors_at_a_time_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, int]] = []

    def counted(done: int, of: int) -> None:
        runs.append((done, of))

    whole = collect(chain(), INPUTS, frames(1, 3), counted)
    assert runs == [(1, 0), (2, 0)]
    runs.clear()
    # A tensor holds 768 bytes; a limit below that still lets one through.
    for limit in (1, 1000):
        monkeypatch.setattr("calibration.ranges.MOST_BYTES", limit)
        parts = collect(chain(), INPUTS, frames(1, 3), counted)
        for name, histogram in whole.items():
            assert_same(parts[name], histogram)
    assert [done for done, _ in runs] == [1, 2, 3, 4, 1, 2, 3, 4]


def test_as_many_tensors_are_held_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.ranges.MOST_BYTES", 2 * 768)
    runs: list[int] = []
    five = {name: name for name in ("first", "positive", "second", "beside", "sum")}
    found = collect(chain(), five, frames(1), lambda done, _: runs.append(done))
    assert runs == [1, 2, 3] and all(h.largest > 0 for h in found.values())


def test_products_that_take_the_frame_alone_need_no_run() -> None:
    runs: list[int] = []
    found = collect(chain(), {"enc.0/MatMul": "frame"}, frames(2), lambda done, _: runs.append(done))
    assert runs == [] and found["enc.0/MatMul"].largest > 0


def test_a_network_that_overflows_on_a_frame_is_refused() -> None:
    with pytest.raises(MachineError, match="not finite"):
        collect(chain(3e38), INPUTS, frames(1e-3, 100))


def test_a_graph_with_an_unknown_operator_is_not_run() -> None:
    model = onnx.load_model_from_string(chain())
    model.graph.node[1].op_type = "Sin"
    with pytest.raises(BundleError, match="Sin"):
        collect(model.SerializeToString(), INPUTS, frames(1))
