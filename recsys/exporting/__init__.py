"""A trained model in files that need nothing of this package."""
