"""TensorRT and TensorRT for RTX: an engine file on the GPU that it was built for, one CUDA graph per frame.

Nothing is deserialised before builder, version and GPU are those that the manifest names. On a machine without a GPU
the refusals and TensorRT's own errors were run; what comes after a successful deserialisation was not.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext, suppress
from functools import cache
from types import ModuleType
from typing import Any

from runtime.arrays import Float32
from runtime.errors import BundleError, MachineError, printable
from runtime.signature import Ports, Signature
from runtime.versions import numbers

from .buffers import GpuMemory
from .contract import Built, Engine, EngineOptions
from .cuda import CAPTURE_REFUSED, Cuda, CudaError, Device, open_cuda
from .kernel_cache import kernel_cache
from .tensorrt_libraries import KINDS, load_tensorrt, tensorrt_version

EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
FINALIZE = "run `deploy finalize` here"
LONGEST = 400
"""Characters of TensorRT's own message that an error shows."""


def available(kind: str) -> str | None:
    """Version of `tensorrt` or `tensorrt-rtx`, or None where it is not installed; says nothing of a GPU."""
    return tensorrt_version(kind)


def open_engine(program: bytes, signature: Signature, options: EngineOptions, kind: str | None = None) -> TensorRt:
    """See `runtime.engines.open_engine`.

    Args:
        kind: the engine's name, `tensorrt` or `tensorrt-rtx`; None for whichever built the file.

    Raises:
        BundleError: no engine was built, or another builder than `kind` built it, or for other shapes.
        MachineError: another version or GPU than it was built for, no GPU at all, or too little of its memory.
    """
    built = check_builder(options.built, kind)
    trt = load_tensorrt(built.builder)
    check_version(built, str(trt.__version__))
    cuda = open_cuda()
    device = cuda.device()
    check_gpu(built, device.sm, device.model)
    return TensorRt(trt, cuda, device, program, signature, built, options.precision)


def check_builder(built: Built | None, kind: str | None) -> Built:
    """What built the engine, if there is one that `kind` can load. Raises BundleError."""
    if built is None:
        raise BundleError(
            "TensorRT loads engine files only, and there is none",
            key="engine",
            value=kind,
            remedy=f"leave --engine out, or build for a target whose engine is {kind or ' or '.join(KINDS)}",
        )
    if built.builder not in KINDS or (kind is not None and built.builder != kind):
        raise BundleError(
            "the engine file was not built by the engine that is to load it",
            key="builder",
            value=built.builder,
            remedy=f"{kind or ' or '.join(KINDS)} is needed: {FINALIZE}",
        )
    return built


def check_version(built: Built, installed: str) -> None:
    """Refuse any other version than the builder's own, for both kinds: neither promises that another can load it.

    TensorRT for RTX's documentation says that engines are not compatible between releases. A build number counts where
    both versions have one.
    """
    made, here = numbers(built.version), numbers(installed)
    shared = min(len(made), len(here))
    if shared < 3 or made[:shared] != here[:shared]:
        raise MachineError(
            f"the engine was built by {built.builder} {printable(built.version)}, another version than the one here",
            key="version",
            value=installed,
            remedy=f"{FINALIZE}, or install the version that built it",
        )


def check_gpu(built: Built, sm: str, model: str) -> None:
    """Refuse another GPU than the engine was built for.

    TensorRT itself only warns of another model of the same compute capability, "likely to affect performance or even
    cause errors" (NVIDIA/TensorRT issues 2900 and 3829).

    Raises:
        MachineError: another compute capability, or another model than the one it was built on.
    """
    if built.sm != sm:
        raise MachineError(
            f"the engine was built for a GPU of compute capability {printable(built.sm)}",
            key="sm",
            value=sm,
            remedy=FINALIZE,
        )
    if built.gpu is not None and built.gpu != model:
        raise MachineError(
            f"the engine was built on another model of GPU, {printable(built.gpu)}",
            key="gpu",
            value=model,
            remedy=FINALIZE,
        )


def deserialize(trt: ModuleType, program: bytes) -> tuple[Any, Any]:
    """(runtime, engine) of an engine file; the first must outlive the second. Raises MachineError."""
    recorder = _recorder(trt)
    recorder.first = ""
    runtime = trt.Runtime(recorder)
    engine = runtime.deserialize_cuda_engine(program)
    if engine is None:
        raise _failed(trt, "cannot load the engine file", FINALIZE)
    return runtime, engine


class TensorRt(Engine):
    """A deserialised engine, its one context and its memory."""

    def __init__(
        self,
        trt: ModuleType,
        cuda: Cuda,
        device: Device,
        program: bytes,
        signature: Signature,
        built: Built,
        precision: str,
    ) -> None:
        super().__init__(signature)
        self._trt, self._cuda, self._device, self._built, self._precision = trt, cuda, device, built, precision
        self._kernels = kernel_cache(built.builder, str(trt.__version__), program, device, cuda)
        self._context: Any = None
        self._executable = 0
        self._launches = "CUDA graph"
        self._broken = False
        self._undo = ExitStack()
        try:
            self._open(program)
        except BaseException:
            # CUDA may refuse to free as well: why it could not be opened is the error to tell.
            with suppress(MachineError):
                self._undo.close()
            raise

    def _open(self, program: bytes) -> None:
        """Each step registers its undoing, so that TensorRT's objects go before the memory and the stream they use."""
        trt, undo = self._trt, self._undo
        self._memory = GpuMemory(self._cuda, self._device, self.signature.ports, undo)
        # The runtime goes after the engine that it made.
        held: list[Any] = list(deserialize(trt, program))
        undo.callback(held.clear)
        undo.callback(held.pop)
        _check_signature(trt, held[1], self.signature.ports)
        if self._kernels:
            undo.callback(self._kernels.close)
        self._context = self._new_context(held[1])
        undo.callback(setattr, self, "_context", None)
        undo.callback(self._memory.wait)
        self._enqueue()
        self._memory.wait()
        self._capture()
        if self._kernels:
            self._kernels.keep()

    def infer_impl(self, *inputs: Float32) -> tuple[Float32, ...]:
        if self._context is None:
            raise MachineError("the engine is closed", key="engine", value=self._built.builder, remedy="open it again")
        self._memory.put(*inputs)
        try:
            self._run()
        except MachineError:
            self._broken = True
            raise
        return self._memory.outputs()

    def describe(self) -> dict[str, str]:
        return {
            "engine": self._built.builder,
            "version": str(self._trt.__version__),
            "device": f"{self._device.name or 'GPU'}, compute capability {self._device.sm}",
            "computes in": self._precision,
            "cuda": f"{self._cuda.version}, driver for {self._cuda.driver_version}",
            "launches": self._launches,
            "memory": self._memory.told,
            **({"kernels": self._kernels.told} if self._kernels else {}),
        }

    def close(self) -> None:
        # After a failed frame CUDA refuses to free as well: the frame's own error is the one to tell.
        with suppress(MachineError) if self._broken else nullcontext():
            self._undo.close()

    def _run(self) -> None:
        if self._executable:
            self._cuda.launch(self._executable, self._memory.stream)
        else:
            self._enqueue()
        self._memory.wait()

    def _enqueue(self) -> None:
        self._memory.send()
        _recorder(self._trt).first = ""
        if not self._context.execute_async_v3(self._memory.stream):
            raise _failed(self._trt, "failed on a frame", "check the bundle here with `deploy check`")
        self._memory.fetch()

    def _capture(self) -> None:
        """Make a frame one CUDA graph. Where that is refused, and only then, frames are launched plainly."""
        graph = 0
        try:
            self._cuda.begin_capture(self._memory.stream)
            try:
                self._enqueue()
            finally:
                graph = self._cuda.end_capture(self._memory.stream)
            self._executable = self._cuda.instantiate(graph)
            self._undo.callback(self._cuda.destroy_executable, self._executable)
        except MachineError as error:
            if isinstance(error, CudaError) and error.code not in CAPTURE_REFUSED:
                raise
            self._cuda.forget_error()
            self._launches = f"plain, a CUDA graph was refused: {printable(error.problem)}"
        finally:
            if graph:
                self._cuda.destroy_graph(graph)
        # Either way a frame must run before the engine is handed out.
        self._run()

    def _new_context(self, engine: Any) -> Any:
        context = self._kernels.new_context(engine) if self._kernels else engine.create_execution_context()
        if context is None:
            raise _failed(self._trt, "cannot make an execution context", "free memory of the GPU")
        for name, address in self._memory.addresses.items():
            if not context.set_tensor_address(name, address):
                raise _failed(self._trt, f"refuses the buffer of {name}", FINALIZE)
        return context


def _check_signature(trt: ModuleType, engine: Any, ports: Ports) -> None:
    shapes = ports.shapes
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode, dtype = engine.get_tensor_mode(name), engine.get_tensor_dtype(name)
        found[name] = (mode, dtype, tuple(engine.get_tensor_shape(name)))
    for name, shape in shapes.items():
        mode = trt.TensorIOMode.INPUT if name in ports.inputs else trt.TensorIOMode.OUTPUT
        if found.get(name) != (mode, trt.DataType.FLOAT, shape):
            raise BundleError(
                "the engine is not the one that the manifest describes",
                key=name,
                value=" ".join(map(str, found[name])) if name in found else None,
                remedy=f"float32 {shape} expected; {FINALIZE}",
            )
    if set(found) != set(shapes):
        raise BundleError(
            f"the engine has other inputs or outputs than {', '.join(shapes)}",
            value=sorted(found),
            remedy=FINALIZE,
        )


@cache
def _recorder(trt: ModuleType) -> Any:
    """One for the process: TensorRT keeps a pointer to the first that it is given, and never lets go of it.

    Its `first` is the first error since somebody emptied it: those that follow were seen to be its consequences.
    """

    class Recorder(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.first = ""

        def log(self, severity: Any, msg: str) -> None:
            if not self.first and severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.first = msg

    return Recorder()


def _failed(trt: ModuleType, problem: str, remedy: str) -> MachineError:
    said = " ".join(_recorder(trt).first.split())[:LONGEST]
    return MachineError(f"TensorRT {problem}: {said or 'it does not say why'}", key="engine", remedy=remedy)
