"""Training on many hosts: how its processes join, and what they say to each other."""
