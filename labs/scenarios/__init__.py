"""What happens to a network, and what its user is promised: each promise shown in a lab with traffic through it."""
