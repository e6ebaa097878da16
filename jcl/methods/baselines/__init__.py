"""Reference points: plain fine-tuning, and each stage from the start."""
