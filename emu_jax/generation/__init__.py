"""Generate text, visual embeddings and images from prompts."""
