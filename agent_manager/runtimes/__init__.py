"""Where engines run: a process on this host, or a container. Nothing is imported here: the shim starts through it."""
