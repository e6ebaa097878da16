"""Routing: the task, found from the inputs."""
