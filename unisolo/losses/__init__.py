"""Losses: which object trains which grid cell, focal and dice loss, and the stuff loss."""
