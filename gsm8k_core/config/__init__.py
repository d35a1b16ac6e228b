"""Every setting, once: its default, its check and its help text."""
