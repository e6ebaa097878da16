"""Teachers: the model is kept near another model's outputs."""
