"""The command line: verbs over the use cases of the swap room. stdout is the result, stderr the rest."""
