"""What rooms and libraries log, told as everything else is: one line on stderr."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent_manager.cli.output import Output


def tell_what_is_logged(output: Output) -> None:
    """From now on a record of level WARNING or above is a warning of ours, unless somebody else takes it already."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Warnings(output)])


class _Warnings(logging.Handler):
    """Python's own last resort prints tracebacks; this one does only with --verbose."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        said, error = record.getMessage(), record.exc_info[1] if record.exc_info else None
        if error is not None:
            said += f": {type(error).__name__}: {error}"
            if self._output.verbose:
                traceback.print_exception(error)
        self._output.warning(" ".join(said.split()))
