"""Training stages: models with their losses."""
