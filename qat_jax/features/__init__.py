"""Features on disk: shards, the store that reads them, what writes them, and retrieval sets made of them."""
