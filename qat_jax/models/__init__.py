"""Query feature → Adaptation: the forms of the map, and the networks that make them."""
