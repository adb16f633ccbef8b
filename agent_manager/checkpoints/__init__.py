"""Checkpoints: where their files are, what they say of themselves, and how they get here."""
