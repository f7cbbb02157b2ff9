"""Toybox: a retrieval data set that draws itself."""
