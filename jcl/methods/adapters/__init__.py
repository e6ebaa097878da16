"""Adapters: small parts that learn beside a base, which may be frozen."""
