"""What the user declares: models.yaml, read, checked and turned into frozen values."""
