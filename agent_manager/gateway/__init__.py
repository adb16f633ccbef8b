"""One door for every client: requests decide which agent is on the card, and pass through to its engine."""
