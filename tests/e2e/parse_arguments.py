"""Run with vLLM's Python: reads a JSON list of command lines, writes what vLLM's own parser makes of each.

A command line begins with the model, as after `vllm serve`. The answer to each is the parsed values, as JSON
where they are JSON, or the parser's error as a string.
"""
# mypy: disable-error-code="import-not-found, unused-ignore"

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any


def main() -> None:
    """Standard input to standard output."""
    from vllm.entrypoints.launchers.cli_args import (  # noqa: PLC0415 - vLLM's environment
        make_arg_parser,
        validate_parsed_serve_args,
    )
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415 - vLLM's environment

    def parsed(argv: list[str]) -> dict[str, Any] | str:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                values = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
                validate_parsed_serve_args(values)
        except (SystemExit, TypeError, ValueError) as error:
            return said.getvalue().strip().rpartition("\n")[2] or str(error)
        found: dict[str, Any] = vars(values)
        return found

    answers = [parsed(argv) for argv in json.load(sys.stdin)]
    json.dump(answers, sys.stdout, default=repr)


if __name__ == "__main__":
    main()
