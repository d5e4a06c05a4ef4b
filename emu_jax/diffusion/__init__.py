"""The visual decoder, from embeddings to pixels: U-Net, autoencoder, schedule and samplers of Stable Diffusion v1.5."""
