"""From embeddings to pixels: U-Net, autoencoder, noise schedule and samplers of Stable Diffusion v1.5, exactly."""
