"""AdaNAT in JAX: learned policies for parallel, token-based image generators."""
