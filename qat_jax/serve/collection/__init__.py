"""A collection that changes while it is searched: a base of features, a log of changes, blocks in memory."""
