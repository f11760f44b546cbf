"""The `deepinfer` command: a list of its commands, and how each failure ends the process.

Every command's module is imported here and is light; what is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import sys

import typer

from deepinfer.cli.alias import alias
from deepinfer.cli.backup import backup, restore
from deepinfer.cli.chat import chat
from deepinfer.cli.deployments import apply, delete, deploy
from deepinfer.cli.diff import diff
from deepinfer.cli.engines import engine
from deepinfer.cli.events import events
from deepinfer.cli.explain import explain
from deepinfer.cli.failures import CommandError
from deepinfer.cli.fleet import fleet
from deepinfer.cli.keys import keys
from deepinfer.cli.looking import describe, get, logs
from deepinfer.cli.nodes import cordon, drain, node, uncordon
from deepinfer.cli.plan import plan
from deepinfer.cli.processes import serve, worker
from deepinfer.cli.rebalance import rebalance
from deepinfer.cli.rollout import rollout
from deepinfer.cli.up import up
from deepinfer.fleet.errors import DeepinferError

HELP = """
Run LLM engines on a fleet of machines behind one OpenAI endpoint.

On one machine: `deepinfer up`. On several: `deepinfer serve` on one, `deepinfer worker` on each, `deepinfer deploy`.
"""
EXIT_CODES = """
Exit codes: 0 done; 1 the operation failed; 2 the command or its input is wrong; 3 the server cannot be reached; 4 not
found; 130 interrupted.
"""

app = typer.Typer(
    help=HELP,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: long option names must stay whole
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("deepinfer"))


for command in (
    *(up, serve, worker, deploy, apply, diff, get, describe, explain, plan, events, logs, delete, chat),
    *(cordon, uncordon, drain, rebalance, backup, restore, version),
):
    app.command()(command)
_GROUPS = {"rollout": rollout, "alias": alias, "node": node, "engine": engine, "fleet": fleet, "keys": keys}
for name, group in _GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    try:
        app()
    except CommandError as error:
        sys.exit(_failed(error, error.exit_code))
    except DeepinferError as error:
        sys.exit(_failed(error, 1))
    except OSError as error:  # a folder that cannot be written, a terminal that is gone
        sys.exit(_failed(error, 1))
    except KeyboardInterrupt:
        sys.exit(130)


def _failed(error: Exception, exit_code: int) -> int:
    typer.echo(f"Error: {error}", err=True)
    return exit_code
