"""How each network, policy and schedule learns: one pure train step a file."""
