"""Downloads of models and data sets: each is made once, checked, and kept in a cache."""
