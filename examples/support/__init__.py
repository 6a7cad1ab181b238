"""What the examples share: data, networks, a classifier, resumable trainings, tables and pictures."""
