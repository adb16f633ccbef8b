#!/bin/sh
# The main job on the simulated engine: launch po, one streamed answer, swap to dev, status, stop.
# It keeps its state in a folder of its own and stops what it started, also when it fails or is interrupted.
set -eu
AGENT_MANAGER_STATE_DIR=$(mktemp -d "${TMPDIR:-/tmp}/agent-manager-demo.XXXXXX")
AGENT_MANAGER_ENGINE=simulated
AGENT_MANAGER_CATALOG=$(dirname "$0")/../models.yaml
export AGENT_MANAGER_STATE_DIR AGENT_MANAGER_ENGINE AGENT_MANAGER_CATALOG
unset AGENT_MANAGER_PROFILE AGENT_MANAGER_RUNTIME

leave() {
    code=$?
    trap '' INT TERM HUP
    if agent-manager --quiet stop --all --drain-timeout 0 --wait 30; then
        rm -rf "$AGENT_MANAGER_STATE_DIR"
    else
        echo "something may still run; its state is in $AGENT_MANAGER_STATE_DIR" >&2
    fi
    exit "$code"
}
trap leave EXIT
trap 'exit 130' INT TERM HUP

say() {
    printf '\n%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1"
}

launch() {
    say "agent-manager launch $1" && return
    code=$?
    [ "$code" = 4 ] && echo "The demo needs the ports 8001 and 8002, and 8101 and 8102 for its engines." >&2
    exit "$code"
}

bold='' plain=''
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] && bold=$(printf '\033[1m') plain=$(printf '\033[0m')

echo "The engine here is simulated: no GPU, no model, generated text. Everything else is what you would use."
launch po
say 'agent-manager chat po "Which user story comes first?"'
launch dev
say 'agent-manager status'
say 'agent-manager stop'
