"""How good an agent is on held-out problems, side by side with others, and what its episodes look like token by token."""
