"""Several AI agents on one GPU: plan what fits, swap engines on the card, talk OpenAI to each."""

__version__ = "0.1.0"
