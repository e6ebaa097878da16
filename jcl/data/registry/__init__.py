"""What is downloaded once, checked, and kept in a cache."""
