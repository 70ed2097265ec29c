"""What `deploy stream` does: a bundle, a source, and all that lies between them, from start to end."""

from __future__ import annotations

import math
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from runtime.arrays import Float32
from runtime.bundle import Bundle, load_bundle
from runtime.bundle_files import read_manifest, refuse_no_bundle
from runtime.descriptors import raise_limit
from runtime.engines import refuse_unknown
from runtime.errors import BundleError, CubeFileError, DeployError, InputError, MachineError
from runtime.manifest import Manifest
from runtime.meaning import Asked
from runtime.parity import told
from runtime.priority import let_workers_yield
from runtime.sinks import find_sink
from runtime.slot_names import NAMES
from runtime.sources import Source, SourceOptions, find_source, open_source
from runtime.stream.event_log import EventLog, Suspects
from runtime.stream.health import Watchdog
from runtime.stream.opening import MEMORY
from runtime.stream.pipeline import Stream, StreamResult
from runtime.stream.scrubbing import Scrubber
from runtime.stream.selftest import START_S
from runtime.stream.snapshot import Snapshot
from runtime.stream.teller import BoardTemperature, Teller
from runtime.trust import trust_here

from .. import console
from ..answers import leave
from ..config import Config
from ..streaming.parts import Outward, Parts, make_parts, make_record_parts
from ..streaming.view import LiveView
from .options import read_config, signed_text

if TYPE_CHECKING:
    from ..streaming.slot import Flying

LOG_NAME, SUSPECTS_NAME = "stream.jsonl", "suspect.jsonl"
OWN_SUFFIXES = ("", ".raw", ".hdr", ".idx", ".lock", ".reserve")
UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
         "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip


def run_stream(
    bundle: Path | None,
    store: Path | None,
    spec: str,
    record: Path | None,
    restored: Path | None,
    duration: float | None,
    spool_limit: str | None,
    scale: float | None,
    marks: tuple[float, ...] | None,
    constant_bands: Literal["leave", "restore"] | None,
    quicklook: Path | None,
    publish: str | None,
    packets: str | None,
    sink: tuple[str, ...],
    prometheus: int | None,
    web: int | None,
    log: Path | None,
    threads: int | None,
    engine: str | None,
    prompt: str | None,
    self_test: bool,
    on_bad_bundle: str | None,
    config_file: Path | None,
) -> dict[str, Any]:
    """Record and restore until the end; returns what `--json` prints. The options are those of `deploy stream`."""
    raise_limit()
    if (bundle is None) == (store is None):
        raise InputError(
            "one bundle flies", key="BUNDLE", remedy="give its folder, or --store with the slots of several"
        )
    config = read_config(config_file, checkpoint_given=False)
    folders = [folder for folder in (record, restored) if folder is not None]
    find_source(spec)
    _refuse_own(spec, folders)
    short = {"--quicklook": quicklook, "--publish": publish, "--packets": packets}
    sinks = [(key, f"{key[2:]}:{target}") for key, target in short.items() if target is not None]
    sinks += [("--sink", one) for one in sink]
    for _, one in sinks:
        find_sink(one)
    address = spec.partition(":")[2]
    written = [(key, Path(one.partition(":")[2])) for key, one in sinks]
    for key, path in written if log is None else [("--log", log), *written]:
        if address and path.resolve() == Path(address).resolve():
            raise InputError("the stream would read what it writes", key=key, value=path, remedy="give another folder")
        if any(_is_own(path, folder) for folder in folders):
            raise InputError("would be written into the lines", key=key, value=path, remedy="give another name")
    limit = None if spool_limit is None else parse_bytes(spool_limit)
    if record is None and limit is not None:
        raise InputError("there is no record to limit", key="--spool-limit", value=spool_limit, remedy="give --record")
    if limit is None and config.stream.segment_mib is not None:
        raise InputError(
            "only a record with a limit has segments", key="stream.segment_mib", remedy="give --spool-limit too"
        )
    if web and web == prometheus:
        raise InputError("the port of --prometheus too", key="--web", value=web, remedy="give each a port of its own")
    scales = (scale, config.stream.scale, config.input.scale)
    scale = next((told for told in scales if told is not None), None)
    asked = Asked(scale, config.input.ignore_value if marks is None else marks, constant_bands)
    outward = Outward(tuple(one for _, one in sinks), prometheus, web)
    if on_bad_bundle == "record" and record is None:
        raise InputError("there is no record", key="--on-bad-bundle", value="record", remedy="give --record")
    # What was typed wrong says nothing of a bundle: no slot is tried for it.
    trust_here()
    if bundle is not None:
        refuse_no_bundle(bundle)
    slots = None if store is None else _slots(store)
    if engine is not None:
        refuse_unknown(engine)

    keeps_recording = record is not None and on_bad_bundle != "refuse"

    def load(path: Path, whole: bool = False) -> Bundle:
        with ExitStack() as undo:
            opening = load_bundle(path, threads=threads, engine=engine, prompt=prompt or config.stream.prompt)
            opened = undo.enter_context(opening)
            opened.prompts.check_chosen()
            if self_test:
                later = keeps_recording and not whole and config.stream.selftest_seconds
                _prove(opened, START_S if later else math.inf)
            undo.pop_all()
        return opened

    opened_as = shlex.quote(str(bundle)) if store is None else f"--store {shlex.quote(str(store))}"
    places = [Path(str(bundle))] if store is None else [store / name for name in NAMES]
    with ExitStack() as stack:
        flying = None if slots is None else stack.enter_context(slots(load))
        try:
            loaded = stack.enter_context(load(places[0]) if flying is None else flying.open())
            facts = _Facts(loaded.manifest, loaded.instrument)
            why: DeployError | None = None
        except Exception as error:
            wrong_options = isinstance(error, InputError) and not isinstance(error, BundleError)
            if wrong_options or not keeps_recording:
                raise
            # Whatever a library raises: it is no reason not to record.
            told_why = MachineError(f"the bundle cannot be opened: {type(error).__name__}: {error}", file=places[0])
            facts, why = _Facts.of(places), error if isinstance(error, DeployError) else told_why
        if store is not None and why is None and restored is not None:
            # After an update these are lines of another network.
            restored = restored / str(loaded.manifest.serial)
        if record is None and restored is None:
            console.warn("neither --record nor --restored is given: nothing is kept")
        let_workers_yield()
        with console.progress("opening the source"):
            source = stack.enter_context(open_source(spec, _source_options(config, scale, facts)))
        if why is None:
            try:
                files = stack.enter_context(ExitStack())
                parts = make_parts(
                    loaded, source, config.stream, record, restored, limit, duration, asked, outward, files, opened_as
                )
            except DeployError as error:
                # Lines of another network, say, lie where these would be restored to, or memory is too small for both.
                in_the_way = isinstance(error, CubeFileError) and Path(error.file or "").name.startswith("restored")
                if not keeps_recording or not (in_the_way or error.key == MEMORY):
                    raise
                files.close()
                why = error
        if why is not None and record is not None:
            parts = make_record_parts(
                why, source, config.stream, record, limit, duration, asked, outward, stack, opened_as
            )
        logged = log or next((folder / LOG_NAME for folder in (record, restored) if folder is not None), None)
        events = None if logged is None else stack.enter_context(EventLog(logged))
        if flying is not None:
            parts.telling.append(flying.look)
            if events is not None:
                flying.log_to(events.write)
        suspects = None if (kept := restored or record) is None else Suspects(kept / SUSPECTS_NAME, stack)
        stack.enter_context(_signals(stopping := _Stopping()))
        told_of = {"bundle": str(bundle or store)} if why is not None else _described(loaded)
        if why is None:
            stack.enter_context(Scrubber(loaded.path, loaded.contents.whole, _damaged(events)))
        result, last = _stream(told_of, source, parts, config, events, suspects, outward, stopping)
        if flying is not None and "restore" not in result.hung:
            flying.close()
        if events is not None:
            # What it has lost is known when nothing comes any more.
            events.close()
        doubts = [] if parts.fitted is None else parts.fitted.doubts
        more = {"doubts": [*doubts, *last.doubts], **({} if flying is None else flying.told)}
        try:
            report = _told(result, last, events, more)
        except DeployError as error:
            if result.hung:
                leave(error)
            raise
        if result.hung:
            leave(report)
    return report


def _slots(store: Path) -> Callable[[Callable[[Path, bool], Bundle]], Flying]:
    """What flies from two slots, once it is told what loads a bundle; what is doubtful about them is said."""
    from runtime.slots import doubts

    from ..streaming.slot import Flying

    for doubt in doubts(store):
        console.warn(doubt)
    return partial(Flying, store)


@dataclass(frozen=True)
class _Facts:
    """What a source is told of the bundle: the frames and the instrument that it expects."""

    manifest: Manifest | None
    instrument: Mapping[str, Float32] = field(default_factory=dict)

    @classmethod
    def of(cls, bundles: Sequence[Path]) -> _Facts:
        """As far as bundles that cannot be used can still tell."""
        for bundle in bundles:
            with suppress(DeployError, ImportError):
                return cls(read_manifest(bundle))
        return cls(None)


def _damaged(events: EventLog | None) -> Callable[[Path, str], None]:
    """Tells of a file of the bundle that changed: what is in memory flies on, and the next start would record only."""

    def found(file: Path, problem: str) -> None:
        console.warn(f"{file}: {problem}; what flies is in memory, copy the bundle again before the next start")
        if events is not None:
            events.write("scrub", file=str(file), problem=problem)

    return found


def _prove(loaded: Bundle, seconds: float) -> None:
    with console.progress("self-test"):
        difference = loaded.self_test(seconds)
    off = told(difference, loaded.manifest.golden.truth is not None, loaded.choice.precision)
    done, count = len(loaded.answers), len(loaded.manifest.proofs)
    frames = "golden frame" if count == 1 else f"{count} golden frames"
    if done < count:
        frames, off = f"{done} of {frames}", f"{off}; the others follow in flight"
    console.say(f"self-test   {frames} restored, off by {off}")


def _described(loaded: Bundle) -> dict[str, str]:
    return {
        "bundle": str(loaded.path),
        "engine": ", ".join(loaded.engine.describe().values()),
        "signature": signed_text(loaded.contents.signed),
        "metrics": loaded.prompts.told,
        "precision": loaded.choice.precision,
        **({"prompt": loaded.prompts.chosen} if loaded.prompts.chosen else {}),
    }


def _refuse_own(spec: str, folders: Sequence[Path]) -> None:
    """Raise InputError where a stream would read what it writes."""
    address = spec.partition(":")[2]
    if any(
        _is_own(Path(address), folder) or (address and folder.resolve() == Path(address).resolve())
        for folder in folders
    ):
        raise InputError(
            "the stream would read what it writes", key="--source", value=spec, remedy="write to another folder"
        )


def _is_own(path: Path, folder: Path) -> bool:
    """Whether a record or restored lines in `folder` have files of that name."""
    path = path.resolve()
    named = path.stem.split("-")[0] in ("lines", "restored") and path.suffix in OWN_SUFFIXES
    return named and path.parent == folder.resolve()


def parse_bytes(text: str) -> int:
    """`20GiB`, `500MB` or a number of bytes. Raises InputError."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    if match is None or match[2].lower() not in UNITS or float(match[1]) <= 0:
        raise InputError("not a size", key="--spool-limit", value=text, remedy="for example 20GiB or 500MB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def _source_options(config: Config, scale: float | None, facts: _Facts) -> SourceOptions:
    told, signature = config.stream, None if facts.manifest is None else facts.manifest.signature
    return SourceOptions(
        wavelengths=told.wavelengths,
        scale=scale,
        saturation=told.saturation,
        rate=told.rate,
        idle_seconds=told.idle_seconds,
        camera=told.camera,
        simulator=told.simulator,
        instrument=facts.instrument,
        frame=signature.measured.lines if signature is not None and signature.is_area else None,
        samples=signature.measured.samples if signature is not None and signature.tiling == "fixed" else None,
    )


def _stream(
    told_of: Mapping[str, str],
    source: Source,
    parts: Parts,
    config: Config,
    events: EventLog | None,
    suspects: Suspects | None,
    outward: Outward,
    stopping: _Stopping,
) -> tuple[StreamResult, Snapshot]:
    """Run it with everybody who watches; returns what it did and the last snapshot."""
    describe = {"source": ", ".join(source.describe().values()), **told_of}

    def log(kind: str, **fields: Any) -> None:
        if events is not None:
            events.write(kind, **fields)
        if kind == "selftest" and not fields["ok"]:
            console.warn(f"a self-test failed: {fields['error']}")
        if suspects is not None and kind == "suspect":
            suspects.add(**fields)

    stream = Stream(
        source, parts.restoring, parts.record, parts.sinks, parts.options, first_sequence=parts.first_sequence, log=log
    )

    board = BoardTemperature()

    def snapshot() -> Snapshot:
        found = stream.snapshot()
        return replace(found, source={**found.source, **board.figures}, describe=describe, spool=parts.spool())

    for key, value in describe.items():
        console.say(f"{key:<11} {value}")
    console.say(f"bands       {parts.bands}")
    if (fitted := parts.fitted) is not None:
        for key, value in fitted.radiometry.describe().items():
            console.say(f"radiometry  {key}: {value}")
        for note in fitted.notes:
            console.say(f"note        {note}")
    for note in parts.notes:
        console.warn(note)
    log("start", describe=describe, radiometry="none" if fitted is None else fitted.radiometry.digest(),
        notes=list(parts.notes), first_sequence=parts.first_sequence)  # fmt: skip
    with ExitStack() as stack:
        for name, url in parts.serve(snapshot, outward, stack).items():
            console.say(f"{name:<11} {url}")
        watchdog = stack.enter_context(
            Watchdog(stream.health, on_change=lambda hung: log("health", not_answering=list(hung)))
        )
        stack.enter_context(LiveView(snapshot))
        stack.enter_context(Teller(snapshot, parts.telling, watchdog, board, log, config.stream.log_seconds))
        watchdog.ready()
        stopping.stream = stream
        result = stream.run()
        watchdog.stopping()
        last = snapshot()
    return result, last


@dataclass
class _Stopping:
    """What a signal stops; before there is a stream, it interrupts the start."""

    stream: Stream | None = None


@contextmanager
def _signals(stopping: _Stopping) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the stream cleanly, which takes five seconds at most."""

    def stop(number: int, frame: object) -> None:
        if stopping.stream is None:
            raise KeyboardInterrupt
        stopping.stream.stop("signal")

    caught = [signal.SIGINT, signal.SIGTERM]
    # A terminal that hangs up; under nohup it is ignored, and stays so.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(result: StreamResult, last: Snapshot, events: EventLog | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """What `--json` prints, with `more`; raises the first failure with it."""
    count, told = result.count, last.as_json()
    report = {
        "lines": count.as_json(),
        "frames": result.frames["restored"] + result.frames["passed"],
        "frames_by_fate": result.frames,
        "seconds": round(result.seconds, 3),
        "ended_by": result.ended_by,
        **{key: told[key] for key in ("flags", "clipped", "latency_s", "spool", "restoration")},
        "log": None if events is None else {"file": str(events.path), "lost": events.lost},
        **more,
    }
    if events is not None and events.lost:
        console.warn(f"{events.lost} lines of the log could not be written: {events.path}")
    if last.restoration.suspect_lines:
        console.warn(
            f"{last.restoration.suspect_lines} restored lines may be wrong; {SUSPECTS_NAME} and the log say why"
        )
    if last.restoration.untested:
        console.warn(f"{last.restoration.untested} restored lines had no self-test behind them: the end left no time")
    shown = ", ".join(f"{name} {value}" for name, value in count.as_json().items())
    console.say(f"lines      {shown}", "bold green" if not result.failures else "bold")
    console.say(f"frames     {report['frames']} in {result.seconds:.1f} s; ended by {result.ended_by}")
    if tests := last.restoration.tests.tests:
        console.say(f"self-tests {tests} behind the start's, {last.restoration.tests.failed or 'none'} failed")
    if count.dropped:
        fates = (
            ("dropped", "restoration was behind"), ("failed", "the engine failed on them"),
            ("unfit", "they were not whole, or not what a network should see (the log says why)"),
            ("cut_off", "the end cut them off"),
        )  # fmt: skip
        why = [f"{result.frames[fate]} frames, since {told}" for fate, told in fates if result.frames[fate]]
        rest = ": restoration was off" if last.restoration.state == "off" else ", the end came first"
        console.warn(f"{count.dropped} lines were not restored" + (f": {'; '.join(why)}" if why else rest))
    if count.restored and count.passed > count.restored / 2:
        console.warn(
            f"{count.passed} of {count.restored} restored lines are as they came: the log and their flags say why"
        )
    if count.incomplete:
        console.warn(f"{count.incomplete} lines never came, came damaged or were not recorded; the log says why")
    if result.hung:
        console.warn(f"{', '.join(result.hung)} did not end in time and was left")
    if last.clipped:
        console.warn(f"{last.clipped} values do not fit the restored lines' type and were set to its limit")
    if "files" in last.source and last.source.get("skipped"):
        console.warn(f"{last.source['skipped']:.0f} files were skipped; the log says why")
    for name, error in list(result.failures.items())[1:]:
        console.warn(f"{name}: {error.one_line()}")
    for error in result.failures.values():
        error.report = report
        if error.exit_code == InputError.exit_code:
            # The arguments were right when it began: a service is to be started again.
            error.exit_code = MachineError.exit_code
        raise error
    if "record" in result.hung or (result.hung and result.ended_by != "signal"):
        hanging = MachineError("a stage did not end", key=result.hung[0], remedy="see the log")
        hanging.report = report
        raise hanging
    return report
