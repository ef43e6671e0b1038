"""Learning a policy: PPO, the learned policy, and its rewards."""
