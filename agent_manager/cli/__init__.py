"""The command line: cli.md's verbs over the use cases of the swap room. stdout is the result, stderr the rest."""
