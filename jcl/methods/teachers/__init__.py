"""Teachers: another model's answers are kept."""
