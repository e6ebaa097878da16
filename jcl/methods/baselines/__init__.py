"""Reference points: plain fine-tuning, and training each stage from the initial weights."""
