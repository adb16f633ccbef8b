"""The docker runtime: each instance is a container, described by a compose document."""
