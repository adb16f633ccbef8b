"""reload: the gateway reads its catalog anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer  # noqa: TC002 - typer reads annotations at run time

from agent_manager.state import StateDir

if TYPE_CHECKING:
    from agent_manager.cli.invocation import Invocation
    from agent_manager.cli.output import Output
    from agent_manager.swap.notices import ReloadResult

EXAMPLES = """
agent-manager reload
kill -HUP PID  # the same, for PID as 'agent-manager status' shows it
"""


def run(ctx: typer.Context) -> None:
    """Have the gateway read its catalog anew, without dropping a request.

    An invalid catalog changes nothing. An agent with other settings for its engine
    leaves the card when its requests are over, and comes back when it is asked for.
    """
    from agent_manager.cli.progress import progress  # noqa: PLC0415 - not for --help and completion
    from agent_manager.cli.runner import run as run_to_its_end  # noqa: PLC0415 - likewise
    from agent_manager.swap.host import Interrupts  # noqa: PLC0415 - likewise
    from agent_manager.swap.operations import reload  # noqa: PLC0415 - likewise

    invocation: Invocation = ctx.obj
    interrupts = Interrupts()
    # The catalog that counts is the gateway's: none is read here.
    with progress(invocation.output) as listener:
        state = StateDir.from_environment()
        results = run_to_its_end(reload(state, listener=listener, interrupts=interrupts), interrupts)
    if invocation.output.json:
        invocation.output.document({"reloaded": results})
        return
    for result in results:
        _tell(result, invocation.output)


def _tell(result: ReloadResult, output: Output) -> None:
    output.success(f"{result.catalog} is taken")
    for what, agents in (("added", result.added), ("removed", result.removed), ("changed", result.changed)):
        if agents:
            output.success(f"  {what:<9} {', '.join(agents)}")
