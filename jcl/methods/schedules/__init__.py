"""Schedules: the update is multiplied by a factor that depends on the stage."""
