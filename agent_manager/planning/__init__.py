"""Pure arithmetic: what fits on a card, every byte accounted for."""
