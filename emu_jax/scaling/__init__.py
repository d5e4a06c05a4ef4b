"""Scaling studies: plan a grid of runs, run it, collect it into one table, fit laws to the table, and plot them."""
