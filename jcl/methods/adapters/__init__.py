"""Adapters: small parts beside a base that rests."""
