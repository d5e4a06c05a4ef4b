"""From prompts to text, visual embeddings and pictures."""
