"""A model repository for Triton Inference Server."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from string import Template

from runtime.bundle_files import Contents
from runtime.engines import GPU_ENGINES
from runtime.errors import InputError, MachineError, plain
from runtime.manifest import Manifest

NAME_CHARACTERS = 64
METRICS_SUFFIX, ENGINE_SUFFIX = "_metrics", "_engine"
CONFIG = "config.pbtxt"
BACKENDS = {"onnxruntime": 'backend: "onnxruntime"', "tensorrt": 'platform: "tensorrt_plan"'}
"""Backend -> the line of a configuration that names it."""
FLOAT32 = (
    'optimization { execution_accelerators { gpu_execution_accelerator { name: "cuda" '
    'parameters { key: "use_tf32" value: "0" } } } }'
)
"""CUDA's provider would compute float32 as TF32, with ten bits, without this word."""
CUDA_NOTE = """
The graph runs in ONNX Runtime's CUDA provider, with TF32 off. Triton's ONNX Runtime backend cannot forbid that single
nodes fall back to the CPU: `deploy inspect BUNDLE --engine onnxruntime-cuda` on a machine with that GPU tells whether
all of them run on it.
"""
OTHER_PRECISION = "the bundle computes in bf16, this repository in fp32: its numbers are not those that were measured"
EXPERTS = '\nprint("experts of each layer:", [list(np.flatnonzero(row)) for row in answer.as_numpy("$name")])'


@dataclass(frozen=True)
class Served:
    """What serves the network.

    Attributes:
        backend: one of `BACKENDS`.
        file: its file inside the model's version folder.
        program: the content of that file.
        gpu: whether it runs on a GPU.
        precision: of the graph or engine that is served.
        text: what it is, for people.
        note: what else they have to know, a paragraph or nothing.
    """

    backend: str
    file: str
    program: bytes
    gpu: bool
    precision: str
    text: str
    note: str = ""


def model_name(asked: str | None, manifest: Manifest) -> str:
    """The name asked for, or the checkpoint's with anything but letters, digits, `-` and `_` made `_`.

    Raises:
        InputError: the name asked for is not one that Triton and every file system take.
    """
    if asked is None:
        made = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(manifest.network.checkpoint).stem)[:NAME_CHARACTERS]
        return made.lstrip("-_") or manifest.network.architecture
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_CHARACTERS - 1}}}", asked):
        raise InputError(
            "cannot be the name of a model",
            key="--name",
            value=asked,
            remedy=f"letters, digits, - and _, at most {NAME_CHARACTERS}, the first a letter or digit",
        )
    return asked


def choose_engine(contents: Contents, bundle: Path, *, graph: bool) -> Served:
    """What serves the bundle's network: its engine file where it has one, else its graph.

    Args:
        contents: of the bundle.
        bundle: its folder, for errors.
        graph: the graph in any case.

    Raises:
        InputError: Triton has no backend for its engine, and nobody asked for another one.
        MachineError: the engine is not built yet, or Triton has no backend for it.
    """
    manifest, made, chosen = contents.manifest, contents.choice.engine, contents.choice.precision
    asks = "say --graph to serve the ONNX graph in ONNX Runtime instead"
    if graph or (made is None and manifest.deferred is None):
        if not graph and not manifest.target.engine.startswith("onnxruntime"):
            raise InputError(
                "the bundle's engine is not one of Triton's",
                file=bundle,
                key="target.engine",
                value=f"{manifest.target.engine}, {chosen}",
                remedy=f"{asks}{', in fp32' if chosen == 'bf16' else ''}",
            )
        # bfloat16 is an engine's own arithmetic on the float32 graph, and ONNX Runtime does not do it.
        other = chosen == "bf16"
        gpu, precision = manifest.target.engine in GPU_ENGINES, "fp32" if other else plain(chosen)
        note = (CUDA_NOTE if gpu else "") + (f"\nBeware: {OTHER_PRECISION}.\n" if other else "")
        program, text = contents.files[manifest.graphs[chosen]], f"the {precision} graph in ONNX Runtime"
        return Served("onnxruntime", "model.onnx", program, gpu, precision, text, note)
    if made is None:
        raise MachineError(
            "the bundle's engine is not built yet",
            file=bundle,
            value=manifest.deferred,
            remedy=f"run `deploy finalize` on the target, or {asks}",
        )
    if made.builder != "tensorrt":
        raise MachineError("Triton has no backend for this engine", file=bundle, value=made.builder, remedy=asks)
    return Served(
        "tensorrt",
        "model.plan",
        contents.files[made.path],
        gpu=True,
        precision=plain(chosen),
        text=f"an engine of TensorRT {made.version} for compute capability {made.sm}",
        note=f"\nThe engine runs on GPUs of compute capability {made.sm} and in releases of Triton that bring TensorRT "
        f"{made.version};\nNVIDIA's support matrix of Triton lists them.\n",
    )


def repository_files(
    manifest: Manifest, contents: Mapping[str, bytes], served: Served, name: str, prompt: str | None = None
) -> dict[str, bytes]:
    """The model repository: path inside it -> content. `name` is one that `model_name` gave, `prompt` of the bundle's.

    A network that takes a frame alone is served as one model; others as an ensemble, whose other model makes what they
    take beside it.
    """
    signature = manifest.signature
    if signature.embedding is not None:
        raise InputError(
            "the network's embedding is computed by a graph of its own, which is not served",
            key="signature",
            value=signature.embedding.name,
            remedy="restore with `deploy run` or `deploy stream`",
        )
    ports = signature.ports
    frame, restored = signature.measured.name, signature.restored.name
    # Callers know no axis of one frame.
    given = {frame: ports.inputs[frame][1:], **{p.name: _inner(p.shape) for p in signature.prompts}}
    made = {restored: ports.outputs[restored][1:], **{s.name: s.shape for s in signature.side}}
    metrics_model = name + METRICS_SUFFIX
    engine_model = name + ENGINE_SUFFIX if signature.prompts else name
    cpu_threads = [] if served.gpu or manifest.target.threads is None else [str(manifest.target.threads)]
    engine = [
        *_head(engine_model, BACKENDS[served.backend]),
        *_tensors("input", given, ports.inputs),
        *_tensors("output", made, {restored: ports.outputs[restored]}),
        _instances(gpu=served.gpu),
        *([FLOAT32] if served.gpu and served.backend == "onnxruntime" else []),
        *[_parameter("intra_op_thread_count", threads) for threads in cpu_threads],
    ]
    files = {
        f"{engine_model}/{CONFIG}": _lines(engine),
        f"{engine_model}/1/{served.file}": served.program,
        "README.md": _readme(manifest, served, name).encode(),
    }
    if not signature.prompts:
        return files
    prompts = tuple(p.name for p in signature.prompts)
    metrics = [
        *_head(metrics_model, 'backend: "python"'),
        *_tensors("input", {frame: given[frame]}),
        *_tensors("output", {prompt: given[prompt] for prompt in prompts}),
        _instances(gpu=False),
        *([_parameter("metric_set", signature.metrics.of)] if signature.metrics else []),
    ]
    ensemble = [
        *_head(name, 'platform: "ensemble"'),
        *_tensors("input", {frame: given[frame]}),
        *_tensors("output", made),
        "ensemble_scheduling {",
        *_step(metrics_model, (frame,), prompts),
        *_step(engine_model, (frame, *prompts), tuple(made)),
        "}",
    ]
    return files | {
        f"{name}/{CONFIG}": _lines(ensemble),
        # Triton wants a version of an ensemble too, and git keeps no empty folder.
        f"{name}/1/.keep": b"",
        f"{metrics_model}/{CONFIG}": _lines(metrics),
        f"{metrics_model}/1/model.py": _packaged("model.py").encode(),
        **{f"{metrics_model}/1/{p}.npy": contents[of] for p, of in manifest.constants(prompt).items()},
    }


def _inner(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _readme(manifest: Manifest, served: Served, name: str) -> str:
    signature = manifest.signature

    def told(shapes: Mapping[str, tuple[int, ...]]) -> str:
        return ", ".join(f"`{port}` {list(_inner(shape))}" for port, shape in shapes.items())

    ports = signature.ports
    frame = {signature.measured.name: signature.measured.shape}
    prompts = {p.name: p.shape for p in signature.prompts}
    rows = []
    if prompts:
        how = f"prompt metrics `{signature.metrics.of}`, in NumPy on the host" if signature.metrics else "constants"
        rows += [
            (name, "ensemble of the other two: ask this one", told(frame), told(ports.outputs)),
            (name + METRICS_SUFFIX, how, told(frame), told(prompts)),
        ]
    engine_model = name + ENGINE_SUFFIX if prompts else name
    rows.append((engine_model, served.text, told(ports.inputs), told(ports.outputs)))
    return Template(_packaged("repository.md")).substitute(
        name=name,
        models="\n".join(f"| `{model}` | {what} | {given} | {made} |" for model, what, given, made in rows),
        bands=signature.measured.bands,
        lines=signature.measured.lines,
        samples=signature.measured.samples,
        note=served.note,
        gpus=" --gpus=all" if served.gpu else "",
        frame=signature.measured.name,
        restored=signature.restored.name,
        experts=Template(EXPERTS).substitute(name=signature.routing.name) if signature.routing else "",
    )


def refuse_overlap(out: Path, bundle: Path) -> None:
    """A repository that lay in the bundle, or in its place, would end it."""
    there, here = out.resolve(), bundle.resolve()
    if there == here or there in here.parents or here in there.parents:
        raise InputError("lies in the bundle, or holds it", file=out, key="--out", remedy="give another --out")


def _packaged(name: str) -> str:
    return package_files("deploy.triton").joinpath(name).read_text(encoding="utf-8")


def _lines(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode("ascii")


def _head(name: str, backend: str) -> list[str]:
    return [f'name: "{name}"', backend, "max_batch_size: 0"]


def _tensors(
    kind: str, shapes: Mapping[str, Sequence[int]], inner: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Inputs or outputs; `inner` has the shapes of those that the network has with more axes than callers."""
    lines = []
    for name, shape in shapes.items():
        reshape = f" reshape {{ shape: {list(inner[name])} }}" if inner and name in inner else ""
        lines.append(f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: {list(shape)}{reshape} }}')
    return lines


def _instances(*, gpu: bool) -> str:
    return f"instance_group {{ count: 1 kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }}"


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def _step(model: str, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """A step of an ensemble whose tensors have the model's own names."""
    maps = [
        f'    {kind} {{ key: "{n}" value: "{n}" }}'
        for kind, names in (("input_map", inputs), ("output_map", outputs))
        for n in names
    ]
    return ["  step {", f'    model_name: "{model}"', "    model_version: -1", *maps, "  }"]
