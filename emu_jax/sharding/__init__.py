"""Sharding of arrays: logical axis names of parameters and activations, and the rules that map them to a mesh."""
