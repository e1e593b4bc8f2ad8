"""The two-tower model and its parts, as plain Keras 3 layers."""
