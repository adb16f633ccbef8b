#!/bin/sh
# The main job on the simulated engine: launch po, one streamed answer, swap to dev, status, stop.
# It keeps its state in a folder of its own and stops what it started, also when it fails.
set -eu
AGENT_MANAGER_STATE_DIR=$(mktemp -d "${TMPDIR:-/tmp}/agent-manager-demo.XXXXXX")
AGENT_MANAGER_ENGINE=simulated
export AGENT_MANAGER_STATE_DIR AGENT_MANAGER_ENGINE

leave() {
    agent-manager --quiet stop --all || true
    rm -rf "$AGENT_MANAGER_STATE_DIR"
}
trap leave EXIT
trap 'exit 130' INT TERM

say() {
    printf '\n$ %s\n' "$*"
    "$@"
}

echo "The engine here is simulated: no GPU, no model, generated text. Everything else is what you would use."
say agent-manager launch po
say agent-manager chat po "Which user story comes first?"
say agent-manager launch dev
say agent-manager status
say agent-manager stop
