"""Commands for checkpoints: upgrade."""

import shlex
from typing import Annotated

import typer

from common.mistakes import Mistake
from launcher.console import say
from launcher.options import RunFolder

checkpoint_app = typer.Typer(help="Checkpoints of a run.", no_args_is_help=True)


@checkpoint_app.command()
def upgrade(
    run: RunFolder,
    trust: Annotated[
        bool, typer.Option("--trust", help="These files are yours: run the code that lies in them.")
    ] = False,
) -> None:
    """Converts checkpoints that hold pickles, once, into those that hold none; the old ones are kept beside them.

    Example: [bold]shardline checkpoint upgrade runs/books --trust[/]
    """
    from launcher.run_folder import existing
    from training.state.legacy import kept_checkpoints, old_checkpoints, undo_half
    from training.state.legacy import upgrade as convert

    _, config = existing(run)
    undo_half(run)
    old = old_checkpoints(run)
    if not old:
        say(f"{run}: no checkpoint of it needs converting")
        return
    if not trust:
        raise Mistake(
            f"{run}: its checkpoints are pickles, and reading a pickle runs the code that lies in it; "
            "add --trust if these files come from a run of yours"
        )
    for folder in reversed(old):
        say(f"{folder.name}: converted; the old one is kept as {convert(folder).name}")
    kept = shlex.join(["rm", "-r", *map(str, kept_checkpoints(run))])
    if config.training.precision == "bf16" and config.training.gradient_communication != "bf16":
        say(
            "its gradients crossed the ranks in bf16; they are summed in fp32 now, so that losses differ a little, "
            "unless it goes on with --set training.gradient_communication=bf16"
        )
    say(f"to free their space once the run has gone on: {kept}")
