"""One rank of the model: weights, KV memory, forward, sample."""
