"""What serves adapters: batches of files."""
