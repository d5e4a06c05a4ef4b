"""Read published data sets, lay documents out as token sequences, and pack them into batches."""
