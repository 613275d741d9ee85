"""Training a masked autoencoder: recipe, data, loop, state."""
