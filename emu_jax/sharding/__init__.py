"""Where arrays lie: logical axis names on parameters and activations, and the rules that map them onto a mesh."""
