"""Models on the Hugging Face Hub, and the folders they are made of."""

from __future__ import annotations

from unisolo.hub.card import HubError, model_card
from unisolo.hub.model import HubModel, fetch_weights

__all__ = ["HubError", "HubModel", "fetch_weights", "model_card"]
