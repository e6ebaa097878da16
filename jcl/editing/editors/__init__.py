"""Editors, one a file; each factory returns a `jcl.editing.Editor`."""
