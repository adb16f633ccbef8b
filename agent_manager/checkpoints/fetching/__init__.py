"""Bringing files of the Hub into its cache: planned, in pieces, continued where an earlier try was cut off."""
