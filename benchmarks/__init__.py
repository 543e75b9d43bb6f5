"""Programs that measure; `results/` holds what they measured, and on what machine."""
