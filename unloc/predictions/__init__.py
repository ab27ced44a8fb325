"""Predictions: records, and their files in every published form."""
