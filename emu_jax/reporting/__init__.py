"""Self-contained HTML pages: style, charts, and the report of a training run."""
