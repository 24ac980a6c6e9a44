"""A compact distributed inference engine: tensor x pipeline parallel, on torch."""
