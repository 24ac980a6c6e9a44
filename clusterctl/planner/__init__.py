"""Which parallelism for which model on which GPUs, and what comes of it. PURE but for reading
config.json."""
