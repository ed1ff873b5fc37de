"""Manifests, datasets, batches and synthetic scenes; nothing here knows a model."""
