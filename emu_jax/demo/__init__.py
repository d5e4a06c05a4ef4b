"""The demo: the synthetic shapes world, its tasks and its report."""
