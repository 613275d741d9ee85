"""Measuring a trained model: one question each file."""
