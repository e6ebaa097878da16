"""Routing: the task of a row is found from its inputs."""
