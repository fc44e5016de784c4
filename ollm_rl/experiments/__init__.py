"""What the commands run: one agent, a search, a comparison."""
