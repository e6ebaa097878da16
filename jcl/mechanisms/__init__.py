"""Mechanisms that several methods share: adapters, importances, merging, preferences, growth."""
