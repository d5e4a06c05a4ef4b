"""Prepare data sets: read published layouts, clean documents, and write sharded records."""
