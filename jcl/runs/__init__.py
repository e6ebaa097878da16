"""The work behind the commands of `jcl`."""
