"""Diagnosis: from an engine's log to the cause of its failure and what to do about it."""
