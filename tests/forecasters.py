"""Forecasters for tests: the shipped one, bent."""

from __future__ import annotations

from models.registry import default_model, load_model, save_model


def bent(directory, *, shift=0.0, stretch=1.0):
    """Write a model whose forecasts lie `shift` higher (in log seconds) and `stretch` times as far apart; return the directory."""
    manifest, weights = load_model(default_model())
    weights["target"] = weights["target"] * [1.0, stretch] + [shift, 0.0]
    save_model(directory, manifest, weights)
    return directory
