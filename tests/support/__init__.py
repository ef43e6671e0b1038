"""What several tests share: small data, weights, processes, and machines."""
