"""Schedules: factors on the update, by stage."""
