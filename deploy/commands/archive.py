"""`deploy archive`: many products restored, on all cores of a computer or on several computers."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.errors import InputError

from .. import console
from .options import (
    PositiveNumber,
    constant_bands_option,
    engine_option,
    examples,
    ignore_option,
    json_option,
    prompt_option,
    trust_option,
)

if TYPE_CHECKING:
    from deploy.archive.order import Order
    from deploy.archive.run import Means

F = TypeVar("F", bound=Callable[..., Any])
UNITS = {"b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
         "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip
SHOWN, WIDE = 50, 120


def _bytes(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)\s*", text)
    if match is not None and not match[2]:
        raise InputError("has no unit", key="--memory", value=text, remedy="say 2GiB or 800MB")
    if match is None or match[2].lower() not in UNITS or float(match[1]) <= 0:
        raise InputError("not a size", key="--memory", value=text, remedy="for example 1.5GiB or 800MB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def _applied(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def order_options(command: F) -> F:
    """What is restored, and how."""
    place = click.Path(path_type=Path)
    return _applied(
        command,
        (
            click.argument("bundle", type=place),
            click.argument("inputs", metavar="INPUT...", type=place, nargs=-1, required=True),
            click.option("--out", type=place, required=True, help="Folder of the archive; what is done in it stays."),
            click.option(
                "--format", "kind", type=click.Choice(["like", "cog", "netcdf", "zarr", "envi"]), default="like",
                show_default=True, help="Of what is written: like each input, or one for all.",
            ),
            click.option(
                "--metrics", type=click.Choice(["frame"]), default="frame", show_default=True,
                help="The network's metrics are of each frame, as in a stream.",
            ),
            click.option("--ortho", is_flag=True, help="Put each product on the map grid of its lookup table."),
            click.option("--scale", type=PositiveNumber(), help="Number that stands for 1.0, of all products."),
            ignore_option,
            constant_bands_option,
            click.option("--layout", help="Axes of .npy, .npz and .mat files, as bands,lines,samples."),
            click.option("--key", help="Name of the array, where files hold several."),
            click.option(
                "--missing-chunks", type=click.Choice(["refuse", "fill"]), default="refuse", show_default=True,
                help="Of Zarr: what a chunk that is not there means.",
            ),
            click.option("--clip", is_flag=True, help="Clip restored cubes to [0, 1] (in the unit range)."),
            click.option("--split", is_flag=True, help="Restore giant cubes in parts, on several workers at once."),
            click.option("--outside", is_flag=True, help="Read what catalogues name outside their own folder, too."),
            click.option("--replace", is_flag=True, help="Replace outputs that another bundle or option made."),
            engine_option,
            prompt_option,
        ),
    )  # fmt: skip


def means_options(command: F) -> F:
    """What restores it."""
    file = click.Path(path_type=Path)
    return _applied(
        command,
        (
            click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler to use, as tls://HOST:8786."),
            click.option(
                "--workers", type=click.IntRange(1, 1024), help="Processes of this computer  [default: its cores]",
            ),
            click.option(
                "--memory", callback=_bytes, metavar="SIZE",
                help="Of each, such as 1.5GiB  [default: half as much again as the largest product needs]",
            ),
            click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of each engine."),
            click.option("--tls-ca", type=file, help="Certificate of the authority that signed all the others."),
            click.option("--tls-cert", type=file, help="This computer's certificate."),
            click.option("--tls-key", type=file, help="Its key, which nobody else may read."),
            click.option("--insecure", is_flag=True, help="Use a scheduler that anybody who reaches it can use."),
            click.option("--dashboard", is_flag=True, help="Show Dask's own page, on this computer alone."),
            click.option("--again", is_flag=True, help="Try again what was refused or quarantined before."),
        ),
    )  # fmt: skip


@click.group(
    no_args_is_help=False,
    epilog=examples(
        "deploy archive plan build/bundle scenes/ --out restored",
        "deploy archive run build/bundle scenes/ --out restored --format cog",
        "deploy archive resume restored",
        "deploy archive verify restored",
        "deploy archive report restored --quicklooks 12 --json",
    ),
)
def command() -> None:
    """Restore many products, and know what became of each.

    docs/archives.md goes from one laptop to several computers.
    """


@command.command(epilog=examples("deploy archive plan build/bundle scenes/ catalogue.json --out restored"))
@order_options
@click.option("--again", is_flag=True, help="Count what was refused or quarantined before as to be tried.")
@trust_option
@json_option
def plan(bundle: Path, inputs: tuple[Path, ...], out: Path, again: bool, **options: Any) -> dict[str, Any]:
    """Tell what `run` would do: each product's size, format and memory; what would be refused, and why."""
    from deploy.archive.ledger import LEDGER, Ledger, totals
    from deploy.archive.order import FOLDER
    from deploy.archive.plan import MARGIN, plan_of
    from deploy.archive.question import found_for
    from deploy.archive.work import looked_at, search

    order, searched, _ = found_for(_order(bundle, inputs, options), out, search)
    known = []
    if (out / FOLDER / LEDGER).is_file():
        with Ledger(out / FOLDER) as ledger:
            known = ledger.rows()
    with console.progress("looking") as looked:
        found = plan_of(order, out, known, searched, looked_at, again=again, looked=looked)
    todo = [row for row in found.rows if row.state == "planned"]
    # What it becomes is named after it, and is left out where there is no room.
    columns = 6 if console.people().width >= WIDE else 5
    shown = [
        (_named(row.path, order.inputs), row.format or "", " x ".join(map(str, row.shape or ())),
         f"{(row.bytes or 0) / 2**20:.1f}", f"{(row.peak or 0) / 2**20:.0f}", row.out or "")[:columns]
        for row in todo[:SHOWN]
    ]  # fmt: skip
    if shown:
        heads = ("product", "format", "bands, lines,\nsamples", "MiB", "memory,\nMiB", "becomes")[:columns]
        console.table("to be restored; how long it takes is not known before", heads, shown, folded=(0, 5))
    if len(todo) > SHOWN:
        console.say(f"and {len(todo) - SHOWN} more")
    for row in found.rows:
        if row.line is not None:
            console.complain(f"{row.state}: {row.line}")
        for note in row.notes:
            console.warn(f"{row.path}: {note}")
    counted = totals(row.state for row in found.rows)
    peak = max((row.peak or 0 for row in todo), default=0)
    console.say(f"products    {', '.join(f'{count} {what}' for what, count in counted.items())}")
    console.say(f"memory      {MARGIN * peak / 2**30:.2f} GiB for each worker")
    told = ("path", "state", "format", "shape", "bytes", "peak", "out", "line", "notes")
    rows = [{**{name: getattr(row, name) for name in told}, "seconds": None} for row in found.rows]
    return {"products": counted, "peak": peak, "memory": int(MARGIN * peak), "seconds": None, "plan": rows}


@command.command(
    epilog=examples(
        "deploy archive run build/bundle scenes/ --out restored",
        "deploy archive run build/bundle catalogue.json --out restored --format cog --workers 4 --memory 1.5GiB --json",
        "deploy archive run /share/bundle /share/scenes --out /share/restored --scheduler tls://head:8786 "
        "--tls-ca ca.pem --tls-cert me.pem --tls-key me.key",
    )
)
@order_options
@means_options
@trust_option
@json_option
def run(bundle: Path, inputs: tuple[Path, ...], out: Path, **options: Any) -> dict[str, Any]:
    """Restore every product of files, folders and STAC catalogues into a folder.

    One product that cannot be restored is told and stops nothing; the exit code is 1 then. Ctrl-C lets what runs end;
    the same command, or `deploy archive resume`, goes on. What is there already is not restored again.
    """
    from deploy.archive.run import run_archive

    means = _means(options)
    return run_archive(_order(bundle, inputs, options), out.absolute(), means)


@command.command(epilog=examples("deploy archive resume restored", "deploy archive resume restored --again"))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@means_options
@trust_option
@json_option
def resume(out: Path, **options: Any) -> dict[str, Any]:
    """Go on with an archive: what is left, what failed, and what was added to its inputs."""
    from deploy.archive.order import kept
    from deploy.archive.run import run_archive
    from runtime.bundle_files import head_of
    from runtime.by_lines.provenance import seal_of

    means, order = _means(options), kept(out)
    if seal_of(head_of(Path(order.bundle))) != order.seal:
        raise InputError(
            "is another bundle than this archive was begun with", file=order.bundle,
            remedy="put that one back, or `deploy archive run` into another --out; --replace restores all with it",
        )  # fmt: skip
    return run_archive(order, out.absolute(), means)


@command.command(epilog=examples("deploy archive verify restored"))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def verify(out: Path) -> dict[str, Any]:
    """Read every output back: its hash, its shape, its provenance. Before this, delete no input."""
    from deploy.archive.verify import verify_archive

    return verify_archive(out)


@command.command(epilog=examples("deploy archive report restored", "deploy archive report restored --quicklooks 12"))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--page", type=click.Path(path_type=Path), help="Where to  [default: report.html in DIR]")
@click.option("--quicklooks", type=click.IntRange(0, 1000), default=0, help="Pictures of so many outputs.")
@json_option
def report(out: Path, page: Path | None, quicklooks: int) -> dict[str, Any]:
    """Write an HTML page: totals, what was not restored and why, experts, the slowest."""
    from deploy.archive.report import report_archive

    told = report_archive(out, page, quicklooks)
    console.say(f"products    {', '.join(f'{count} {what}' for what, count in told['products'].items())}")
    console.say(f"wrote       {told['page']}", "bold green")
    return told


def _named(path: str, inputs: Sequence[str]) -> str:
    """A product by its path in the input that holds it; whole where none does."""
    given = next((Path(one) for one in inputs if Path(path).is_relative_to(one)), None)
    if given is None or [Path(one).name for one in inputs].count(given.name) > 1:
        return path
    if len(inputs) == 1 and path != str(given):
        return str(Path(path).relative_to(given))
    return str(Path(path).relative_to(given.parent))


def _order(bundle: Path, inputs: tuple[Path, ...], options: dict[str, Any]) -> "Order":
    from deploy.archive.order import Order
    from runtime.bundle_files import head_of
    from runtime.by_lines.provenance import seal_of

    head = head_of(bundle)
    names = ("kind", "metrics", "ortho", "scale", "marks", "constant_bands", "layout", "key", "missing_chunks", "clip",
             "split", "outside", "replace", "engine", "prompt")  # fmt: skip
    return Order(
        bundle=str(bundle.absolute()),
        seal=seal_of(head),
        inputs=tuple(str(path.absolute()) for path in inputs),
        **{name: options[name] for name in names},
    )


def _means(options: dict[str, Any]) -> "Means":
    from deploy.archive.run import Means
    from deploy.archive.security import tls_of

    own = {"--workers": options["workers"], "--memory": options["memory"], "--dashboard": options["dashboard"] or None}
    for name, value in own.items():
        if options["scheduler"] is not None and value is not None:
            raise InputError("is of a cluster of this computer's own", key=name, remedy="leave out it or --scheduler")
    tls = tls_of(options["tls_ca"], options["tls_cert"], options["tls_key"])
    if tls is not None and options["scheduler"] is None:
        raise InputError("are for a scheduler", key="--tls-ca, --tls-cert, --tls-key", remedy="give --scheduler too")
    names = ("scheduler", "insecure", "workers", "memory", "threads", "dashboard", "again")
    return Means(tls=tls, **{name: options[name] for name in names})
