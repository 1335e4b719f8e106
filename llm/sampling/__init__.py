"""One Sampler: transformers here, vLLM in a process of its own."""
