"""The simulated engine: serves as vLLM does, without a model or a GPU, and says so."""
