"""The `dist-ml` command: Hydra, the terminal and exit statuses live here, and nowhere below."""
