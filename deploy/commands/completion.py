"""`deploy completion`: tab completion for the shell."""

from typing import Any

import click
from click.shell_completion import get_completion_class

from .. import console
from ..answers import COMPLETE
from .options import examples, json_option


@click.command(
    epilog=examples(
        'eval "$(deploy completion bash)"    # in ~/.bashrc',
        'eval "$(deploy completion zsh)"     # in ~/.zshrc',
        "deploy completion fish | source    # in ~/.config/fish/config.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def command(shell: str) -> dict[str, Any]:
    """Print the script that teaches a shell to complete `deploy` commands and options."""
    app = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(f"click completes no {shell}")
    script = kind(app, {}, "deploy", COMPLETE).source()
    console.say_verbatim(script)
    return {"shell": shell, "script": script}
