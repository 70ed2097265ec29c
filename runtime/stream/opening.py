"""A stream from an open bundle and an open source: what does not go together is refused here, and files are opened."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from runtime.bundle import Bundle
from runtime.errors import CubeError, InputError, MachineError
from runtime.files.disk import available_memory
from runtime.files.envi_text import GAIN_KEYS, listed
from runtime.lines import LineFormat
from runtime.meaning import Asked
from runtime.meaning.marks import standing
from runtime.radiometry import Calibration, Radiometry, load_radiometry
from runtime.record.layout import as_recorded
from runtime.record.writer import LineWriter, open_line_writer
from runtime.signature import Signature
from runtime.sinks.callback import Callback
from runtime.sinks.contract import Block, Sink
from runtime.sinks.restored_file import RestoredFile
from runtime.sources import Source, open_source
from runtime.stated import Stated

from .intake import Log
from .pipeline import NamedSink, Restoring, Stream, StreamOptions, bytes_needed
from .preparing import RestorerFacts
from .sampling import SourceMeaning, source_meaning
from .selftest import SelfTest

__all__ = ["Fit", "StreamOptions", "fit", "open_source", "open_stream"]
EXACT_BYTES = 2
"""float32 holds every whole number of so many bytes."""
FLOAT32 = np.dtype(np.float32)
MEMORY = "stream"
"""Key of the error that a stream is too large for this machine's memory."""
Output = Literal["input", "float32"]


@dataclass(frozen=True)
class Fit:
    """How the lines of a source go through a network.

    Attributes:
        lines: as they come, with the scale that somebody said for them.
        facts: what the network restores.
        radiometry: from digital numbers to the unit range.
        output: format of the restored lines.
        about: the network in two words, for headers.
        unsaid: nobody said what stands for 1.0 in these lines; the bundle's scale is taken.
        notes: what the source's numbers are taken to mean, for people.
        doubts: what a person should read before trusting the result.
    """

    lines: LineFormat
    facts: RestorerFacts
    radiometry: Radiometry
    output: LineFormat
    about: str
    unsaid: bool
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def check_memory(self, options: StreamOptions, sinks: int) -> None:
        """Refuse a stream with so many sinks that this machine cannot hold. Raises MachineError."""
        needed = bytes_needed(self.facts, options, self.lines, self.output, sinks)
        there, frame = available_memory(), self.facts.frame[0]
        if needed > there:
            raise MachineError(
                f"the lines and frames on their way take {needed / 2**20:.0f} MiB, and {there / 2**20:.0f} are free",
                key=MEMORY,
                value=f"{self.output.bands} bands x {self.lines.samples} samples, frames of {frame} lines",
                remedy="choose bands (stream.bands), fewer stream.line_buffers, or a bundle with shorter frames",
            )


def open_stream(
    bundle: Bundle,
    source: Source,
    *,
    record: str | Path | None = None,
    restored: str | Path | None = None,
    sinks: Sequence[NamedSink | Sink | Callable[[Block], object]] = (),
    radiometry: Mapping[str, Any] | None = None,
    scale: float | None = None,
    ignore_values: Sequence[float] | None = None,
    bands: Sequence[int] | None = None,
    output: Output = "input",
    options: StreamOptions | None = None,
    log: Log = lambda kind, **fields: None,
) -> Stream:
    """A stream that is ready for `run()`, which closes what is opened here and the sinks, not bundle and source.

    Args:
        bundle: open.
        source: open.
        record: folder of the raw lines; a rerun appends to it, as to `restored`, the folder of the restored ones.
        sinks: what else restored lines go to: sinks, with a policy where one is named, or functions of a block.
        radiometry: see `runtime.radiometry.settings`; paths from this folder.
        scale: number that stands for 1.0, instead of the source's and the bundle's.
        ignore_values: that mark missing values, instead of the source's.
        bands: places of the source's bands that are restored, from 0; None restores all, in groups.
        output: type of the restored lines: the input's type and scale, or float32 in the unit range.
        options: how it runs.
        log: takes events, see docs/streaming.md.

    Raises:
        InputError, CubeError, ConfigError: source, network and settings do not go together.
        MachineError: there is too little memory, or a folder cannot be written.
    """
    asked = Asked(scale, None if ignore_values is None else tuple(ignore_values))
    fitted = fit(bundle, source, asked, chosen=bands, radiometry=radiometry or {}, output=output)
    for doubt in fitted.doubts:
        warnings.warn(doubt, stacklevel=2)
    options = options or StreamOptions()
    given = [sink if isinstance(sink, NamedSink | Sink) else Callback(sink) for sink in sinks]
    named = [s if isinstance(s, NamedSink) else NamedSink(f"sink-{n}", s, s.policy) for n, s in enumerate(given, 1)]
    fitted.check_memory(options, len(named) + (restored is not None))
    with ExitStack() as opened:
        raw = None if record is None else open_record(source, fitted.lines, Path(record), opened)
        made = None if restored is None else open_restored(bundle, source, fitted, Path(restored), opened)
        kept = [] if made is None else [principal(made)]
        stream = Stream(
            source, restoring(bundle, fitted, options), raw, [*kept, *named], options,
            first_sequence=behind(raw, made), log=log,
        )  # fmt: skip
        opened.pop_all()
    return stream


def principal(writer: LineWriter) -> NamedSink:
    """The file of restored lines as a sink: lines count as restored when it has them."""
    return NamedSink("restored", RestoredFile(writer), "block", principal=True)


def restoring(bundle: Bundle, fitted: Fit, options: StreamOptions) -> Restoring:
    """What restores the lines of a source that fits, watched as `options` say."""
    watch = SelfTest(bundle, bundle.again, options.selftest_seconds, options.refresh_seconds)
    return Restoring(fitted.facts, bundle.engine.infer, fitted.radiometry, fitted.output, watch)


def recorded_format(source: Source, asked: Asked, record: Path, radiometry: Mapping[str, Any]) -> LineFormat:
    """Format of lines that are recorded only: what a bundle would have made it, so that one may restore on later."""
    lines = replace(source.format, scale=source.format.scale if asked.scale is None else asked.scale)
    # Marks and what is said of a scale are the same whatever the bundle's is, but for numbers far beyond it.
    scale = float(np.iinfo(lines.dtype).max) if lines.dtype.kind in "iu" else 1.0
    with suppress(CubeError):
        lines, meaning = _meant(source, asked, scale, radiometry)
        lines = lines if radiometry else replace(lines, scale=_own_scale(meaning))
    return as_recorded(record / "lines.lock", lines)


def behind(*writers: LineWriter | None) -> int:
    """The number of the first line behind those of all files."""
    return max((writer.next_sequence for writer in writers if writer is not None), default=0)


def open_record(
    source: Source,
    lines: LineFormat,
    record: Path,
    opened: ExitStack,
    *,
    limit: int | None = None,
    segment_bytes: int | None = None,
) -> LineWriter:
    """The raw record, a ring of `limit` bytes where there is one; `opened` closes it."""
    gains = _gain_fields(source.stated) | _bad_fields(source.stated.bad, range(lines.bands))
    raw = open_line_writer(
        record,
        "lines",
        lines,
        fields={"description": f"raw lines of {', '.join(source.describe().values())}", **gains},
        meaning=" ".join(f"{key} {text}" for key, text in gains.items()),
        limit=limit,
        segment_bytes=segment_bytes,
    )
    return opened.enter_context(raw)


def open_restored(bundle: Bundle, source: Source, fitted: Fit, restored: Path, opened: ExitStack) -> LineWriter:
    """The file of restored lines; `opened` closes it."""
    told, facts = ", ".join(source.describe().values()), fitted.facts
    fields: dict[str, str | None] = {"description": f"lines of {told} restored by {fitted.about}{_by(bundle)}"}
    if fitted.output.bands == len(facts.chosen or range(fitted.lines.bands)):
        fields |= _bad_fields(source.stated.bad, facts.chosen or range(fitted.lines.bands))
    if fitted.unsaid:
        # A scale that nobody said does not become the file's word.
        fields["reflectance scale factor"] = None
    places = "all" if facts.chosen is None else ",".join(map(str, facts.chosen))
    network, radiometry = bundle.manifest.network.checkpoint_sha256[:12], fitted.radiometry.digest()[:12]
    prompt = f", {bundle.prompts.identity}" if bundle.prompts.chosen else ""
    precision = bundle.choice.precision
    meaning = f"network {network}, precision {precision}, bands {places}, radiometry {radiometry}{prompt}"
    return opened.enter_context(open_line_writer(restored, "restored", fitted.output, fields=fields, meaning=meaning))


def _by(bundle: Bundle) -> str:
    return f" with the prompt {bundle.prompts.chosen}" if bundle.prompts.chosen else ""


def _gain_fields(stated: Stated) -> dict[str, str]:
    """What a source states of gains and offsets, as header fields of its raw lines."""
    values = stated.gains, stated.offsets, stated.reflectance_gains, stated.reflectance_offsets
    return {key: listed(value) for key, value in zip(GAIN_KEYS, values, strict=True) if value is not None}


def _bad_fields(bad: Sequence[int], bands: Sequence[int]) -> dict[str, str]:
    """The list of good bands for the header of these bands; none where the source has no bad ones."""
    return {"bbl": "{" + ", ".join(str(int(band not in bad)) for band in bands) + "}"} if bad else {}


def fit(
    bundle: Bundle,
    source: Source,
    asked: Asked | None = None,
    *,
    chosen: Sequence[int] | None = None,
    radiometry: Mapping[str, Any],
    folder: str | Path = ".",
    output: Output = "input",
) -> Fit:
    """See `open_stream`; `folder` is what the paths of `radiometry` are relative to."""
    manifest = bundle.manifest
    signature = manifest.signature
    measured = signature.measured
    lines, asked = source.format, asked or Asked()
    floats = lines.dtype.kind == "f"
    chosen = None if chosen is None else _checked(chosen, lines.bands)
    count = lines.bands if chosen is None else len(chosen)
    if measured.lines != signature.restored.lines:
        raise InputError(
            "the network's frames come out with other lines, and a stream restores line for line",
            file=bundle.path,
            key="signature",
            remedy="restore files with `deploy run`",
        )
    if signature.tiling == "fixed" and lines.samples != measured.samples:
        remedy = f"give lines of {measured.samples} samples"
        problem = "the network takes lines of one width, which have one place only"
        raise CubeError(problem, key="samples", value=lines.samples, remedy=remedy)
    if count > measured.bands and not signature.band_groups:
        choose = f"choose {measured.bands} of them: stream.bands"
        remedy = "give measurements of one band" if signature.is_area else choose
        problem = "the source has more bands than the network, which does not restore them in groups"
        raise CubeError(problem, key="bands", value=count, remedy=remedy)
    if count < measured.bands:
        remedy = f"the network restores {measured.bands} bands"
        problem = (
            "the source has fewer bands than the network" if chosen is None else "fewer bands than the network has"
        )
        raise CubeError(problem, key="bands", value=count, remedy=remedy)
    try:
        lines, meaning = _meant(source, asked, manifest.scale, radiometry, keeps=signature.alike, fills=signature.fills)
    except CubeError as error:
        error.file = error.file or source.describe().get("path")
        raise
    bare = not floats and lines.scale is None
    unsaid = meaning.scale_from == "bundle" or (
        bare and bool(radiometry) and "scale" not in radiometry and radiometry.get("output") != "reflectance"
    )
    if radiometry:
        detector = _detector(signature, lines)
        radiometric = load_radiometry(radiometry, replace(detector, scale=manifest.scale) if bare else detector, folder)
    else:
        lines, radiometric = _converted(lines, meaning, signature)
    return Fit(
        lines,
        RestorerFacts(
            signature,
            manifest.overlap,
            bundle.prompts,
            chosen,
            lines.wavelengths,
            meaning.marks,
            tuple(meaning.bad),
            asked.marks != () and not source.stated.photograph,
            asked.constant_bands or ("restore" if source.stated.photograph else None),
            bundle.restored_range,
            meaning.lost,
        ),
        radiometric,
        _output(bundle, lines, chosen, radiometric.scale, radiometry, output, linear="gains" in radiometric.describe()),
        f"{manifest.network.architecture} {bundle.choice.precision}",
        unsaid,
        meaning.notes,
        meaning.doubts,
    )


def _meant(
    source: Source,
    asked: Asked,
    scale: float | None,
    radiometry: Mapping[str, Any],
    *,
    keeps: bool = True,
    fills: bool = False,
) -> tuple[LineFormat, SourceMeaning]:
    """What a source's numbers mean to a bundle of that scale, and the lines' format with it. Raises CubeError."""
    lines = source.format
    limit = _limit(lines, radiometry)
    meaning = source_meaning(source, asked, scale, converts=not radiometry, keeps=keeps, saturation=limit, fills=fills)
    said = lines.scale if asked.scale is None else asked.scale
    return replace(lines, scale=said, ignore_value=standing(meaning.marks, lines.dtype)), meaning


def _own_scale(meaning: SourceMeaning) -> float | None:
    """The scale that holds, None where the bundle's or gains do."""
    made = meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    return None if linear or meaning.scale_from in (None, "bundle") else made.scale


def _limit(lines: LineFormat, radiometry: Mapping[str, Any]) -> float | None:
    """At which the detector saturates, as far as somebody says it; settings that are wrong are refused later."""
    said = radiometry.get("saturation", lines.saturation)
    return said if isinstance(said, int | float) else None


def _detector(signature: Signature, lines: LineFormat) -> LineFormat:
    """The elements of the detector as a line's: of an area detector its rows stand in the place of bands."""
    return replace(lines, bands=signature.measured.lines, wavelengths=None) if signature.is_area else lines


def _converted(lines: LineFormat, meaning: SourceMeaning, signature: Signature) -> tuple[LineFormat, Radiometry]:
    """Lines with the scale that holds, None where the bundle's or gains do; and what converts them."""
    made = meaning.conversion
    linear = made.gains is not None or made.offsets is not None
    lines = replace(lines, scale=_own_scale(meaning))
    gains = np.ones(lines.bands) if made.gains is None else made.gains
    offsets = np.zeros(lines.bands) if made.offsets is None else made.offsets
    calibration = Calibration(
        scale=made.scale,
        dark=(-offsets / gains)[:, None] if made.offsets is not None else None,
        factor=gains[:, None] if linear else None,
        saturation=lines.saturation,
    )
    saturation = "not known" if lines.saturation is None else f"{lines.saturation:g} DN"
    facts = {"output": "dn", "scale": f"{made.scale:g}", "saturation": saturation, "replaced": "none"}
    return lines, Radiometry(
        _detector(signature, lines), calibration, facts | ({"gains": "the source's"} if linear else {})
    )


def _checked(chosen: Sequence[int], bands: int) -> tuple[int, ...]:
    beyond = [band for band in chosen if not 0 <= band < bands]
    if beyond:
        raise InputError("the source has no such band", key="stream.bands", value=beyond[0], remedy=f"0 to {bands - 1}")
    if len(set(chosen)) < len(chosen):
        raise InputError("a band is chosen twice", key="stream.bands", remedy="name each band once")
    return tuple(chosen)


def nearest_bands(lines: LineFormat, trained: Sequence[float] | None) -> tuple[int, ...]:
    """The source's bands that lie nearest to the wavelengths of the network's. Raises InputError."""
    if lines.wavelengths is None or trained is None:
        raise InputError(
            "the wavelengths of source and network are needed to choose bands by them",
            key="stream.nearest_bands",
            remedy="give stream.wavelengths, or choose stream.bands",
        )
    apart = np.abs(np.asarray(lines.wavelengths)[None] - np.asarray(trained)[:, None])
    nearest = tuple(int(band) for band in apart.argmin(axis=1))
    if len(set(nearest)) < len(nearest):
        raise InputError(
            f"only {len(set(nearest))} of the source's bands lie near the network's {len(nearest)}",
            key="stream.nearest_bands",
            remedy="choose stream.bands by number, or restore all bands in groups",
        )
    return nearest


def _output(
    bundle: Bundle,
    lines: LineFormat,
    chosen: tuple[int, ...] | None,
    scale: float,
    settings: Mapping[str, Any],
    asked: Output,
    *,
    linear: bool,
) -> LineFormat:
    """Restored lines: the input's type and scale, or float32 in the unit range where that is asked for or needed."""
    signature, centres = bundle.manifest.signature, bundle.manifest.wavelengths
    bands = range(lines.bands) if chosen is None else chosen
    if not signature.alike:
        count = len(bands) if signature.band_groups else signature.restored.bands
        known = tuple(centres) if centres and len(centres) == count else None
        samples = lines.samples if signature.tiling == "free" else signature.restored.samples
        return LineFormat(count, samples, FLOAT32, None, None, known)
    wavelengths = None if lines.wavelengths is None else tuple(lines.wavelengths[band] for band in bands)
    size, mark = (len(bands), lines.samples), lines.ignore_value
    if asked == "float32" or lines.dtype.kind not in "iu" or linear or settings.get("output", "dn") != "dn":
        return LineFormat(*size, FLOAT32, None, None, wavelengths, mark)
    if lines.dtype.itemsize > EXACT_BYTES:
        problem = f"float32, in which lines are restored, does not hold every {lines.dtype}"
        raise InputError(problem, key="stream.output", value="input", remedy="set stream.output to float32")
    # Behind radiometry the detector's limit is another number in every element.
    return LineFormat(*size, lines.dtype, scale, None if settings else lines.saturation, wavelengths, mark)
