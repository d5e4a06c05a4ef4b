"""From the sets people have to packed rows: documents, sequences, batches."""
