"""Exports of a trained model that run without this package."""
