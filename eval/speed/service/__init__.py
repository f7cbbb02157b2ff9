"""What the search service carries: python -m eval.speed.service; and the clients that ask it, load.py."""
