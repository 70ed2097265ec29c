"""What was made of a bundle where it flies: its engine, the precision it computes in, and the proof.

`made.json` lies beside the ground's `manifest.json`, which nobody rewrites, and belongs to that one alone.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from .errors import BundleError
from .manifest import MANIFEST, FileRecord, Manifest, Part, Sealed, parse
from .signature import InnerPath

MADE = "made.json"


class EngineFile(Part):
    """An engine built for one kind of GPU, and what built it.

    Attributes:
        path: the engine.
        builder: `tensorrt` or `tensorrt-rtx`.
        version: of the builder.
        sm: compute capability that it was built for.
        gpu: model of the GPU that it was built and proved on; None where it was built ahead of time.
        graph_sha256: the graph that it was built from.
        options: what the builder was told.
        layers: list of its layers (JSON), where there is one.
        log: what the builder said.
    """

    path: InnerPath
    builder: str
    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){1,4}$")]
    sm: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")]
    gpu: Annotated[str, Field(max_length=300)] | None = None
    graph_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    options: dict[str, Any]
    layers: InnerPath | None = None
    log: InnerPath | None = None


class Choice(Part):
    """What runs of a bundle.

    Attributes:
        precision: of the graph or engine: the manifest's choice, or one of its rivals.
        why: it is that one.
        tolerance: largest difference of the restored golden frame in it, as a share of its range.
        engine: the engine file; None where the engine loads the graph, and where it is not built yet.
    """

    precision: str
    why: str
    tolerance: float
    engine: EngineFile | None = None


class Made(Sealed):
    """Content of `made.json`.

    Attributes:
        manifest_sha256: the `manifest.json` that it belongs to.
        choice: what runs, with its engine file.
        proof: how the engine was built and what its proof showed: times, memory, difference, what it says of itself.
        files: the engine's files.
    """

    called: ClassVar[str] = "the record of the engine"
    version: ClassVar[int] = 1
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    choice: Choice
    proof: dict[str, Any]
    files: dict[InnerPath, FileRecord]


def parse_made(data: bytes, manifest: Manifest, manifest_sha256: str, *, file: object) -> Made:
    """Read `made.json` and hold it against the manifest beside it, whose own files are known to be there.

    Raises:
        BundleError: it is damaged, altered, of another manifest or of a version this program does not know.
    """
    made = parse(data, Made, file=file)
    choice, engine, target = made.choice, made.choice.engine, manifest.target
    own = {engine.path, engine.layers, engine.log} - {None} if engine else set()
    if made.manifest_sha256 != manifest_sha256:
        problem = "the engine was made for another manifest"
    elif manifest.tolerances.get(choice.precision) != choice.tolerance:
        problem = "the engine is of a precision or tolerance that the manifest does not allow"
    elif engine is None or made.files.keys() != own or own & {MANIFEST, *manifest.files}:
        problem = "does not list the files of one engine"
    elif (engine.builder, engine.sm) != (target.engine, target.sm):
        problem = "the engine is for another target"
    elif engine.graph_sha256 != manifest.files[manifest.graphs[choice.precision]].sha256:
        problem = "the engine was built from another graph"
    else:
        return made
    raise BundleError(problem, file=file, remedy="copy the bundle again, or build its engine again")
