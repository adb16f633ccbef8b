"""Taking one agent off the card and putting another on it."""
