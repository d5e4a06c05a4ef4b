"""Prepare data sets: read published layouts, clean them, and write sharded records."""
