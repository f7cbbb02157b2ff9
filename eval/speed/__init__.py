"""Every script that measures time or memory."""
