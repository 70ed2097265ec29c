"""What every engine must do. A test class for an engine inherits `EngineContract` and gives the fixture `engine`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.engines import Engine, EngineSpec
from runtime.errors import CubeError

Float32 = NDArray[np.float32]


def inputs(spec: EngineSpec, seed: int) -> tuple[Float32, Float32]:
    """A frame in [0, 1] and metrics that differ from seed to seed."""
    rng = np.random.default_rng(seed)
    frame = rng.random(spec.frame_shape, np.float32) * np.float32(0.2 + seed % 5)
    return frame, (2 * rng.standard_normal(spec.metrics_shape)).astype(np.float32)


class EngineContract:
    """Tests of one engine; `engine` lives as long as the class."""

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Engine:
        raise NotImplementedError("give the engine under test")

    def test_outputs_have_the_promised_types_and_shapes(self, engine: Engine) -> None:
        restored, gates = engine.infer(*inputs(engine.spec, 0))
        assert restored.dtype == gates.dtype == np.float32
        assert restored.shape == engine.spec.frame_shape and gates.shape == engine.spec.gates_shape
        assert np.isfinite(restored).all() and np.isfinite(gates).all()
        assert (gates >= 0).all() and (gates.max(axis=1) > 0).all() and (gates.sum(axis=1) < 1 + 1e-5).all()

    def test_the_same_inputs_give_the_same_bits(self, engine: Engine) -> None:
        first, again = (engine.infer(*inputs(engine.spec, 1)) for _ in range(2))
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_call_leaves_the_outputs_of_the_one_before_alone(self, engine: Engine) -> None:
        first = engine.infer(*inputs(engine.spec, 2))
        kept = [array.copy() for array in first]
        second = engine.infer(*inputs(engine.spec, 3))
        for one, copy, other in zip(first, kept, second, strict=True):
            assert not np.shares_memory(one, other)
            np.testing.assert_array_equal(one, copy)
            assert not np.array_equal(one, other)

    def test_outputs_may_be_written_to(self, engine: Engine) -> None:
        expected = engine.infer(*inputs(engine.spec, 2))
        spoilt = engine.infer(*inputs(engine.spec, 2))
        for array in spoilt:
            array[:] = -1
        for array, again in zip(expected, engine.infer(*inputs(engine.spec, 2)), strict=True):
            np.testing.assert_array_equal(array, again)

    def test_inputs_stay_as_they_are(self, engine: Engine) -> None:
        given, kept = inputs(engine.spec, 4), inputs(engine.spec, 4)
        outputs = engine.infer(*given)
        for output in outputs:
            output[:] = 0
        for one, copy in zip(given, kept, strict=True):
            np.testing.assert_array_equal(one, copy)

    def test_frames_need_not_be_contiguous(self, engine: Engine) -> None:
        frame, metrics = inputs(engine.spec, 5)
        expected = engine.infer(frame, metrics)
        wide = np.zeros((*frame.shape[:-1], 2 * frame.shape[-1]), np.float32)
        wide[..., ::2] = frame
        turned = np.ascontiguousarray(frame.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        backwards = np.ascontiguousarray(metrics[:, ::-1])[:, ::-1]
        for strided in (wide[..., ::2], turned, np.asfortranarray(frame)):
            assert not strided.flags.c_contiguous
            for one, other in zip(expected, engine.infer(strided, backwards), strict=True):
                np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize(
        "dtype", [np.float64, np.float16, np.int16, np.uint8, np.bool_, np.complex64, ">f4", object]
    )
    def test_other_types_are_refused(self, engine: Engine, which: int, dtype: Any) -> None:
        given = list(inputs(engine.spec, 6))
        given[which] = given[which].astype(dtype)
        with pytest.raises(CubeError, match=rf"{('frame', 'metrics')[which]}: .*float32 \("):
            engine.infer(*given)

    def test_other_shapes_are_refused(self, engine: Engine) -> None:
        frame, metrics = inputs(engine.spec, 7)
        frames = (frame[0], frame[None], frame[:, 1:], frame[..., 1:], frame[:, :, :0], np.concatenate([frame, frame]))
        for wrong in (*frames, frame.transpose(0, 1, 3, 2) if frame.shape[2] != frame.shape[3] else frame[:, :, 1:]):
            with pytest.raises(CubeError, match="frame: wrong input"):
                engine.infer(wrong, metrics)
        for wrong in (metrics[0], metrics[:, 1:], metrics[None], np.concatenate([metrics, metrics]), metrics.T):
            with pytest.raises(CubeError, match="metrics: wrong input"):
                engine.infer(frame, wrong)

    @pytest.mark.parametrize("wrong", [None, 1.0, [[1.0]], "frame"])
    def test_what_is_no_array_is_refused(self, engine: Engine, wrong: Any) -> None:
        frame, metrics = inputs(engine.spec, 8)
        with pytest.raises(CubeError, match="frame: wrong input"):
            engine.infer(wrong, metrics)
        with pytest.raises(CubeError, match="metrics: wrong input"):
            engine.infer(frame, wrong)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_value_that_is_not_finite_is_refused(self, engine: Engine, value: float) -> None:
        for which, name in enumerate(("frame", "metrics")):
            given = inputs(engine.spec, 9)
            given[which].flat[-1] = value
            with pytest.raises(CubeError, match=f"{name}: the input is not finite"):
                engine.infer(*given)

    def test_an_engine_works_after_it_refused(self, engine: Engine) -> None:
        frame, metrics = inputs(engine.spec, 10)
        expected = engine.infer(frame, metrics)
        with pytest.raises(CubeError):
            engine.infer(frame * np.float32(np.nan), metrics)
        np.testing.assert_array_equal(engine.infer(frame, metrics)[0], expected[0])

    def test_it_tells_what_it_is(self, engine: Engine) -> None:
        told = engine.describe()
        assert {"engine", "version", "device", "computes in"} <= set(told)
        assert all(isinstance(value, str) and value and value.isprintable() for value in told.values())
