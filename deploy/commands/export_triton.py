"""`deploy export-triton`: a bundle as a model repository of Triton Inference Server.

Three models: prompt metrics in the Python backend, the network in ONNX Runtime or TensorRT, and an ensemble of both.
Formats: `model_config.proto` of triton-inference-server/common and "Model Configuration" of its user guide; the axis of
length 1 that the network has and callers need not know is put in by `reshape`, as that page describes.
"""

from pathlib import Path
from typing import Any

import click

from runtime.errors import plain

from .. import console
from .options import examples, json_option, prompt_option, trust_option


@click.command(
    "export-triton",
    epilog=examples(
        "deploy export-triton build/bundle --out build/models",
        "deploy export-triton build/bundle --out build/models --name restorer --replace",
        "deploy export-triton orin --graph --out build/models",
    ),
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the model repository.")
@click.option("--name", help="Name of the models.  [default: the checkpoint's]")
@click.option("--graph", is_flag=True, help="Serve the ONNX graph in ONNX Runtime, whatever the bundle's engine is.")
@prompt_option
@click.option("--replace", is_flag=True, help="Replace what is at --out.")
@trust_option
@json_option
def command(
    bundle: Path, out: Path, name: str | None, graph: bool, prompt: str | None, replace: bool
) -> dict[str, Any]:
    """Write a model repository for Triton Inference Server: frame in, restored frame and experts' weights out.

    The repository's README says how to serve it and how to query it.
    """
    from runtime.bundle_files import verified_bundle

    from ..folders import refuse_folder, write_folder
    from ..triton.repository import (
        ENGINE_SUFFIX,
        METRICS_SUFFIX,
        OTHER_PRECISION,
        choose_engine,
        model_name,
        refuse_overlap,
        repository_files,
    )

    refuse_folder(out, replace)
    refuse_overlap(out, bundle)
    contents = verified_bundle(bundle)
    manifest = contents.manifest
    chosen = model_name(name, manifest)
    served = choose_engine(contents, bundle, graph=graph)
    if served.precision != plain(contents.choice.precision):
        console.warn(OTHER_PRECISION)
    repository = repository_files(manifest, contents.files, served, chosen, prompt)
    write_folder(out, repository, replace=replace)
    ports = manifest.signature.ports
    console.say(f"ensemble   {chosen}: {' -> '.join(ports.inputs)} -> {', '.join(ports.outputs)}")
    console.say(f"engine     {chosen}{ENGINE_SUFFIX}: {served.text}, on {'a GPU' if served.gpu else 'the CPU'}")
    prompts = manifest.signature.prompts
    if prompts:
        told = ", ".join(p.of if p.kind == "metrics" else p.name for p in prompts)
        console.say(f"metrics    {chosen}{METRICS_SUFFIX}: {told}, needs damp-deploy in the server's Python")
    if manifest.metrics_graph is not None:
        console.say(f"           they are NumPy's on the host: {manifest.metrics_graph} is not served")
    console.say(f"wrote      {out}; its README.md says how to serve and query it", "bold green")
    return {
        "out": str(out),
        "name": chosen,
        "models": [chosen, chosen + METRICS_SUFFIX, chosen + ENGINE_SUFFIX] if prompts else [chosen],
        "engine": {"backend": served.backend, "file": served.file, "gpu": served.gpu},
        "precision": served.precision,
        "files": sorted(repository),
    }
