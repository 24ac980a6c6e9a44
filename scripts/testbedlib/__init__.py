"""Real hosts on one machine. Standard library only: it runs before any environment exists."""
