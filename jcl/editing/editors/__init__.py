"""Editors, one to a file. Each factory returns a `jcl.editing.Editor`."""
