"""The web in front of a `Service`: routes, guard, views, the page."""
