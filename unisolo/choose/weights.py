"""Are a backbone's ImageNet weights at hand? Asked before the choice, not told by a failure."""

from __future__ import annotations

import difflib

__all__ = ["weights_at_hand"]

_FILE = "model.safetensors"
_SECONDS = 5.0


def weights_at_hand(name: str) -> tuple[bool, str]:
    """Whether timm's weights of a backbone are in the cache or can be downloaded now.

    Args:
        name: A timm name.

    Returns:
        The answer, and the reason for people.

    Raises:
        ValueError: If timm does not know the name.
    """
    import huggingface_hub
    from timm.models import get_pretrained_cfg, is_model, list_models

    if not is_model(name):
        near = difflib.get_close_matches(name.split(".", 1)[0], list_models(), n=4)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
        raise ValueError(f"unknown backbone {name!r}; {hint}")
    try:
        facts = get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag after the dot that this model does not have
        raise ValueError(f"backbone {name!r}: {error}") from None
    if facts is None or not facts.has_weights:
        return False, "timm has no weights for this backbone"
    if not facts.hf_hub_id:
        return (
            False,
            "timm has them at an address of their own only: model.pretrained=true tries it",
        )
    file = facts.hf_hub_filename or _FILE
    if isinstance(huggingface_hub.try_to_load_from_cache(facts.hf_hub_id, file), str):
        return True, "ImageNet weights, from the cache"
    try:
        huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(facts.hf_hub_id, file), timeout=_SECONDS
        )
    # No network, no such host, a proxy's answer, offline mode: all mean the same here.
    except Exception as error:
        return False, f"not in the cache, no download from here ({type(error).__name__})"
    return True, "ImageNet weights, downloaded by timm"
