"""Reading cards: what is there, what is free, who holds it."""
