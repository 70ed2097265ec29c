"""What every engine must do. A test class for an engine inherits `EngineContract` and gives the fixture `engine`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.engines import Engine
from runtime.errors import CubeError
from runtime.signature import Signature

Float32 = NDArray[np.float32]


def inputs(signature: Signature, seed: int) -> dict[str, Float32]:
    """A frame in [0, 1], and prompts that differ from seed to seed."""
    rng = np.random.default_rng(seed)
    feeds = {signature.measured.name: rng.random(signature.measured.shape, np.float32) * np.float32(0.2 + seed % 5)}
    return feeds | {p.name: (2 * rng.standard_normal(p.shape)).astype(np.float32) for p in signature.prompts}


def assert_equal(found: Mapping[str, Float32], expected: Mapping[str, Float32]) -> None:
    """Every array, bit for bit."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class EngineContract:
    """Tests of one engine; `engine` lives as long as the class."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        raise NotImplementedError("give the engine under test")

    def test_outputs_have_the_promised_names_types_and_shapes(self, engine: Engine) -> None:
        made, signature = engine.infer(inputs(engine.signature, 0)), engine.signature
        assert {name: array.shape for name, array in made.items()} == signature.ports.outputs
        for array in made.values():
            assert array.dtype == np.float32 and np.isfinite(array).all()
        if signature.routing is not None:
            weights = made[signature.routing.name]
            assert (weights >= 0).all() and (weights.max(axis=1) > 0).all() and (weights.sum(axis=1) < 1 + 1e-5).all()

    def test_the_same_inputs_give_the_same_bits(self, engine: Engine) -> None:
        first, again = (engine.infer(inputs(engine.signature, 1)) for _ in range(2))
        assert_equal(first, again)

    def test_a_call_leaves_the_outputs_of_the_one_before_alone(self, engine: Engine) -> None:
        first = engine.infer(inputs(engine.signature, 2))
        kept = {name: array.copy() for name, array in first.items()}
        second = engine.infer(inputs(engine.signature, 3))
        assert_equal(first, kept)
        for name, array in first.items():
            assert not np.shares_memory(array, second[name])
            assert not np.array_equal(array, second[name])

    def test_outputs_may_be_written_to(self, engine: Engine) -> None:
        expected = engine.infer(inputs(engine.signature, 2))
        spoilt = engine.infer(inputs(engine.signature, 2))
        for array in spoilt.values():
            array[:] = -1
        assert_equal(engine.infer(inputs(engine.signature, 2)), expected)

    def test_inputs_stay_as_they_are(self, engine: Engine) -> None:
        given, kept = inputs(engine.signature, 4), inputs(engine.signature, 4)
        for output in engine.infer(given).values():
            output[:] = 0
        assert_equal(given, kept)

    def test_inputs_need_neither_be_contiguous_nor_in_order(self, engine: Engine) -> None:
        given = inputs(engine.signature, 5)
        expected = engine.infer(given)
        for name, array in given.items():
            wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), np.float32)
            wide[..., ::2] = array
            backwards = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
            for strided in (wide[..., ::2], backwards, np.asfortranarray(array)):
                others = {key: value for key, value in given.items() if key != name}
                assert_equal(engine.infer({**others, name: strided}), expected)

    @pytest.mark.parametrize(
        "dtype", [np.float64, np.float16, np.int16, np.uint8, np.bool_, np.complex64, ">f4", object]
    )
    def test_other_types_are_refused(self, engine: Engine, dtype: Any) -> None:
        given = inputs(engine.signature, 6)
        for name, array in given.items():
            with pytest.raises(CubeError, match=rf"{name}: .*float32 \("):
                engine.infer({**given, name: array.astype(dtype)})

    def test_other_shapes_are_refused(self, engine: Engine) -> None:
        given = inputs(engine.signature, 7)
        for name, array in given.items():
            shapes = (array[0], array[None], array[:, 1:], array[..., 1:], array[..., :0], array[..., None])
            for wrong in (*shapes, np.concatenate([array, array])):
                with pytest.raises(CubeError, match=f"{name}: wrong input"):
                    engine.infer({**given, name: wrong})

    @pytest.mark.parametrize("wrong", [None, 1.0, [[1.0]], "frame"])
    def test_what_is_no_array_is_refused(self, engine: Engine, wrong: Any) -> None:
        given = inputs(engine.signature, 8)
        for name in given:
            with pytest.raises(CubeError, match=f"{name}: wrong input"):
                engine.infer({**given, name: wrong})

    def test_missing_and_unknown_inputs_are_refused(self, engine: Engine) -> None:
        given = inputs(engine.signature, 8)
        for wrong in ({}, {**given, "other": np.zeros(1, np.float32)}, dict(list(given.items())[1:])):
            with pytest.raises(CubeError, match="inputs: wrong inputs") as caught:
                engine.infer(wrong)
            assert ", ".join(given) in str(caught.value.remedy)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_value_that_is_not_finite_is_refused(self, engine: Engine, value: float) -> None:
        for name in engine.signature.ports.inputs:
            given = inputs(engine.signature, 9)
            given[name].flat[-1] = value
            with pytest.raises(CubeError, match=f"{name}: the input is not finite"):
                engine.infer(given)

    def test_an_engine_works_after_it_refused(self, engine: Engine) -> None:
        given = inputs(engine.signature, 10)
        expected = engine.infer(given)
        with pytest.raises(CubeError):
            engine.infer({name: array * np.float32(np.nan) for name, array in given.items()})
        assert_equal(engine.infer(given), expected)

    def test_it_tells_what_it_is(self, engine: Engine) -> None:
        told = engine.describe()
        assert {"engine", "version", "device", "computes in"} <= set(told)
        assert all(isinstance(value, str) and value and value.isprintable() for value in told.values())
