"""What `deploy stream` runs: the files, sinks and options of a stream, opened, and what people are told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle
from runtime.errors import DeployError, InputError
from runtime.lines import LineFormat
from runtime.meaning import Asked
from runtime.meaning.numbers import DIM_SHARE, UNIT_LIMIT
from runtime.meaning.words import wavelength_doubt
from runtime.record.index import runs_of, stems, without
from runtime.record.writer import LineWriter
from runtime.sinks import Sink, SinkOptions, StreamFacts, open_sink
from runtime.sinks.quicklook import Scroll
from runtime.sinks.spectra import Spectra
from runtime.sources import Source
from runtime.stream.opening import (
    Fit,
    behind,
    fit,
    nearest_bands,
    open_record,
    open_restored,
    principal,
    recorded_format,
    restoring,
)
from runtime.stream.pipeline import NamedSink, Restoring, StreamOptions
from runtime.stream.restoration import restoration_off
from runtime.stream.snapshot import Snapshot, Spool

from .. import console
from ..config.stream import StreamSection

SHOWN = 5
"""Runs of lines that were not restored that are told one by one."""


@dataclass(frozen=True)
class Outward:
    """What a stream tells beside its files.

    Attributes:
        sinks: of restored lines, each `NAME:TARGET`, see `runtime.sinks.SINKS`.
        prometheus, web: ports of this machine; 0 takes a free one.
    """

    sinks: tuple[str, ...] = ()
    prometheus: int | None = None
    web: int | None = None


@dataclass
class Parts:
    """Everything that a stream needs, open.

    Attributes:
        restoring: what restores the source's lines, or why nothing does.
        fitted: how they go through the network; None where nothing restores them.
        record: the raw record, or None; `limit` bytes of it are kept.
        restored: the file of restored lines, or None.
        sinks: what restored lines go to.
        options: how the stream runs.
        first_sequence: number of the first line: behind those that are in the files already.
        telling: called about once a second with a snapshot as JSON.
        watched: what the live page shows, or None.
        notes: what people should read before they trust the result.
        bands: which of the source's bands are restored, for people.
        addresses: where others may look, by name.
    """

    restoring: Restoring | DeployError
    fitted: Fit | None
    options: StreamOptions
    record: LineWriter | None = None
    limit: int | None = None
    restored: LineWriter | None = None
    sinks: list[NamedSink] = field(default_factory=list)
    first_sequence: int = 0
    telling: list[Callable[[Mapping[str, Any]], None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bands: str = ""
    addresses: dict[str, str] = field(default_factory=dict)
    watched: Watched | None = None

    def spool(self) -> Spool | None:
        """The record on disk."""
        if (kept := self.record) is None:
            return None
        return Spool(kept.bytes, self.limit, kept.lines, kept.deleted_segments, kept.deleted_lines, kept.bad_segments)

    def serve(self, snapshot: Callable[[], Snapshot], outward: Outward, stack: ExitStack) -> dict[str, str]:
        """Open what others may look at; returns their addresses by name."""
        found = self.addresses
        if outward.prometheus is None and outward.web is None:
            return found
        from runtime.stream.web import serve, serve_metrics

        if outward.prometheus is not None:
            found["prometheus"] = stack.enter_context(serve_metrics(snapshot, outward.prometheus)).url
        if outward.web is not None:
            seen = self.watched
            picture, spectra = (lambda: None, dict) if seen is None else (seen.scroll.png, seen.spectra.spectra)
            found["web"] = stack.enter_context(serve(snapshot, picture, spectra, outward.web)).url
        return found


def make_parts(
    bundle: Bundle,
    source: Source,
    told: StreamSection,
    record: Path | None,
    restored: Path | None,
    limit: int | None,
    seconds: float | None,
    asked: Asked,
    outward: Outward,
    opened: ExitStack,
    opened_as: str,
) -> Parts:
    """Open the files and sinks of a stream; `opened` closes them. Raises DeployError."""
    manifest, signature = bundle.manifest, bundle.manifest.signature
    chosen = told.bands
    if told.nearest_bands:
        if chosen is not None:
            raise InputError("two ways to choose bands", key="stream.bands", remedy="leave bands or nearest_bands out")
        chosen = nearest_bands(source.format, manifest.wavelengths)
    fitted = fit(
        bundle,
        source,
        asked,
        chosen=chosen,
        radiometry=told.radiometry,
        folder=told.folder or ".",
        output=told.output,
    )
    options = _options(told, seconds)
    parts = Parts(
        replace(restoring(bundle, fitted, options), opened_as=opened_as),
        fitted,
        options,
        limit=limit,
        bands=_bands_text(fitted.lines, chosen, signature.measured.bands),
        notes=[*fitted.doubts, *_notes(fitted.lines, chosen, manifest.wavelengths, signature.measured.bands)],
    )
    fitted.check_memory(parts.options, (restored is not None) + (outward.web is not None) + len(outward.sinks))
    if record is not None:
        parts.record = open_record(source, fitted.lines, record, opened, limit=limit, segment_bytes=_segment(told))
    if restored is not None:
        parts.restored = open_restored(bundle, source, fitted, restored, opened)
        parts.sinks.append(principal(parts.restored))
    parts.first_sequence = behind(parts.record, parts.restored)
    _add_sinks(parts, StreamFacts(fitted.output, fitted.about), told, outward, opened)
    parts.notes += fitted.radiometry.doubts
    parts.notes += [file.resumed for file in (parts.record, parts.restored) if file is not None and file.resumed]
    if fitted.unsaid:
        scale = fitted.radiometry.scale
        parts.notes.append(f"nobody said what stands for 1.0 in these lines: the bundle's {scale:g} is taken (--scale)")
    if source.live:
        # Of others some lines were looked at.
        parts.telling.append(_doubt_scale(fitted.unsaid, console.warn))
    parts.telling.append(_tell_doubts(console.warn))
    parts.notes += _never_restored(parts, [] if restored is None else _other_serials(restored, manifest.serial))
    return parts


def make_record_parts(
    why: DeployError,
    source: Source,
    told: StreamSection,
    record: Path,
    limit: int | None,
    seconds: float | None,
    asked: Asked,
    outward: Outward,
    opened: ExitStack,
    opened_as: str,
) -> Parts:
    """The same for a stream that nothing restores: a record, and sinks that tell the counts. Raises DeployError."""
    lines = recorded_format(source, asked, record, told.radiometry)
    raw = open_record(source, lines, record, opened, limit=limit, segment_bytes=_segment(told))
    off = restoration_off(why, opened_as)
    parts = Parts(
        off, None, _options(told, seconds), record=raw, limit=limit, first_sequence=raw.next_sequence, bands="none",
        notes=[f"restoration is off, lines are recorded only: {why.one_line()}", *filter(None, [raw.resumed])],
    )  # fmt: skip
    try:
        _add_sinks(parts, StreamFacts(lines, "recorded only"), told, replace(outward, web=None), opened)
    except DeployError as error:
        # Nobody is owed a picture of what is not restored.
        parts.notes.append(error.one_line())
    # Nothing restored goes to them.
    parts.sinks.clear()
    return parts


def _options(told: StreamSection, seconds: float | None) -> StreamOptions:
    return StreamOptions(
        seconds, told.line_buffers, told.frame_buffers, told.policy, told.bridge, float(told.drain_seconds),
        float(told.selftest_seconds), float(told.refresh_seconds),
    )  # fmt: skip


def _segment(told: StreamSection) -> int | None:
    return None if told.segment_mib is None else told.segment_mib << 20


def _other_serials(restored: Path, serial: int) -> list[Path]:
    """Folders of lines that bundles of other serials restored, where a store flies."""
    if restored.name != str(serial):
        return []
    return sorted(f for f in restored.parent.iterdir() if f.name.isdigit() and f.name != restored.name)


def _never_restored(parts: Parts, others: Sequence[Path]) -> list[str]:
    """Lines of the record that no run before has restored: it was killed, or dropped their frames."""
    if parts.record is None or parts.restored is None:
        return []
    left = without(parts.record.runs(), parts.restored.runs())
    for folder in others:
        left = without(left, runs_of(stems(folder, "restored")))
    if not left:
        return []
    told = ", ".join(f"{first} to {last}" for first, last in left[:SHOWN])
    more = f" and {len(left) - SHOWN} more runs, {sum(last + 1 - first for first, last in left)} lines in all,"
    names = "lines.hdr" if parts.limit is None else "lines-NNNN.hdr, segment by segment"
    return [
        f"lines {told}{more * (len(left) > SHOWN)} of the record were not restored by the runs before; a copy of it "
        f"can be restored later with --source file:COPY/{names}, which numbers its lines anew and knows of no gaps"
    ]


def _tell_doubts(warn: Callable[[str], None]) -> Callable[[Mapping[str, Any]], None]:
    """Looks at a stream's snapshots; warns of what was seen in its numbers, once."""
    told = 0

    def look(snapshot: Mapping[str, Any]) -> None:
        nonlocal told
        for doubt in snapshot["doubts"][told:]:
            warn(doubt)
        told = len(snapshot["doubts"])

    return look


def _doubt_scale(unsaid: bool, warn: Callable[[str], None]) -> Callable[[Mapping[str, Any]], None]:
    """Looks at a stream's snapshots; warns once where the numbers do not look like the scale that was taken."""
    done = False

    def look(snapshot: Mapping[str, Any]) -> None:
        nonlocal done
        peak = snapshot["peak"]
        if peak is None or done:
            return
        done = True
        if peak > UNIT_LIMIT:
            warn(f"values reach {peak:.4g} times what stands for 1.0; if that is another number, say it: --scale")
        elif unsaid and peak < DIM_SHARE:
            warn(f"values reach {100 * peak:.2g} % of what stands for 1.0, which nobody said; say it: --scale")

    return look


def _add_sinks(parts: Parts, facts: StreamFacts, told: StreamSection, outward: Outward, opened: ExitStack) -> None:
    if outward.web is not None:
        # The page has a picture of its own: no file is asked for.
        parts.watched = Watched(Scroll(facts, bands_nm=told.quicklook_nm), Spectra(facts, told.spectra))
        parts.sinks.append(NamedSink("web", parts.watched))
    for place, spec in enumerate(outward.sinks):
        kind = spec.partition(":")[0]
        before = sum(other.startswith(f"{kind}:") for other in outward.sinks[:place])
        name = f"{kind}-{before + 1}" if before else kind
        sink = opened.enter_context(open_sink(spec, facts, SinkOptions(told.quicklook_nm)))
        parts.sinks.append(NamedSink(name, sink, sink.policy))
        parts.telling.append(sink.tell)
        if sink.address:
            parts.addresses[name] = sink.address
        if sink.resumed:
            parts.notes.append(sink.resumed)


class Watched(Sink):
    """What the live page shows: a scrolling picture and spectra."""

    def __init__(self, scroll: Scroll, spectra: Spectra) -> None:
        self.scroll, self.spectra = scroll, spectra

    def write(self, block: Any) -> None:
        self.scroll.add(block)
        self.spectra.write(block)

    def close(self) -> None:
        """Nothing is held."""


def _bands_text(lines: LineFormat, chosen: Sequence[int] | None, network: int) -> str:
    if chosen is not None:
        return f"{len(chosen)} of {lines.bands}: " + ", ".join(map(str, chosen))
    return f"all {lines.bands}" + (f", in overlapping groups of {network}" if lines.bands > network else "")


def _notes(lines: LineFormat, chosen: Sequence[int] | None, trained: list[float] | None, bands: int) -> list[str]:
    notes = []
    count = lines.bands if chosen is None else len(chosen)
    if count > bands:
        notes.append(
            f"{count} bands are restored in overlapping groups of the network's {bands}: choose bands if the network "
            "was trained on some of them (stream.bands, stream.nearest_bands)"
        )
    elif lines.wavelengths is not None:
        found = [lines.wavelengths[band] for band in chosen] if chosen else list(lines.wavelengths)
        notes += filter(None, [wavelength_doubt("the source's", found, trained)])
    return notes
