"""The tasks, one file each: `TASK` says what it reads, asks and scores."""
