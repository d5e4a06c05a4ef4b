"""Networks that generated images are scored with: Inception for FID, CLIP for similarities."""
