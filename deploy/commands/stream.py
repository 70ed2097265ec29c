"""`deploy stream`: lines from a spectrometer to a record and to restored lines, until somebody says stop."""

from pathlib import Path
from typing import Any

import click

from runtime.sinks import SINKS
from runtime.sources import FORMS

from .options import (
    PositiveNumber,
    config_option,
    constant_bands_option,
    engine_option,
    examples,
    ignore_option,
    json_option,
    prompt_option,
    trust_option,
)


@click.command(
    epilog=examples(
        "deploy stream build/bundle --source sim: --record flight --restored flight --duration 60",
        "deploy stream orin --source genicam:192.168.1.20 --record raw --spool-limit 200GiB --restored out --web 8080",
        "deploy stream --store /var/lib/damp-deploy/store --source genicam: --record raw --restored out",
        "deploy stream orin --source envi-live:/data/capture.hdr --restored out --quicklook out/now.png --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--store", type=click.Path(path_type=Path), help="Fly from two slots instead, see `deploy slots`.")
@click.option("--source", "spec", required=True, help=f"{FORMS}.")
@click.option("--record", type=click.Path(path_type=Path), help="Folder of the raw record; a rerun appends to it.")
@click.option("--restored", type=click.Path(path_type=Path), help="Folder of the restored lines; a rerun appends.")
@click.option("--duration", type=PositiveNumber(), help="Seconds; else until the source ends.")
@click.option("--spool-limit", help="The record is a ring of so much, such as 20GiB: the oldest verified part goes.")
@click.option("--scale", type=PositiveNumber(), help="Number that stands for 1.0.")
@ignore_option
@constant_bands_option
@click.option("--quicklook", type=click.Path(path_type=Path), help="PNG of the newest restored lines.")
@click.option("--publish", metavar="PORT", help="ZeroMQ publisher: a port of this machine, or a full address.")
@click.option("--packets", metavar="FILE|HOST:PORT", help="CCSDS space packets, to a file or by UDP.")
@click.option(
    "--sink", metavar="NAME:TARGET", multiple=True, help=f"Of restored lines, repeatable: {', '.join(SINKS)}."
)
@click.option("--prometheus", type=click.IntRange(0, 65535), help="Port of this machine for Prometheus.")
@click.option("--web", type=click.IntRange(0, 65535), help="Port of this machine for the live page.")
@click.option("--log", type=click.Path(path_type=Path), help="JSON lines; default stream.jsonl beside the record.")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads of the engine.")
@engine_option
@prompt_option
@click.option("--self-test/--no-self-test", default=True, show_default=True, help="Restore the golden frame first.")
@click.option(
    "--on-bad-bundle",
    type=click.Choice(["record", "refuse"]),
    help="One that cannot be trusted or run here: record only and end with 3, the default with --record.",
)
@config_option
@trust_option
@json_option
def command(**options: Any) -> dict[str, Any]:
    """Record a spectrometer without loss, and restore what this computer can.

    Ctrl-C or SIGTERM ends it cleanly within five seconds. Every line is accounted for:
    in = restored + dropped + incomplete.
    """
    from .stream_run import run_stream

    return run_stream(**options)
