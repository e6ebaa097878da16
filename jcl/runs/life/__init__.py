"""A model that lives: a folder to which months of data come one by one, unknown until they do."""
