"""Beyond one machine: the loop beneath the stages, on a cluster or in this process."""
