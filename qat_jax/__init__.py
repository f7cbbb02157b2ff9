"""Query-adaptive transforms for retrieval with vision-language embeddings."""
