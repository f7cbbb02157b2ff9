"""Work on many machines: a Ray cluster, the actors on its nodes, and the loop that makes the shards of a stage."""
