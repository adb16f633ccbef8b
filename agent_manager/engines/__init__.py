"""Engines: what serves a model over HTTP. Command lines, log phases, and the client of a running one."""
