"""Options that several subcommands share, and what they have in common."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runtime.errors import ConfigError, InputError
from runtime.untrusted import TooLargeError, read_untrusted

from .. import console

if TYPE_CHECKING:
    from runtime.trust import Signed

    from ..config import Config

F = TypeVar("F", bound=Callable[..., Any])


class PositiveNumber(click.types.FloatParamType):
    """A number above 0 that is finite: click's own range takes `nan`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises click.BadParameter."""
        number: float = super().convert(value, param, ctx)
        if not (math.isfinite(number) and number > 0):
            self.fail(f"{value} is not a positive number.", param, ctx)
        return number


def json_option(command: F) -> F:
    """`--json`, on every subcommand."""
    return click.option(
        "--json", "as_json", is_flag=True, expose_value=False, help="One JSON object on the last line."
    )(command)


def config_option(command: F) -> F:
    """`--config FILE`."""
    return click.option("--config", "config_file", type=click.Path(path_type=Path), help="A deploy.yaml.")(command)


def engine_option(command: F) -> F:
    """`--engine NAME`."""
    return click.option(
        "--engine", help="Run the bundle's graph in this engine, for example onnxruntime, instead of the target's own."
    )(command)


def reading_options(command: F) -> F:
    """`--layout`, `--key`, `--scale` and `--ignore-value`: how files of cubes are read."""
    for option in (
        ignore_option,
        click.option(
            "--scale", type=PositiveNumber(), help="Number that stands for 1.0; beats what file, bundle and model say."
        ),
        click.option("--key", help="Name of the array in .npz and .mat files."),
        click.option(
            "--layout",
            help="Axes of .npy, .npz and .mat files, as bands,lines,samples; of one band lines,samples  "
            "[default: lines,samples,bands]",
        ),
    ):
        command = option(command)
    return command


def reading_flags(
    layout: str | None, key: str | None, scale: float | None, marks: tuple[float, ...] | None
) -> dict[str, object]:
    """What `reading_options` say, by the keys of a deploy.yaml."""
    return {"input.layout": layout, "input.key": key, "input.scale": scale, "input.ignore_value": marks}


def trust_option(command: F) -> F:
    """`--trust PATH`: from then on the keyring of whatever opens a bundle in this command."""
    return click.option(
        "--trust",
        metavar="PATH",
        expose_value=False,
        callback=_trust,
        help="A .pub, or a folder of such: only bundles that one of these keys signed are opened.",
    )(command)


def _trust(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    from runtime.trust import trusting

    if path is not None:
        context.with_resource(trusting(str(Path(path).absolute()) if path else ""))


def password_option(command: F) -> F:
    """`--password-file FILE`, for `read_password`."""
    return click.option(
        "--password-file", type=click.Path(path_type=Path), help="The secret key's password is the first line of it."
    )(command)


def read_password(file: Path | None, *, new: bool = False) -> str:
    """The password of a secret key, of a file or asked for. Raises InputError."""
    from runtime.secret_key import LONGEST_PASSWORD

    if file is not None:
        remedy = "give a file whose first line is the password"
        try:
            text = read_untrusted(file, LONGEST_PASSWORD + 2).decode("utf-8", "surrogateescape")
        except (OSError, TooLargeError) as error:
            why = "it is too long" if isinstance(error, TooLargeError) else error.strerror
            raise InputError(f"cannot be read: {why}", file=file, key="--password-file", remedy=remedy) from error
        if not (password := text.partition("\n")[0].removesuffix("\r")):
            raise InputError("holds no password", file=file, key="--password-file", remedy=remedy)
        return password
    if not sys.stdin.isatty():
        remedy = "give --password-file" + ", or --no-password" * new
        raise InputError("nobody can be asked for the password", key="password", remedy=remedy)
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=new, err=True))


def prompt_option(command: F) -> F:
    """`--prompt NAME`."""
    return click.option("--prompt", metavar="NAME", help="What the network is told, where a bundle holds several.")(
        command
    )


def ignore_option(command: F) -> F:
    """`--ignore-value V`, as often as there are marks: all of them, none for `none`, None where it is not given."""
    return click.option(
        "--ignore-value",
        "marks",
        multiple=True,
        callback=lambda ctx, param, texts: _marks(texts),
        metavar="VALUE",
        help="Number (or nan) that marks missing pixels; may be given again. `none` where nothing is missing.",
    )(command)


def _marks(texts: Sequence[str]) -> tuple[float, ...] | None:
    if [text.strip().lower() for text in texts] == ["none"]:
        return ()
    try:
        return tuple(map(float, texts)) or None
    except ValueError as error:
        remedy = "give numbers or nan, or none alone"
        raise InputError("not a value", key="--ignore-value", value=", ".join(texts), remedy=remedy) from error


def constant_bands_option(command: F) -> F:
    """`--constant-bands WHAT`."""
    return click.option(
        "--constant-bands",
        type=click.Choice(["leave", "restore"]),
        help="Bands of one value: leave them as they are (warned of if not said), or let the network restore them.",
    )(command)


def missing_chunks_option(command: F) -> F:
    """`--missing-chunks WHAT`."""
    return click.option(
        "--missing-chunks",
        type=click.Choice(["refuse", "fill"]),
        help="A Zarr cube without some of its chunks: refuse it, or take them as fill.  [default: refuse]",
    )(command)


def network_option(command: F) -> F:
    """`--option KEY=VALUE`, as often as there are options of the network; see `network_options`."""
    return click.option(
        "--option",
        "options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An option of the network, such as top_k=1; may be given again for another.",
    )(command)


def remote_options(command: F) -> F:
    """`--remote`, `--remote-command` and `--ssh-config`."""
    for option in (
        click.option("--ssh-config", type=click.Path(path_type=Path), help="Another configuration file for ssh."),
        click.option("--remote-command", default="deploy", show_default=True, help="What runs `deploy` there."),
        click.option("--remote", help="Finalise on this target over ssh: user@host."),
    ):
        command = option(command)
    return command


def signed_text(signed: Signed | None) -> str:
    """Who signed a file, for people."""
    if signed is None:
        return "not signed"
    if signed.comment is None:
        return f"carries a signature that names key {signed.key}; not verified: no keyring"
    return f"signed by {signed.key} ({signed.comment.replace(chr(9), ', ')})"


def warn_if_nobody_asked(signed: Signed | None) -> None:
    """Without a keyring: with one, what it does not trust is refused."""
    if signed is None or not signed.trusted:
        console.warn("no keyring: nobody asked who made this bundle; give --trust")


def examples(*lines: str) -> str:
    """Epilog of a subcommand that shows how it is used."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def read_config(config_file: Path | None, *, checkpoint_given: bool) -> Config:
    """The configuration: `--config`, or ./deploy.yaml when neither it nor a checkpoint is given, or the defaults."""
    file = config_file
    if file is None and not checkpoint_given and Path("deploy.yaml").is_file():
        file = Path("deploy.yaml")
        console.say("reading ./deploy.yaml")
    if file is None:
        from ..config import Config

        return Config()
    from runtime.engines import ENGINES

    from ..config import load_config

    return load_config(file, engines=tuple(ENGINES))


def parse_size(text: str | None) -> dict[str, int] | None:
    """`LINESxSAMPLES` as {"lines": ..., "samples": ...}; None stays None. Raises InputError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,6})\s*[xX]\s*(\d{1,6})\s*", text, re.ASCII)
    if match is None or 0 in map(int, match.groups()):
        raise InputError("not a size", key="size", value=text, remedy="lines x samples, for example 256x320")
    return {"lines": int(match[1]), "samples": int(match[2])}


def network_flags(checkpoint: str | None, texts: Sequence[str], top_k: int | None) -> dict[str, Any]:
    """What `--checkpoint`, `--option` and `--top-k` say, by the keys of a deploy.yaml. Raises InputError."""
    told = network_options(texts, top_k)
    return {"model.checkpoint": checkpoint, "model.top_k": told.get("top_k"), "model.options": told}


FLAGS = {
    "input.frame": "--size", "input.overlap": "--overlap", "input.scale": "--scale", "calibration.dir": "--calibration",
    "input.layout": "--layout", "input.key": "--key", "input.ignore_value": "--ignore-value",
    "precision": "--precision", "target": "--target", "model.checkpoint": "--checkpoint",
    "output.serial": "--serial",
}  # fmt: skip
"""What the keys of a deploy.yaml are called on the command line."""


def with_flags(config: Config, values: Mapping[str, object]) -> Config:
    """`deploy.config.with_overrides`, whose errors speak of the flags that were given. Raises ConfigError."""
    from ..config import with_overrides

    try:
        return with_overrides(config, values)
    except ConfigError as error:
        remedy = error.remedy
        for key, flag in FLAGS.items():
            if error.key == key and values.get(key) is not None:
                error.key = flag
                remedy = remedy.replace(f"`{key.rpartition('.')[2]}: ", f"`{flag} ")
            remedy = remedy.replace(key, flag) if "." in key else remedy
        error.remedy = remedy
        raise


def comma_list(text: str | None) -> tuple[str, ...] | None:
    """The parts of a comma list, each once; None stays None."""
    return None if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def network_options(texts: Sequence[str], top_k: int | None = None) -> dict[str, str | int | float | bool]:
    """What `--option` and its short form `--top-k` say, {key: value}; values are scalars as in a deploy.yaml.

    Raises:
        InputError: not KEY=VALUE, no scalar, or two values of one key.
    """
    from ..config.yaml_lines import parse_yaml

    told: dict[str, str | int | float | bool] = {} if top_k is None else {"top_k": top_k}
    for text in texts:
        key, _, given = text.partition("=")
        try:
            read = parse_yaml(f"value: {given}", None).data
        except ConfigError:
            read = {}
        value = read.get("value")
        scalar = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", key) or len(read) != 1 or not scalar:
            raise InputError(
                "not an option of a network", key="--option", value=text, remedy="KEY=VALUE, for example top_k=1"
            )
        assert isinstance(value, str | int | float), "it is a scalar"
        if told.setdefault(key, value) != value:
            also = " with --top-k" if key == "top_k" and top_k is not None else ""
            raise InputError(
                f"{key} is given two values{also}", key="--option", value=f"{told[key]} and {value}", remedy="give one"
            )
    return told
