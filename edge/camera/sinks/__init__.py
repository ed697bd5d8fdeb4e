"""Where results go: terminal, JSON lines, video."""
