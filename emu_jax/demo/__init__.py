"""The demo: the synthetic shapes world, its tasks, its report and the phases of its command."""
